"""Users' own patterns, by RE2: linear time, whatever the pattern and the text.

The text is read in blocks at fixed places, each with the one behind it, and a match belongs to the block in
which it begins. So what is found does not depend on how a stream is cut; a match of up to ``longest``
characters is found wherever it stands, and a longer one may be found in part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from validation.guards.scan import CONTEXT, Hit, Readings, Window

#: Bytes that RE2 may take for one pattern and its states.
_MEMORY = 8 << 20
#: Characters of a pattern that a message shows.
_SHOWN = 60


def compiled(pattern: str, ignore_case: bool) -> Any:
    """The pattern, compiled by RE2.

    Raises ValueError with a sentence for one that RE2 refuses, or that matches nothing at all.
    """
    try:
        import re2
    except ModuleNotFoundError:
        raise ValueError("kind regex needs google-re2; install manta-llm[platform]") from None

    options = re2.Options()
    options.max_mem = _MEMORY
    options.log_errors = False
    options.case_sensitive = not ignore_case
    shown = pattern if len(pattern) <= _SHOWN else f"{pattern[:_SHOWN]}..."
    try:
        regex = re2.compile(pattern, options=options)
        # "", "x*" and "^" match everywhere, and nothing.
        empty = regex.search("") is not None
    except re2.error as error:
        text = error.args[0].decode() if isinstance(error.args[0], bytes) else error.args[0]
        raise ValueError(f"the pattern {shown!r} is none of RE2's: {text}") from None
    if empty:
        raise ValueError(f"the pattern {shown!r} also matches an empty text")
    return regex


class RegexCursor:
    """One text, read block by block."""

    __slots__ = ("_block", "_label", "_last", "_patterns", "done")

    def __init__(self, patterns: Sequence[Any], label: str, block: int) -> None:
        self._patterns = patterns
        self._label = label
        self._block = block
        #: Per pattern, where its last match ended.
        self._last = [0] * len(patterns)
        self.done = 0

    def advance(self, window: Window, final: bool) -> list[Hit]:
        """See :class:`~validation.guards.scan.Cursor`."""
        hits: list[Hit] = []
        # One character behind the second block must be known: \b and $ look at it.
        while self.done + 2 * self._block < window.end or (final and self.done < window.end):
            for index in range(len(self._patterns)):
                hits.extend(self._read(index, window))
            self.done = min(self.done + self._block, window.end)
        return hits

    def _read(self, index: int, window: Window) -> list[Hit]:
        first = max(self.done, self._last[index])
        stop = self.done + self._block
        if first >= stop:
            return []
        # A piece of its own: RE2 encodes all that it is given.
        base = max(window.base, self.done - CONTEXT)
        piece = window.text[base - window.base : stop + self._block + 1 - window.base]
        end = min(stop + self._block - base, len(piece))
        hits = []
        for match in self._patterns[index].finditer(piece, first - base, end):
            start, after = base + match.start(), base + match.end()
            if start >= stop:
                break
            if after > start:
                hits.append(window.hit(self._label, 1.0, start - window.base, after - window.base))
                self._last[index] = after
        return hits


class RegexGuard:
    """The guard of policy kind ``regex``."""

    readings: Readings = "exact"

    def __init__(self, patterns: Sequence[str], label: str, ignore_case: bool, longest: int) -> None:
        """Compile. Raises ValueError for a pattern that RE2 refuses."""
        self._patterns = [compiled(pattern, ignore_case) for pattern in patterns]
        self._label = label
        self._block = longest
        self.longest = 2 * longest

    def cursor(self) -> RegexCursor:
        """Begin to read a text."""
        return RegexCursor(self._patterns, self._label, self._block)
