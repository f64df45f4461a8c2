"""How far a batch is, said every few seconds."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any


class Progress:
    """Counts answered rows and says so at most every ``every_s`` seconds.

    :param total: rows of the batch.
    :param resumed: how many of them an earlier attempt answered; rates are of this one's alone.
    :param before_s: seconds of the batch's work until now.
    """

    def __init__(
        self,
        total: int,
        say: Callable[[str], None],
        every_s: float,
        resumed: int = 0,
        before_s: float = 0.0,
    ) -> None:
        self.total, self.resumed, self.counts = total, resumed, Counter[str]()
        self.prompt_tokens = self.completion_tokens = 0
        self._say, self._every_s = say, every_s
        self._started = self._said = time.monotonic()
        #: Seconds until the engine took its first row: a dedicated one starts first.
        self.start_s: float | None = None
        #: Seconds from the start of the batch's work to its first answer.
        self.first_row_s: float | None = None
        #: Seconds since the engine was asked, until the last row so far.
        self.answered_s = 0.0
        self._before_s = before_s

    @property
    def asked(self) -> int:
        """Rows answered by this run."""
        return self.counts.total()

    @property
    def rows(self) -> int:
        """Rows that have an answer so far."""
        return self.resumed + self.asked

    @property
    def seconds(self) -> float:
        """Seconds since the engine was asked, its own start included."""
        return time.monotonic() - self._started

    @property
    def left_s(self) -> float | None:
        """Seconds to the end at the rate so far, the engine's start left out; None before the first row."""
        if not self.asked:
            return None
        return (self.total - self.rows) * (self.seconds - (self.start_s or 0.0)) / self.asked

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one answered row."""
        now = time.monotonic()
        if self.start_s is None and row["seconds"] > 0:
            self.start_s = max(0.0, now - self._started - row["seconds"])
        self.answered_s = now - self._started
        if self.first_row_s is None and row["status"] == "succeeded":
            self.first_row_s = self._before_s + self.answered_s
        self.counts[row["status"]] += 1
        self.prompt_tokens += row["prompt_tokens"]
        self.completion_tokens += row["completion_tokens"]
        if now - self._said >= self._every_s or self.rows == self.total:
            self._said = now
            self._say(self.line())

    def line(self) -> str:
        """Rows, what became of them, rows and tokens a second, time left."""
        parts = ", ".join(f"{count} {status}" for status, count in sorted(self.counts.items()))
        if self.resumed:
            parts = f"{self.resumed} from before, {parts}"
        seconds = max(self.seconds, 1e-9)
        rates = f"{self.asked / seconds:.1f} rows/s, {self.completion_tokens / seconds:.0f} tokens/s"
        left = f"about {clock(self.left_s or 0.0)} left" if self.rows < self.total else f"in {clock(seconds)}"
        return f"{self.rows}/{self.total} rows ({parts}), {rates}, {left}"

    def figures(self) -> dict[str, Any]:
        """The same as JSON values; seconds, and tokens of this run."""
        return {
            "rows": self.rows,
            "total": self.total,
            "resumed": self.resumed,
            **{status: self.counts[status] for status in ("succeeded", "blocked", "failed")},
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "seconds": round(self.seconds, 3),
            "left_s": None if self.left_s is None else round(self.left_s, 1),
        }


def clock(seconds: float) -> str:
    """Seconds as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
