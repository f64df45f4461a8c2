"""How far a batch is, said every few seconds."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any


class Progress:
    """Counts stored rows and says so at most every ``every_s`` seconds."""

    def __init__(self, total: int, say: Callable[[str], None], every_s: float) -> None:
        self.total, self.counts = total, Counter[str]()
        self.prompt_tokens = self.completion_tokens = 0
        self._say, self._every_s = say, every_s
        self._started = self._said = time.monotonic()
        #: Seconds until the engine took its first row: a dedicated one starts first.
        self.start_s: float | None = None

    @property
    def rows(self) -> int:
        """Rows stored so far."""
        return self.counts.total()

    @property
    def seconds(self) -> float:
        """Seconds since the engine was asked, its own start included."""
        return time.monotonic() - self._started

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one stored row."""
        now = time.monotonic()
        if self.start_s is None and row["seconds"] > 0:
            self.start_s = max(0.0, now - self._started - row["seconds"])
        self.counts[row["status"]] += 1
        self.prompt_tokens += row["prompt_tokens"]
        self.completion_tokens += row["completion_tokens"]
        if now - self._said >= self._every_s or self.rows == self.total:
            self._said = now
            self._say(self.line())

    def line(self) -> str:
        """Rows, what became of them, tokens a second, time left."""
        parts = ", ".join(f"{count} {status}" for status, count in sorted(self.counts.items()))
        rate = f"{self.completion_tokens / max(self.seconds, 1e-9):.0f} tokens/s"
        left = (self.total - self.rows) * self.seconds / max(self.rows, 1)
        ending = f"about {_clock(left)} left" if self.rows < self.total else f"in {_clock(self.seconds)}"
        return f"{self.rows}/{self.total} rows ({parts}), {rate}, {ending}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
