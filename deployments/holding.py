"""Work under a lease: what workers of batches and of fine-tuning jobs do alike."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from cluster.errors import AccessError, MantaError, RefusedError, UnavailableError

logger = logging.getLogger("ray.serve")


async def hold(
    what: str,
    work: Coroutine[Any, Any, None],
    renew: Callable[[], Awaitable[None]],
    every_s: float,
    release: Callable[[], None],
) -> None:
    """Do ``work`` and keep its lease, whatever it waits for; nothing that happens to it ends the worker.

    :param what: which work it is, for the log.
    :param renew: raises RefusedError once another holds it.
    :param every_s: seconds between renewals.
    :param release: lets another take it at once; asked if the worker ends before the work.
    """
    try:
        async with asyncio.TaskGroup() as group:
            beat = group.create_task(_beat(what, renew, every_s))
            await work
            beat.cancel()
    except* RefusedError as refused:
        logger.warning("%s is left: %s", what, refused.exceptions[0])
    except* (UnavailableError, AccessError) as away:
        # Its lease runs out, and it is taken up again.
        logger.warning("%s waits: %s", what, away.exceptions[0])
    except* Exception:
        logger.exception("%s failed here and is taken up again", what)
    finally:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            with contextlib.suppress(MantaError):
                release()


async def _beat(what: str, renew: Callable[[], Awaitable[None]], every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        try:
            await renew()
        except UnavailableError as error:
            logger.warning("The lease of %s waits: %s", what, error)
