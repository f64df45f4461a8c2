"""Sentences: what packaged validators judge at a time, if not the whole text.

Where a sentence ends depends on what stands before it and on one character behind it, never on how a
stream was cut: so packaged validators, too, say the same of a stream and of a complete text.
"""

from __future__ import annotations

import re

from validation.guards.scan import Window

#: Characters of the view after which a sentence is cut, wherever it stands.
MAX_SENTENCE = 1_000
_END = re.compile(r"\n|[.!?](?=\s)")


class UnitCursor:
    """Cuts one text into sentences."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        #: View position at which the current sentence begins.
        self.done = 0

    def advance(self, window: Window, final: bool) -> list[tuple[int, int]]:
        """Complete units as (start, end) in code points of the original; blank ones are left out."""
        units: list[tuple[int, int]] = []
        while (end := self._end(window, final)) is not None:
            text = window.text[self.done - window.base : end - window.base]
            if text.strip():
                units.append((window.original(self.done), window.original(end)))
            self.done = end
        return units

    def _end(self, window: Window, final: bool) -> int | None:
        start = self.done - window.base
        size = len(window.text)
        if start >= size:
            return None
        found = _END.search(window.text, start)
        if found and found.end() - start <= MAX_SENTENCE:
            return window.base + found.end()
        # One character more must be known, or a full stop at the very limit would be judged too early.
        if size - start > MAX_SENTENCE:
            return self.done + MAX_SENTENCE
        return window.end if final else None
