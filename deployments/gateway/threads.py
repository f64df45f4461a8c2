"""What waits for SQL or storage runs in threads, and fails as an API does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from cluster.errors import MantaError, NotFoundError, RefusedError, UnreadableError
from deployments.gateway.errors import ApiError

_P = ParamSpec("_P")
_T = TypeVar("_T")
#: Not asyncio's own, which is small: the look for revoked keys and the budgets' settling wait there, and must
#: not queue behind clients who wait for a database or a storage that is slow.
_THREADS = ThreadPoolExecutor(16, thread_name_prefix="doors")


async def waited(work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run ``work`` in a thread that clients and batches may keep busy."""
    call = partial(work, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_THREADS, call)


async def in_thread(work: Callable[[], _T], *, refused: tuple[int, str] = (400, "invalid_request")) -> _T:
    """Run ``work`` in a thread.

    :param refused: status and code of what is refused.

    Raises ApiError: 404 for what is not there, 503 for what does not answer or cannot be read here.
    """
    try:
        return await waited(work)
    except NotFoundError as error:
        raise ApiError(404, str(error), code="not_found") from None
    except UnreadableError as error:  # A gateway of the release that wrote it can.
        raise ApiError(503, str(error), kind="server_error", code="unreadable_record") from None
    except RefusedError as error:
        raise ApiError(refused[0], str(error), code=refused[1]) from None
    except MantaError:
        raise ApiError(
            503, "This is not available now; please try again.", kind="server_error", retry_after_s=5
        ) from None
