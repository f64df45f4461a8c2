"""Where Ray Train keeps its checkpoints, and how a new attempt finds those of a killed one.

Beside each attempt ``attempts/<run id>/`` stands ``attempts/<run id>.train/``: never part of the artifact,
deleted once the artifact is committed, and collected by ``manta gc`` otherwise. A new attempt gets an area
of its own, so that two that run at once do not disturb each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.contracts import ArtifactRef
from cluster.job import JobRun
from cluster.storage import ObjectStore
from cluster.storage.attempt import TRAINING

if TYPE_CHECKING:
    from ray.train import Checkpoint, Result


@dataclass(frozen=True)
class Earlier:
    """The furthest checkpoint of an attempt that did not finish."""

    run_id: str
    step: int
    checkpoint: Checkpoint


def experiment(job: JobRun) -> tuple[str, str]:
    """Ray Train's ``storage_path`` (``bucket/key``) and run name for this attempt."""
    return f"{job.store.bucket}/{job.ref}/attempts", f"{job.run_id}{TRAINING}"


def earlier_checkpoint(store: ObjectStore, ref: ArtifactRef) -> Earlier | None:
    """The furthest whole checkpoint that any attempt at the artifact left; None if there is none."""
    found = [
        _furthest(store, ref, name) for name in store.folders(f"{ref}/attempts/") if name.endswith(TRAINING)
    ]
    return max((e for e in found if e is not None), key=lambda earlier: earlier.step, default=None)


def discard(job: JobRun) -> None:
    """Delete this attempt's training area; its result is committed."""
    path, name = experiment(job)
    job.store.filesystem().delete_dir(f"{path}/{name}")


def _furthest(store: ObjectStore, ref: ArtifactRef, name: str) -> Earlier | None:
    result = _restored(store, f"{store.bucket}/{ref}/attempts/{name}")
    if result is None or result.checkpoint is None or not result.metrics:
        return None
    return Earlier(name.removesuffix(TRAINING), int(result.metrics["step"]), result.checkpoint)


def _restored(store: ObjectStore, path: str) -> Result | None:
    """Ray Train's own record of a run: it names a checkpoint only once that is uploaded whole."""
    import ray.train
    from ray.train.v2.api.exceptions import ControllerError

    try:
        return ray.train.Result.from_path(path, storage_filesystem=store.filesystem())
    except (RuntimeError, OSError, ValueError, ControllerError):
        return None  # Killed before its first checkpoint, or cut off while it was deleted.
