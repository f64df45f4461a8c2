"""Whether work grows with its input alone: by CPU time, to which neither a pause nor another process adds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

#: So many times the input takes so many times as long, and caches and the like add to that; were the work
#: quadratic, it would take the square.
_TIMES, _MOST = 32, 200
#: Seconds below which nothing is told apart.
_LEAST_S = 0.02


def assert_linear(work: Callable[[int], object], size: int) -> None:
    """``work`` of ``size``, whatever that counts, is not quadratic."""

    async def awaited(of: int) -> None:
        await asyncio.to_thread(work, of)

    asyncio.run(assert_linear_async(awaited, size))


async def assert_linear_async(work: Callable[[int], Awaitable[object]], size: int) -> None:
    """The same of what is awaited."""
    part = size // _TIMES
    await work(part)  # What is compiled or loaded once is not counted.
    small = max(await _cpu_s(work, part), _LEAST_S)
    large = await _cpu_s(work, size)
    if large > _MOST * small:  # Once more: CPU time has its chances too, if smaller ones.
        large = min(large, await _cpu_s(work, size))
    assert large <= _MOST * small, f"{large:.2f} s of {size}, {small:.2f} s of {part}"


async def _cpu_s(work: Callable[[int], Awaitable[object]], size: int) -> float:
    began = time.process_time()
    await work(size)
    return time.process_time() - began
