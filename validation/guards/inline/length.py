"""A limit to the length of a text, counted in code points of the original."""

from __future__ import annotations

from validation.guards.scan import Hit, Readings, Window


class LengthCursor:
    """Counts one text; the finding is the first code point over the limit."""

    __slots__ = ("_limit", "_told", "done")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._told = False
        self.done = 0

    def advance(self, window: Window, final: bool) -> list[Hit]:
        """See :class:`~validation.guards.scan.Cursor`."""
        self.done = window.end
        if self._told or window.size <= self._limit:
            return []
        self._told = True
        return [Hit("TOO_LONG", 1.0, self._limit, self._limit + 1)]


class LengthGuard:
    """The guard of policy kind ``length``."""

    longest = 0
    readings: Readings = "none"

    def __init__(self, max_characters: int) -> None:
        self._limit = max_characters

    def cursor(self) -> LengthCursor:
        """Begin to count a text."""
        return LengthCursor(self._limit)
