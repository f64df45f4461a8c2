"""Whether work grows with its input alone: by CPU time, to which neither a pause nor another process adds."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

#: So many times the input takes so many times as long at most: quadratic work would take their square.
_TIMES, _MOST = 8, 24
#: Seconds below which nothing is told apart.
_LEAST_S = 0.02


def assert_linear(work: Callable[[int], object], size: int) -> None:
    """``work`` of ``size``, whatever that counts, is not quadratic."""
    work(size // _TIMES)  # What is compiled or loaded once is not counted.
    small, large = _cpu_s(lambda: work(size // _TIMES)), _cpu_s(lambda: work(size))
    assert large < _MOST * max(small, _LEAST_S), f"{large:.2f} s of {size}, {small:.2f} s of an eighth"


async def assert_linear_async(work: Callable[[int], Awaitable[object]], size: int) -> None:
    """The same of what is awaited."""
    await work(size // _TIMES)
    took = []
    for of in (size // _TIMES, size):
        began = time.process_time()
        await work(of)
        took.append(time.process_time() - began)
    small, large = took
    assert large < _MOST * max(small, _LEAST_S), f"{large:.2f} s of {size}, {small:.2f} s of an eighth"


def _cpu_s(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
