"""Who may be asked at the same time: rows under which the engine died are kept apart from the others."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager


class Lanes:
    """Rows of one lane at a time, at most as many as the lane is wide; higher lanes go first.

    :param widths: rows at a time, by lane.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        self._widths = list(widths)
        self._waiting: list[deque[asyncio.Future[None]]] = [deque() for _ in widths]
        self._lane = self._running = 0

    @asynccontextmanager
    async def enter(self, lane: int) -> AsyncIterator[None]:
        """Wait for a place in the lane, and hold it."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[lane].append(turn)
        self._admit()
        await turn
        try:
            yield
        finally:
            self._running -= 1
            self._admit()

    def _admit(self) -> None:
        for lane in reversed(range(len(self._widths))):
            waiting = self._waiting[lane]
            if not waiting:
                continue
            if self._running and lane != self._lane:
                return  # Those in flight end first: who may have killed the engine shall not meet them.
            self._lane = lane
            while waiting and self._running < self._widths[lane]:
                turn = waiting.popleft()
                if not turn.done():
                    self._running += 1
                    turn.set_result(None)
            return
