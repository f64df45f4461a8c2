"""Whoever starts next puts the records right that a killed process, driver or head left behind.

Nothing runs all the time for this: each job's start, ``manta up``, ``manta status``, ``manta runs`` and
``manta gc`` call it. A run whose lease has expired is lost, unless its manifest stands: the manifest is
the truth, and its run has succeeded, whatever its record says.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cluster.contracts import ArtifactRef, RunRecord, RunState
from cluster.errors import RefusedError
from cluster.runs import RunRepository
from cluster.storage import ArtifactStore

#: A run may be taken for lost and commit all the same, later; so lost runs are looked at for this long.
_LOOKED_AT = timedelta(days=1)


@dataclass(frozen=True)
class Reconciled:
    """What was put right."""

    lost: list[RunRecord]
    settled: list[RunRecord]


def reconcile(repository: RunRepository, artifacts: ArtifactStore, now: datetime | None = None) -> Reconciled:
    """Mark runs that nobody holds as lost, and as succeeded those of them whose manifest stands.

    Raises UnavailableError or AccessError if the database or storage does not answer.
    """
    now = now or datetime.now(UTC)
    fresh = {run.id: run for run in repository.reconcile(now)}
    late = repository.list(state=RunState.LOST, limit=None, ended_since=now - _LOOKED_AT)
    settled = []
    for run in ({run.id: run for run in late} | fresh).values():
        mended = settle(repository, artifacts, run)
        if mended is not None:
            settled.append(mended)
            fresh.pop(run.id, None)
    return Reconciled(list(fresh.values()), settled)


def settle(repository: RunRepository, artifacts: ArtifactStore, run: RunRecord) -> RunRecord | None:
    """Record the run as succeeded if the manifest at its address is its own; None if it is not."""
    if run.artifact is None:
        return None
    try:
        manifest = artifacts.find(ArtifactRef.parse(run.artifact))
    except RefusedError:  # Erased since, or damaged: the run's record tells no better.
        return None
    if manifest is None or manifest.run_id != run.id:
        return None
    return repository.settle(run.id, run.artifact, manifest.ended_at)
