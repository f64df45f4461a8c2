"""Ray's head: started as `ray start --head` would be, on loopback and with token authentication."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from cluster.errors import UnavailableError
from cluster.local.home import Home, ProcessRef
from cluster.local.ports import HOST, ray_internal
from cluster.local.process import MARK, end, find, marked
from cluster.ray_api import RayApi
from cluster.serve_environment import SERVE_ENVIRONMENT
from cluster.settings import Settings

#: Attempts to start. On a starved machine the raylet gives up when its agent needs over 15 s; the second
#: attempt finds its files in the page cache.
_ATTEMPTS = 3
_OLD_SESSIONS = 2


def logical_cpus(settings: Settings) -> int:
    """CPUs that Ray schedules with: a currency, so that a small machine can hold the whole platform."""
    return settings.ray.num_cpus or max(4, os.cpu_count() or 1)


def ray_environment(settings: Settings) -> dict[str, str]:
    """What Ray itself reads at start-up."""
    ports = settings.ports
    return {
        # Ray replaces 127.0.0.1 by an outward address unless "clusters" are off; with it every one of its
        # servers listens on loopback only. The name speaks of Windows, the effect is the same on Linux.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # A starved machine's agent needs longer than the 15 s after which the raylet gives up.
        "RAY_agent_register_timeout_ms": "120000",
        **SERVE_ENVIRONMENT,
        "AUTOSCALER_METRIC_PORT": str(ray_internal(ports, "autoscaler_metrics")),
        "DASHBOARD_METRIC_PORT": str(ray_internal(ports, "dashboard_metrics")),
        # Keeps /proc/<pid>/environ whole when a worker renames itself, so that `down` knows its own.
        "SPT_NOENV": "1",
    }


def start_command(settings: Settings, home: Home) -> list[str]:
    """The whole `ray start` line, every port named."""
    ports = settings.ports
    options = {
        "node-ip-address": HOST,
        "port": ports.gcs,
        "dashboard-host": HOST,
        "dashboard-port": ports.dashboard,
        "dashboard-agent-listen-port": ports.dashboard_agent,
        "dashboard-agent-grpc-port": ports.dashboard_grpc,
        "ray-client-server-port": ports.client,
        "node-manager-port": ray_internal(ports, "node_manager"),
        "object-manager-port": ray_internal(ports, "object_manager"),
        "runtime-env-agent-port": ray_internal(ports, "runtime_env_agent"),
        "metrics-export-port": ray_internal(ports, "metrics_export"),
        "min-worker-port": ports.worker_min,
        "max-worker-port": ports.worker_max,
        "temp-dir": home.ray,
        "num-cpus": logical_cpus(settings),
        "object-store-memory": int(settings.ray.object_store_gib * 1024**3),
    }
    # sys.prefix, not the resolved executable: the virtual environment's own script, with its packages.
    ray = str(Path(sys.prefix) / "bin" / "ray")
    return [ray, "start", "--head", "--disable-usage-stats", *(f"--{k}={v}" for k, v in options.items())]


def start(settings: Settings, home: Home, environment: Mapping[str, str]) -> None:
    """Start Ray's processes and leave them running; they carry our mark from ``environment``.

    Raises UnavailableError when Ray does not start.
    """
    _prune_sessions(home)
    log = home.logs / "ray-start.log"
    for attempt in range(1, _ATTEMPTS + 1):
        with log.open("ab") as output:
            try:
                status = subprocess.run(
                    start_command(settings, home),
                    env=dict(environment),
                    cwd=home.root,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    timeout=settings.ray.start_timeout_s,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                status = None
        if status == 0:
            return
        stop(marked(environment[MARK]))
        if attempt < _ATTEMPTS:
            time.sleep(1)
    raise UnavailableError(f"Ray did not start in {_ATTEMPTS} attempts: {log} tells why.")


def daemons_run(daemons: Sequence[ProcessRef]) -> bool:
    """Whether Ray was started and none of its daemons has ended since.

    The GCS takes half a minute to see that its raylet is gone; this sees it at once.
    """
    return bool(daemons) and all(find(ref) is not None for ref in daemons)


def wait_healthy(api: RayApi, timeout_s: float) -> None:
    """Wait until the job server answers and the node is alive; UnavailableError after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            check(api)
        except UnavailableError:
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"Ray started but {api.address} was not ready within {timeout_s:g} s: "
                    "see the logs below MANTA_HOME/ray/session_latest/logs."
                ) from None
            time.sleep(0.2)
        else:
            return


def check(api: RayApi) -> None:
    """Raise UnavailableError or AccessError unless the cluster would take a job now."""
    api.version()
    if not api.nodes():
        raise UnavailableError(f"The cluster at {api.address} has no node that is alive.")


def stop(found: list[psutil.Process]) -> None:
    """End the raylet first, which takes its workers along, then the rest; the GCS last.

    The GCS holds nothing that outlives it and ignores SIGTERM for minutes once the raylet is gone.
    """
    by_name: dict[str, list[psutil.Process]] = {"raylet": [], "gcs_server": [], "": []}
    for process in found:
        try:
            name = process.name()
        except psutil.Error:
            continue
        by_name.get(name, by_name[""]).append(process)
    end(by_name["raylet"], grace_s=8)
    end(by_name[""], grace_s=4)
    end(by_name["gcs_server"], grace_s=0.5)


def _prune_sessions(home: Home) -> None:
    """Keep the logs of the last sessions only: Ray never removes them."""
    sessions = sorted(p for p in home.ray.glob("session_2*") if p.is_dir() and not p.is_symlink())
    for session in sessions[:-_OLD_SESSIONS]:
        shutil.rmtree(session, ignore_errors=True)
