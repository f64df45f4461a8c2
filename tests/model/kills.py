"""Jobs as a user runs them, killed with SIGKILL at a named point of their way to storage."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.job import JobResult
from tests.conftest import forget_settings
from tests.fault_proxy import FaultProxy, Request, Stage, Trap

#: before: with the first write, which storage never sees. mid-write: with a seeded one. between: the data is
#: there and the manifest not. after: the manifest is there, and its writer never hears of it.
POINTS = ("before", "mid-write", "between", "after")


@dataclass(frozen=True)
class Verb:
    """A job, and what the matrix needs to know of it."""

    module: str
    kind: str
    #: Its configuration without the name.
    fields: Mapping[str, Any]
    #: It writes at least so many objects before its manifest; which of them "mid-write" may be.
    writes: range

    def run(self, name: str) -> JobResult:
        """In this process."""
        module = import_module(f"jobs.{self.module}")
        (config_type,) = (
            value
            for key, value in vars(module).items()
            if key.lower() == f"{self.module.replace('_', '')}config"
        )
        result: JobResult = module.run(config_type(name=name, **self.fields))
        return result


@contextmanager
def as_team(team: str) -> Iterator[None]:
    """This process's jobs belong to ``team``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANTA_TEAM", team)
        forget_settings()
        yield
    forget_settings()


def trap_at(point: str, verb: Verb, team: str, seed: int) -> Trap:
    """The trap of a point; it does nothing yet."""

    def data(request: Request) -> bool:
        return request.writes and request.key.startswith(f"{team}/") and not manifest(request)

    def manifest(request: Request) -> bool:
        in_attempt = "/attempts/" in request.key
        return request.method == "PUT" and request.key.endswith("/manifest.json") and not in_attempt

    chance = random.Random(f"{verb.module}:{seed}")
    stages: tuple[Stage, ...] = ("before", "midway", "after")
    return {
        "before": Trap(data, "before", _nothing),
        "mid-write": Trap(data, chance.choice(stages), _nothing, nth=chance.choice(verb.writes)),
        "between": Trap(manifest, "before", _nothing),
        "after": Trap(manifest, "after", _nothing),
    }[point]


@contextmanager
def started(
    verb: Verb, name: str, team: str, proxy: FaultProxy, folder: Path, **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """The job's command in a process of its own, on the session's Ray, its storage behind the proxy.

    :param variables: more of its environment.
    """
    import ray

    ray_address = ray.get_runtime_context().gcs_address if ray.is_initialized() else ""
    file = folder / f"{verb.module}.yaml"
    file.write_text(yaml.safe_dump({"name": name, **verb.fields}))
    storage = {"AWS_ENDPOINT_URL": proxy.endpoint}
    environment = {
        **os.environ,
        **storage,
        **variables,
        "MANTA_TEAM": team,
        "PYTHONUNBUFFERED": "1",
        "RAY_ADDRESS": ray_address,
        # As `ray job submit` hands a runtime environment to the job and all its workers.
        "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"env_vars": storage | variables}}),
    }
    with (folder / "job.log").open("wb") as log:
        job = subprocess.Popen(
            [sys.executable, "-m", f"jobs.{verb.module}", "--config", str(file)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield job
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()


def run_and_kill(verb: Verb, name: str, team: str, proxy: FaultProxy, trap: Trap, folder: Path) -> None:
    """Run the job until the trap kills it: its whole session with SIGKILL, as a lost machine would end."""
    with started(verb, name, team, proxy, folder) as job:
        trap.act = lambda: os.killpg(job.pid, signal.SIGKILL)
        proxy.trap(trap)
        ended = job.wait(timeout=1200)
    log = (folder / "job.log").read_text(errors="replace")
    assert trap.sprung is not None, f"the job ended with {ended} before it was killed:\n{log[-3000:]}"
    assert ended == -signal.SIGKILL, log[-3000:]


def _nothing() -> None:
    """Set by :func:`run_and_kill`, which knows the process."""
