"""Start the local cluster, or what is missing of it."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Event, Lock

from cluster import keys
from cluster.contracts import KeyTerms
from cluster.errors import RefusedError, UnavailableError
from cluster.keys import KeyRepository
from cluster.local import databases, ray_head, s3server
from cluster.local.credentials import LOCAL_KEY_ID, Credentials
from cluster.local.down import stop_ray, stop_s3
from cluster.local.environment import adopt, cluster_environment
from cluster.local.home import Home, State
from cluster.local.ports import HOST, check_ports
from cluster.local.process import find, marked, ref_of, roots
from cluster.ray_api import RayApi
from cluster.reconcile import reconcile
from cluster.runs import RunRepository
from cluster.settings import Settings
from cluster.storage import ArtifactStore, object_store

#: How long a Ray that runs may be silent before it is started anew.
_PATIENCE_S = 30.0


def up(settings: Settings, say: Callable[[str], None]) -> State:
    """Make sure that every part runs and is healthy, and say so in one line a part.

    What runs already stays as it is. If something cannot be started, what this call started is stopped
    again. Afterwards this process's environment leads to the cluster.

    :param say: gets each line.

    Raises UsageError, UnavailableError or RefusedError before anything starts when the plan is wrong (ports,
    paths, another `up` at work), UnavailableError when a part does not become healthy.
    """
    home = Home(settings.state_dir)
    home.prepare()
    with home.locked():
        return _Start(settings, home, say).run()


class _Start:
    """One `manta up`."""

    def __init__(self, settings: Settings, home: Home, say: Callable[[str], None]) -> None:
        self._settings, self._home, self._say = settings, home, say
        self._credentials = Credentials.load_or_create(home)
        ports = settings.ports
        self._api = RayApi(f"http://{HOST}:{ports.dashboard}", self._credentials.ray_token)
        self._state = State.load(home) or self._new_state()
        self._saving, self._ray_started = Lock(), Event()

    def run(self) -> State:
        """Start what is missing."""
        s3 = find(self._state.s3) is not None and s3server.healthy(self._state.ports.s3)
        ray = ray_head.daemons_run(self._state.ray) and self._ray_answers()
        if s3 or ray:
            self._refuse_other_ports()
        if not s3:
            stop_s3(self._home, self._state)
        if not ray:
            stop_ray(self._state)
        if not (s3 or ray):
            self._state = self._new_state()
        check_ports(self._settings.ports, s3=not s3, ray=not ray)
        adopt(self._settings, self._credentials)
        self._save()
        try:
            with ThreadPoolExecutor(4, thread_name_prefix="up") as pool:
                steps = [
                    pool.submit(self._s3_part, s3),
                    pool.submit(self._ray_part, ray),
                    pool.submit(self._databases_part),
                ]
                for step in steps:
                    step.result()
            self._reconcile()
            self._publish_key()
        except BaseException:
            self._say("stopping what was started")
            if not ray:
                stop_ray(self._state)
            if not s3:
                stop_s3(self._home, self._state)
            raise
        return self._state

    def _new_state(self) -> State:
        return State(instance=secrets.token_hex(8), started_at=datetime.now(UTC), ports=self._settings.ports)

    def _refuse_other_ports(self) -> None:
        running, wanted = self._state.ports.model_dump(), self._settings.ports.model_dump()
        for name, port in running.items():
            if wanted[name] != port:
                raise RefusedError(
                    f"The cluster under {self._home.root} runs with port {port} and "
                    f"MANTA_PORTS__{name.upper()} says {wanted[name]}: run `manta down` first."
                )

    def _ray_answers(self) -> bool:
        """Whether the Ray that runs is healthy; it gets time, since a restart would end its jobs."""
        api = RayApi(f"http://{HOST}:{self._state.ports.dashboard}", self._credentials.ray_token)
        try:
            ray_head.wait_healthy(api, _PATIENCE_S)
        except UnavailableError:
            return False
        return True

    def _save(self) -> None:
        with self._saving:
            self._state.save(self._home)

    def _s3_part(self, running: bool) -> None:
        ports, where = self._settings.ports, f"http://{HOST}:{self._settings.ports.s3}"
        if running:
            self._say(f"storage   running already at {where}")
            return
        pid = s3server.start(
            self._home.s3,
            port=ports.s3,
            internal_port_base=ports.s3_internal,
            credentials=self._credentials.s3,
            bucket=self._settings.storage.bucket,
            log=self._home.logs / "s3.log",
            timeout_s=self._settings.ray.start_timeout_s,
        )
        self._state.s3 = ref_of(pid)
        self._save()
        self._say(f"storage   healthy at {where} (pid {pid})")

    def _ray_part(self, running: bool) -> None:
        where = self._api.address
        try:
            if running:
                self._say(f"ray       running already at {where}")
                return
            environment = cluster_environment(
                self._settings, self._credentials, self._state.instance, os.environ
            )
            ray_head.start(self._settings, self._home, environment)
        finally:
            self._ray_started.set()
        ray_head.wait_healthy(self._api, self._settings.ray.start_timeout_s)
        self._state.ray = roots(marked(self._state.instance))
        self._save()
        cpus = ray_head.logical_cpus(self._settings)
        self._say(f"ray       healthy at {where} ({cpus} logical CPUs, token authentication)")

    def _databases_part(self) -> None:
        # A raylet that has to share two cores with MLflow's import gives up on its agent.
        self._ray_started.wait()
        made = databases.initialise(self._settings, self._home)
        where = self._home.registry if self._settings.database.url is None else "MANTA_DATABASE__URL"
        self._say(f"registry  {'made' if made else 'found'} in {where}")

    def _reconcile(self) -> None:
        """Runs of a cluster that was lost are found lost, or finished."""
        found = reconcile(RunRepository(self._settings.database_url), ArtifactStore(object_store()))
        if found.lost or found.settled:
            figures = f"{len(found.lost)} found lost, {len(found.settled)} found finished"
            self._say(f"runs      {figures}: see `manta runs`")

    def _publish_key(self) -> None:
        terms = KeyTerms(id=LOCAL_KEY_ID, owner="manta up", team=self._settings.team)
        repository = KeyRepository(self._settings.database_url)
        key = keys.adopt(repository, terms, self._credentials.openai_key)
        snapshot = keys.publish(repository, by="manta up")
        state = "revoked" if key.revoked_at else "published"
        self._say(f"gateway   key {key.id!r} {state} (snapshot {snapshot.number}); next: `manta deploy`")


def stopwatch(write: Callable[[str], None]) -> Callable[[str], None]:
    """Put the seconds since this call before each line."""
    start = time.monotonic()
    return lambda line: write(f"[{time.monotonic() - start:5.1f} s] {line}")
