"""Gathering of stream items: fewer, larger messages, without delaying what comes slowly."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator


async def gather(source: AsyncIterator[bytes], interval_s: float) -> AsyncGenerator[bytes, None]:
    """Join items of ``source`` so that at most one item leaves every ``interval_s`` seconds.

    The first item is passed on at once, and so is every item that comes after a pause of ``interval_s``:
    a slow stream is never delayed, a fast one costs a bounded number of messages a second. Closing this
    generator stops the reading of ``source`` and closes it, which is what aborts a generation in the
    engine. What ``source`` raises is raised here, after everything before it was passed on. With
    ``interval_s`` 0 items are passed on as they come.
    """
    waiting: list[bytes] = []
    arrived = asyncio.Event()

    async def read() -> None:
        try:
            async for item in source:
                waiting.append(item)
                arrived.set()
        finally:
            arrived.set()

    reader = asyncio.create_task(read())
    left_at = -interval_s
    try:
        while True:
            await arrived.wait()
            early = left_at + interval_s - time.monotonic()
            if early > 0:
                await asyncio.wait({reader}, timeout=early)
            finished = reader.done()
            arrived.clear()
            if waiting:
                joined = b"".join(waiting)
                waiting.clear()
                left_at = time.monotonic()
                yield joined
            if finished:
                reader.result()
                return
            if reader.done():
                arrived.set()  # It ended while the consumer was busy: nobody else wakes this loop.
    finally:
        reader.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await reader
        if (close := getattr(source, "aclose", None)) is not None:
            await close()
