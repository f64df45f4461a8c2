"""What a chaos run kills: processes of one local cluster, and no others, known by its home."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from cluster.errors import UnavailableError
from cluster.local.credentials import Credentials
from cluster.local.down import s3_processes
from cluster.local.environment import cluster_environment
from cluster.local.home import Home, State
from cluster.ray_api import RayApi
from cluster.settings import load_settings
from tests.integration.conftest import ROOT, LocalCluster

DRIVER, WORKER, ENGINE, GATEWAY, S3, NODE = "driver", "worker", "engine", "gateway", "s3", "node"
VICTIMS = (DRIVER, WORKER, ENGINE, GATEWAY, S3, NODE)
#: Of those that Ray starts anew by itself, how it names their processes.
_TITLES = {WORKER: "ray::ServeReplica:gateway:batches", GATEWAY: "ray::ServeReplica:gateway:gateway"}
_START_S = 300.0


class SecondNode:
    """A second raylet of the cluster, with the environment that `manta up` gave the first.

    :param cluster: is up, and this process has its settings.
    """

    def __init__(self, cluster: LocalCluster) -> None:
        settings, home = load_settings(), Home(cluster.home)
        credentials, state = Credentials.load(home), State.load(home)
        assert credentials is not None, "the cluster is up"
        assert state is not None, "the cluster is up"
        self._environment: Mapping[str, str] = cluster_environment(
            settings, credentials, state.instance, cluster.environment
        )
        self._api = RayApi(f"http://127.0.0.1:{settings.ports.dashboard}", credentials.ray_token)
        self._gcs, self._folder = f"127.0.0.1:{settings.ports.gcs}", cluster.home / "n"
        self._log = home.logs / "second-node.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Join, and wait until the cluster has two nodes. Raises SystemExit if it does not come to that."""
        deadline = time.monotonic() + _START_S
        while True:
            # A lost node is taken for alive for a while; only then can the new one be told from it.
            if self._process is None and self._nodes() == 1:
                self._process = self._join()
            elif self._process is not None and self._process.poll() is not None:
                self._process = None  # On a starved machine a raylet gives up when its agent is slow.
            elif self._process is not None and self._nodes() == 2:
                return
            if time.monotonic() > deadline:
                raise SystemExit(f"the second node did not start: {self._log.read_text()[-2000:]}")
            time.sleep(0.5)

    def raylets(self) -> list[psutil.Process]:
        """Its raylet, if it runs."""
        if self._process is None or self._process.poll() is not None:
            return []
        children = psutil.Process(self._process.pid).children(recursive=True)
        return [process for process in children if process.name() == "raylet"]

    def stop(self) -> None:
        """End it."""
        for raylet in self.raylets():
            raylet.kill()
        self.clear()

    def clear(self) -> None:
        """End what its raylet left."""
        if self._process is None:
            return
        try:
            self._process.wait(timeout=10)  # It ends by itself when its raylet is gone.
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    def _nodes(self) -> int:
        try:
            return len(self._api.nodes())
        except UnavailableError:  # Busy: it is asked again.
            return 0

    def _join(self) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "tests.second_node", self._gcs, str(self._folder)]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                words,
                cwd=ROOT,
                env=dict(self._environment),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


class Victims:
    """Finds them, kills them, and starts again what nobody but an operator would.

    :param engine: name of the model's application.
    """

    def __init__(self, cluster: LocalCluster, node: SecondNode, engine: str) -> None:
        self._cluster, self._node = cluster, node
        self._titles = {**_TITLES, ENGINE: f"ray::ServeReplica:{engine}:"}

    def find(self, victim: str) -> list[psutil.Process]:
        """Its processes that run now."""
        if victim == S3:
            return s3_processes(Home(self._cluster.home))
        if victim == NODE:
            return self._node.raylets()
        return [process for process in self._ours() if self._is(process, victim)]

    def kill(self, victim: str, chance: random.Random) -> bool:
        """SIGKILL one of them; False if none runs now."""
        try:
            found = sorted(self.find(victim), key=lambda process: process.pid)
            if found:
                chance.choice(found).kill()
        except psutil.NoSuchProcess:  # It ended by itself in between.
            return False
        return bool(found)

    def start_again(self, victim: str) -> None:
        """As whoever watches over the machines would: `manta up`, or a new node."""
        if victim == S3:
            self._cluster.must("up", timeout=600)
        if victim == NODE:
            self._node.clear()
            self._node.start()

    def _ours(self) -> list[psutil.Process]:
        home, found = str(self._cluster.home), []
        for process in psutil.process_iter():
            try:
                if process.environ().get("MANTA_HOME") == home:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def _is(self, process: psutil.Process, victim: str) -> bool:
        try:
            words = process.cmdline()
        except psutil.Error:
            return False
        if victim == DRIVER:  # And not the shell in whose line its command stands.
            return words[1:3] == ["-m", "jobs.batch_inference"] and "python" in Path(words[0]).name
        return " ".join(words).startswith(self._titles[victim])
