"""What is known of a batch: of a finished one from its manifest, of another from what its run wrote down."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.contracts import ArtifactRef, Manifest, RunRecord
from cluster.errors import NotFoundError, UsageError
from cluster.runs import RunRepository
from cluster.settings import Settings
from cluster.storage import ArtifactStore
from cluster.storage.attempt import ROWS
from jobs.batch.journal import PLAN, PROGRESS
from jobs.batch.progress import clock

KIND, VERB = "batch-output", "batch-inference"
_STATUSES = ("succeeded", "blocked", "failed")


def describe(what: str, settings: Settings, artifacts: ArtifactStore) -> dict[str, Any]:
    """The batch at an address, or that a run makes or has made.

    Raises NotFoundError if there is none, UsageError for something else than a batch.
    """
    ref = _address(what, artifacts)
    if ref is not None:
        return _finished(artifacts.open(ref))
    repository = RunRepository(settings.database_url)
    repository.reconcile()
    run = repository.get(what)
    if run.verb != VERB or run.artifact is None:
        raise UsageError(f"Run {run.id} is of {run.verb}: name a run or an address of a batch.")
    manifest = artifacts.find(ArtifactRef.parse(run.artifact))
    return _finished(manifest) if manifest is not None else _unfinished(run, artifacts)


def lines(about: Mapping[str, Any]) -> Iterator[str]:
    """The same for a reader."""
    rows = f"{about['rows']}/{about['total']}" if about["total"] else "none yet"
    yield f"batch        {about['address']}"
    yield f"run          {about['run']} ({about['state']})"
    if about["message"]:
        yield f"message      {about['message']}"
    why = f": {about['engine_reason']}" if about["engine_reason"] else ""
    yield f"model        {about['model']} ({about['engine']} engine{why})"
    counts = ", ".join(f"{about[status]} {status}" for status in _STATUSES)
    resumed = f"; {about['resumed']} answered by an earlier run" if about["resumed"] else ""
    yield f"rows         {rows}: {counts}{resumed}"
    yield f"tokens       {about['prompt_tokens']:,} in prompts, {about['completion_tokens']:,} generated"
    if about["cost"] is not None:
        yield f"cost         {about['cost']:.6g}"
    left = f", about {clock(about['left_s'])} left" if about["left_s"] else ""
    yield f"duration     {clock(about['seconds'])}{left}"
    for error in about["first_errors"]:
        yield f"failed       {error['row_id']}: {error['error_code']}: {error['error_message']}"


def _address(what: str, artifacts: ArtifactStore) -> ArtifactRef | None:
    try:
        ref = ArtifactRef.parse(artifacts.store.key(what))
    except ValueError:
        return None
    if ref.kind != KIND:
        raise UsageError(f"{ref} is a {ref.kind}: name a run or an address of a batch.")
    return ref


def _finished(manifest: Manifest) -> dict[str, Any]:
    summary = manifest.summary
    return {
        "address": str(manifest.ref),
        "run": manifest.run_id,
        "state": "succeeded",
        "message": None,
        "total": manifest.counts["input"],
        "left_s": 0.0,
        **{key: summary.get(key, 0) for key in ("rows", "resumed", *_STATUSES)},
        **{key: summary.get(key, 0) for key in ("prompt_tokens", "completion_tokens", "seconds")},
        **{key: summary.get(key) for key in ("model", "engine", "engine_reason", "cost")},
        "first_errors": summary.get("first_errors", []),
    }


def _unfinished(run: RunRecord, artifacts: ArtifactStore) -> dict[str, Any]:
    """Of a run that is at work, or that ended without an artifact; its figures are seconds old."""

    def read(name: str) -> dict[str, Any]:
        try:
            found = artifacts.store.get(f"{run.artifact}/attempts/{run.id}{ROWS}/{name}")
        except NotFoundError:
            return {}
        return dict(json.loads(found))

    plan, progress = read(PLAN), read(PROGRESS)
    return {
        "address": str(run.artifact),
        "run": run.id,
        "state": run.state.value,
        "message": run.message,
        "total": plan.get("rows", 0),
        "left_s": progress.get("left_s"),
        **{key: progress.get(key, 0) for key in ("rows", "resumed", *_STATUSES)},
        **{key: progress.get(key, 0) for key in ("prompt_tokens", "completion_tokens", "seconds")},
        **{key: plan.get(key) for key in ("model", "engine", "engine_reason")},
        "cost": None,
        "estimate": plan.get("estimate"),
        "first_errors": [],
    }
