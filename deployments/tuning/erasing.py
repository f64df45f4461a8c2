"""What a deleted model, or a job that failed or was cancelled, leaves behind is taken away by a Ray job: a
registry is nothing for a worker here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from cluster.contracts.tuning import TuningRecord
from cluster.errors import RefusedError
from cluster.job.submit import ENDED
from cluster.storage import ArtifactStore, ObjectStore
from cluster.storage.attempt import MANIFEST
from deployments.gateway.args import TuningArgs
from deployments.tuning.trainings import Trainings


def is_left(record: TuningRecord, store: ObjectStore) -> bool:
    """Whether a version or an adapter may be there: both are made of a checkpoint that is whole.

    Of a job whose training has ended: what still runs may make one later.
    """
    refs = ArtifactStore(store).refs(record.team, "checkpoint", record.id)
    return any(store.exists(f"{ref}/{MANIFEST}") for ref in refs)


async def end(
    record: TuningRecord,
    trainings: Trainings,
    args: TuningArgs,
    asked: Callable[[Callable[[], Any]], Awaitable[Any]],
) -> None:
    """Stop its training, and wait until it has ended: only then nothing more comes of it.

    :param asked: what waits for a cluster that is away.
    """
    while True:
        await asked(partial(trainings.stop, record.submission_id))
        outcome = await asked(partial(trainings.outcome, record.submission_id))
        if outcome is None or outcome.status in ENDED:
            return
        await asyncio.sleep(args.poll_s)


async def erase(
    record: TuningRecord,
    trainings: Trainings,
    args: TuningArgs,
    asked: Callable[[Callable[[], Any]], Awaitable[Any]],
) -> str | None:
    """Submit ``jobs.retire``, or find it submitted, and follow it; why it could not be done, None if it was.

    :param asked: what waits for a cluster that is away.
    """
    why = ""
    for attempt in range(1, args.attempts + 1):
        submission_id = f"retire-{record.id}-{attempt}"
        while True:
            outcome = await asked(partial(trainings.outcome, submission_id))
            if outcome is not None and outcome.status in ENDED:
                break
            if outcome is None:
                try:
                    await asked(partial(trainings.retire, record, submission_id))
                except RefusedError as refused:
                    return str(refused)
            await asyncio.sleep(args.poll_s)
        if outcome.status == "SUCCEEDED":
            return None
        why = outcome.message or "It ended without a result."
    return why
