"""The one way in which every job runs: typed configuration, run record, artifact, result line.

A name is loaded when it is first used: a client submits jobs (:mod:`cluster.job.submit`) without the packages
that running one needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.job.cli import command
    from cluster.job.config import JobConfig
    from cluster.job.run import JobResult, JobRun, start_run

__all__ = ["JobConfig", "JobResult", "JobRun", "command", "start_run"]

_MODULES = {"JobConfig": "config", "JobResult": "run", "JobRun": "run", "command": "cli", "start_run": "run"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
