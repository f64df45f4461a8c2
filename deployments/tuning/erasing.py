"""What a deleted model leaves behind is taken away by a Ray job: a registry is nothing for a worker here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from cluster.contracts.tuning import TuningRecord
from cluster.errors import RefusedError
from deployments.gateway.args import TuningArgs
from deployments.tuning.trainings import Trainings

_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


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
            if outcome is not None and outcome.status in _ENDED:
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
