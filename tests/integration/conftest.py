"""The whole local cluster, started by the real `manta up` and shared by the session."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from cluster.local.credentials import Credentials
from cluster.local.environment import client_environment
from cluster.local.home import Home
from cluster.settings import Settings, load_settings
from tests.conftest import forget_settings
from tests.ports import free_ports

if TYPE_CHECKING:
    from tests.integration.laptop import Laptop, Submitted
    from tests.integration.serving import Served

ROOT = Path(__file__).parents[2]
MANTA = str(Path(sys.executable).with_name("manta"))
#: What a developer's shell, or another fixture, may have set for a cluster of its own.
_FOREIGN = ("AWS_", "MANTA_", "MLFLOW_", "OPENAI_", "RAY_")
_WORKERS = 300


@dataclass(frozen=True)
class LocalCluster:
    """A home of its own on free ports, and `manta` run for it as a user would."""

    home: Path
    environment: Mapping[str, str]

    def manta(
        self, *words: str, cwd: Path = ROOT, timeout: float = 300, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `manta`, with more variables if wanted."""
        return subprocess.run(
            [MANTA, *words],
            env={**self.environment, **environment},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def must(self, *words: str, timeout: float = 300) -> str:
        """Run `manta`; it must succeed. Returns its standard output."""
        done = self.manta(*words, timeout=timeout)
        assert done.returncode == 0, f"manta {' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def status(self) -> dict:
        """`manta status --json`."""
        return json.loads(self.manta("status", "--json").stdout)

    def processes(self) -> list[psutil.Process]:
        """Every process that has anything to do with this home, by command line or environment."""
        found = []
        for process in psutil.process_iter():
            try:
                words = [*process.cmdline(), *process.environ().values()]
                if any(str(self.home) in word for word in words) and process.status() != "zombie":
                    found.append(process)
            except psutil.Error:
                continue
        mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
        return [process for process in found if process.pid not in mine]

    def remove(self) -> None:
        """Stop it, and hold that nothing is left."""
        self.must("down")
        left = [(process.pid, process.cmdline()) for process in self.processes()]
        assert not left, f"manta down left {left}"
        shutil.rmtree(self.home)


def local_cluster() -> LocalCluster:
    """A new home on ports that are free now; nothing is started. Ray's sockets want its path short."""
    home = Path(tempfile.mkdtemp(prefix="m", dir="/tmp"))
    # One row of ports: the S3 server's parts begin at the eighth, and one more lies 10007 above that.
    first = free_ports(21 + _WORKERS, also_at=(7 + 10_007,))
    names = ("gcs", "dashboard", "dashboard_agent", "dashboard_grpc", "client", "serve_http", "s3")
    ports = {
        **{name: first + number for number, name in enumerate(names)},
        "s3_internal": first + 7,
        "ray_internal": first + 15,
        "worker_min": first + 21,
        "worker_max": first + 20 + _WORKERS,
    }
    clean = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    named = {f"MANTA_PORTS__{name.upper()}": str(port) for name, port in ports.items()}
    # A user's token for a model hub: jobs get it, and it must turn up nowhere else.
    hub = {"HF_TOKEN": f"hf_{secrets.token_hex(17)}"}
    # Of 10,000 usually: tests wait for figures to be exported.
    quick = {"RAY_metrics_report_interval_ms": "2000"}
    return LocalCluster(home, {**clean, **named, **hub, **quick, "MANTA_HOME": str(home)})


@pytest.fixture(scope="session")
def platform_cluster() -> Iterator[LocalCluster]:
    """The session's cluster, up."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()  # The small one of the tests before: two are much for two cores.
    cluster = local_cluster()
    try:
        cluster.must("up", timeout=600)
        yield cluster
    finally:
        cluster.remove()


@pytest.fixture(scope="session")
def platform(platform_cluster: LocalCluster) -> Iterator[Settings]:
    """The settings of the session's cluster; the session's environment leads to it.

    RAY_ADDRESS stays unset, so that a test may still have a small Ray of its own by ``ray.init``.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(_FOREIGN):
                patch.delenv(name)
        for name, value in platform_cluster.environment.items():
            if name.startswith("MANTA_"):
                patch.setenv(name, value)
        forget_settings()
        settings = load_settings()
        credentials = Credentials.load(Home(settings.state_dir))
        assert credentials is not None
        for name, value in client_environment(settings, credentials).items():
            if name != "RAY_ADDRESS":
                patch.setenv(name, value)
        forget_settings()
        _forget_token()
        yield load_settings()
    forget_settings()


def _forget_token() -> None:
    """Ray keeps what it found when it was imported, which may be no token, and the first token that it used.

    The configuration goes first: a thread of a Ray that is still ending may ask for a token in between.
    """
    if "ray" in sys.modules:
        from ray._raylet import AuthenticationTokenLoader, Config

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()


@pytest.fixture(scope="session")
def served(
    platform: Settings, platform_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory
) -> Served:
    """Tiny models behind the gateway, deployed by `manta deploy`: the session's one engine."""
    from tests.integration.serving import deploy_tiny_models

    return deploy_tiny_models(platform, platform_cluster, tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def laptop(platform_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Laptop:
    """An environment with the client alone, and the address and token of the session's cluster."""
    from tests.integration.laptop import make_laptop

    return make_laptop(platform_cluster, tmp_path_factory.mktemp("laptop"))


@pytest.fixture(scope="session")
def submitted(platform: Settings, platform_cluster: LocalCluster, laptop: Laptop) -> Submitted:
    """README's line for a job from a laptop, run on the demo's data."""
    from cluster.demo.data import put_demo_data
    from cluster.storage import object_store
    from tests.integration.laptop import submit_as_readme_says

    put_demo_data(object_store())
    return submit_as_readme_says(laptop, platform_cluster)
