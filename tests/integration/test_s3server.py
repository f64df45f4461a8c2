"""The local S3 server: closed to others, and its data survives."""

import os
import signal
import socket

import httpx
import psutil
import pytest

from cluster.errors import AccessError, UnavailableError, UsageError
from cluster.local import s3server
from cluster.settings import StorageSettings
from cluster.storage import ArtifactStore, ObjectStore
from tests.conftest import start_s3
from tests.ports import free_ports
from tests.writer import commit

pytestmark = pytest.mark.integration


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A server that the test may stop and kill, and a way to start it again on other ports."""
    running = []

    def start():
        server = start_s3(tmp_path / "s3")
        running.append(server.pid)
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.credentials.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.credentials.secret_key)
        return server, ObjectStore(server.bucket, StorageSettings())

    yield start
    for pid in running:
        s3server.stop(pid)


def test_it_listens_on_loopback_and_only_on_the_ports_it_was_given(s3):
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for connection in psutil.Process(s3.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    given = set(s3server.ports(s3.port, s3.internal_port_base).values())
    assert {address for address, _ in listening} == {"127.0.0.1"}
    assert {port for _, port in listening} <= given
    assert s3.port in {port for _, port in listening}


def test_no_port_gives_or_takes_an_object_without_a_signature(s3, store, team):
    """Neither small objects, which lie in the filer, nor large ones, which lie in volumes."""
    store.put(f"{team}/small", b"private")
    store.put(f"{team}/large", b"private" * 1_000_000)
    names = s3server.ports(s3.port, s3.internal_port_base)
    master, filer, volume = names["master.port"], names["filer.port"], names["volume.port"]
    with httpx.Client(trust_env=False, timeout=5) as client:
        for name in ("small", "large"):
            path = f"/{s3.bucket}/{team}/{name}"
            assert client.get(f"{s3.endpoint}{path}").status_code == 403
            for method in ("GET", "DELETE", "PUT"):
                assert client.request(method, f"http://127.0.0.1:{filer}/buckets{path}").status_code == 404
        assert client.get(f"http://127.0.0.1:{filer}/buckets/{s3.bucket}/?limit=10").status_code == 404
        assert client.get(s3.endpoint).status_code == 403
        # Volume and file ids are easy to guess, so the volumes' port must ask for a token,
        for file_id in ("1,01637037d6", "3,044fcf0b0c"):
            assert client.get(f"http://127.0.0.1:{volume}/{file_id}").status_code == 401
            assert client.post(f"http://127.0.0.1:{volume}/{file_id}", files={"f": b"x"}).status_code == 401
        # and the master must not give one away, nor take a whole bucket at a stranger's word.
        for order in ("dir/assign", "dir/lookup?volumeId=1", f"col/delete?collection={s3.bucket}"):
            answer = client.get(f"http://127.0.0.1:{master}/{order}")
            assert (answer.status_code, answer.headers.get("authorization")) == (404, None)
    assert store.get(f"{team}/small") == b"private"
    assert len(store.get(f"{team}/large")) == 7_000_000


def test_secrets_are_in_private_files_and_not_on_the_command_line(s3):
    secrets = [value for name, value in s3.credentials.model_dump().items() if name != "access_key"]
    line = "\0".join(psutil.Process(s3.pid).cmdline())
    assert not any(secret in line for secret in [*secrets, s3.credentials.access_key])
    assert s3.state_dir.stat().st_mode & 0o077 == 0, "what the server itself writes is behind this"
    for name in ("credentials.json", "identities.json", "s3.log"):
        assert (s3.state_dir / name).stat().st_mode & 0o077 == 0
    log = (s3.state_dir / "s3.log").read_text()
    assert not any(secret in log or secret in repr(s3.credentials) for secret in secrets)


def test_the_users_aws_keys_do_not_open_the_local_server(own, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAUSERSOWN")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "users-own-secret-key")
    own()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAUSERSOWN")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "users-own-secret-key")
    with pytest.raises(AccessError):
        ObjectStore("manta", StorageSettings()).check()


def test_data_survives_a_stop_a_kill_and_other_ports(own, owner, code, team, monkeypatch):
    from cluster.contracts import ArtifactRef

    ref = ArtifactRef(team=team, kind="dataset", name="kept", fingerprint="0" * 16)
    server, store = own()
    attempt = ArtifactStore(store).attempt(ref, "run")
    attempt.write("small", b"small")
    attempt.write("large", b"large" * 2_000_000)
    store._client.put_object(
        Bucket=store.bucket, Key=f"{attempt.prefix}encrypted", Body=b"secret", ServerSideEncryption="AES256"
    )
    manifest = commit(attempt)
    with monkeypatch.context() as patch:
        patch.setattr(psutil.Process, "kill", lambda _: pytest.fail("it does not end when it is asked to"))
        s3server.stop(server.pid, timeout_s=120)  # A busy machine needs long for what takes it a second.
    assert not psutil.pid_exists(server.pid)
    server, store = own()
    ArtifactStore(store).verify(ArtifactStore(store).open(ref))
    store.put(f"{team}/last", b"just before the end")
    os.kill(server.pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(server.pid)] if psutil.pid_exists(server.pid) else [], timeout=5)
    _, store = own()
    assert ArtifactStore(store).open(ref) == manifest
    ArtifactStore(store).verify(manifest)
    assert store.get(f"{team}/last") == b"just before the end"
    assert not store.put_if_absent(f"{ref}/manifest.json", b"{}")


@pytest.mark.parametrize(
    ("taken", "setting"), [("s3.port", "MANTA_PORTS__S3"), ("filer.port.grpc", "MANTA_PORTS__S3_INTERNAL")]
)
def test_a_port_in_use_is_told(tmp_path, taken, setting):
    port, base = free_ports(), free_ports(8, also_at=(10_007,))
    number = s3server.ports(port, base)[taken]
    with socket.socket() as other:
        other.bind(("127.0.0.1", number))
        other.listen()
        with pytest.raises(UnavailableError) as error:
            s3server.start(tmp_path, port=port, internal_port_base=base, credentials=s3server.S3Credentials())
    assert f"Port {number}" in str(error.value)
    assert f"set {setting} to another" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_port_that_is_none_is_told(tmp_path):
    with pytest.raises(UsageError, match="MANTA_PORTS__S3_INTERNAL leads to port 70"):
        s3server.start(
            tmp_path, port=free_ports(), internal_port_base=60_000, credentials=s3server.S3Credentials()
        )


def test_a_server_that_fails_at_its_start_is_told_and_leaves_no_process(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "filerldb2").write_text("no directory")
    with pytest.raises(UnavailableError, match=r"s3\.log"):
        s3server.start(
            tmp_path,
            port=free_ports(),
            internal_port_base=free_ports(8, also_at=(10_007,)),
            credentials=s3server.S3Credentials(),
            timeout_s=10,
        )
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if f"-dir={tmp_path}/data" in (p.info["cmdline"] or ())
    ]


def test_stop_leaves_strangers_alone():
    s3server.stop(os.getpid())
    s3server.stop(4_000_000)


def test_credentials_are_kept_private_and_stable(tmp_path):
    path = tmp_path / "deep" / "credentials.json"
    made = s3server.S3Credentials.load_or_create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert s3server.S3Credentials.load_or_create(path) == made
    path.chmod(0o644)
    with pytest.raises(AccessError, match="chmod 600"):
        s3server.S3Credentials.load_or_create(path)
    path.chmod(0o600)
    path.write_text("{")
    with pytest.raises(AccessError, match="is damaged"):
        s3server.S3Credentials.load_or_create(path)
