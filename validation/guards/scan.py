"""How our own guards read: by patterns over a window of the view, the same way for a text and a stream.

A text is read by a *cursor*. :meth:`Cursor.advance` gets the window (what is not yet settled, and what
came since) and returns the findings whose start it has settled; ``done`` is the view position before
which nothing can change any more, whatever comes. A complete text is one window with ``final=True``: so
a stream and a complete text cannot be judged differently as long as ``done`` tells the truth.

What makes it tell the truth is each scanner's ``undecided`` pattern: it matches at every position from
which what stands there up to the end of the window could still become, or still grow as, a match. The
first such position is how far the text is settled. ``longest`` bounds it: no match, with all that its
pattern looks at, is longer, so a position further back than that is settled anyway.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from validation.guards.normalise import View, lower

#: Which further readings of a text (:mod:`validation.guards.disguise`) a guard judges: none of them, those
#: that show what was meant letter for letter, or also those in which only words are right.
Readings = Literal["none", "exact", "words"]
#: View characters that stay in a window behind ``done``, for patterns that look behind themselves.
CONTEXT = 8


@dataclass(frozen=True, slots=True)
class Hit:
    """What a guard saw, in code points of the original, from the beginning of the text or stream."""

    label: str
    score: float
    start: int
    end: int


class Window:
    """The part of a view that is still needed, with the offsets of the original."""

    __slots__ = ("base", "ends", "folded", "size", "starts", "text")

    def __init__(self) -> None:
        self.base = 0
        self.text = ""
        self.folded = ""
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.size = 0

    @classmethod
    def of(cls, view: View) -> Window:
        """A window over a complete text."""
        window = cls()
        window.extend(view)
        return window

    def extend(self, view: View) -> None:
        """Append what came."""
        self.text += view.text
        self.folded += lower(view.text)
        self.starts.extend(view.starts)
        self.ends.extend(view.ends)
        self.size = view.size

    def trim(self, done: int) -> None:
        """Forget what lies before the view position ``done``, but for some context."""
        excess = done - CONTEXT - self.base
        if excess > 0:
            self.base += excess
            self.text = self.text[excess:]
            self.folded = self.folded[excess:]
            del self.starts[:excess]
            del self.ends[:excess]

    @property
    def end(self) -> int:
        """The view position behind the last character."""
        return self.base + len(self.text)

    def original(self, position: int) -> int:
        """The code point of the original at which view position ``position`` begins."""
        index = position - self.base
        return self.starts[index] if index < len(self.starts) else self.size

    def hit(self, label: str, score: float, start: int, end: int) -> Hit:
        """A hit from indices into :attr:`text`."""
        return Hit(label, score, self.starts[start], self.ends[end - 1])


class Cursor(Protocol):
    """One guard reading one text."""

    @property
    def done(self) -> int:
        """The view position before which nothing can change any more."""
        ...

    def advance(self, window: Window, final: bool) -> Iterable[Hit]:
        """Settle what can be settled; with ``final``, everything."""
        ...


class InlineGuard(Protocol):
    """A guard of ours: cheap enough for the gateway's own process.

    ``longest`` is the longest span in view characters that it can match, 0 if it does not match spans.
    """

    longest: int
    readings: Readings

    def cursor(self) -> Cursor:
        """Begin to read a text."""
        ...


@dataclass(frozen=True, slots=True)
class Pattern:
    """One form of one label.

    Of a match, ``group`` is what is found: what stands before it (a name that a value was given) stays.
    ``accept`` may refuse a match (None) or shorten it (its end): checksums live there. It must not look
    at anything but the match and the ``longest`` characters from its start.
    """

    label: str
    score: float
    regex: re.Pattern[str]
    accept: Callable[[re.Match[str]], int | None] | None = None
    group: int = 0


@dataclass(frozen=True, slots=True)
class Scanner:
    """Patterns that share what they may look like while incomplete."""

    patterns: tuple[Pattern, ...]
    #: See the module: every position from which a match could still begin or change.
    undecided: re.Pattern[str] | None
    #: Longest match of any pattern, look-ahead included, in view characters.
    longest: int
    #: What a text must hold for any of the patterns to match; spares the patterns most texts.
    gate: re.Pattern[str]
    #: Whether it reads the lower-case view.
    folded: bool = False


@dataclass(slots=True)
class ScannerCursor:
    """One scanner reading one text."""

    scanner: Scanner
    done: int = 0
    #: Per pattern, where its last match ended: two matches of one pattern never overlap.
    last: list[int] = field(default_factory=list)

    def advance(self, window: Window, final: bool) -> list[tuple[int, Hit]]:
        """Settled hits with the index of their pattern."""
        scanner = self.scanner
        text = window.folded if scanner.folded else window.text
        base = window.base
        start = self.done - base
        stop = len(text)
        if not final:
            floor = stop - scanner.longest
            if floor < start:
                floor = start
            if scanner.undecided is None:
                stop = floor
            elif first := scanner.undecided.search(text, floor):
                stop = first.start()
        if stop <= start:
            return []
        self.done = base + stop
        if not scanner.gate.search(text, start):
            return []
        return self._find(window, text, start, stop)

    def _find(self, window: Window, text: str, start: int, stop: int) -> list[tuple[int, Hit]]:
        hits: list[tuple[int, Hit]] = []
        if not self.last:
            self.last = [0] * len(self.scanner.patterns)
        for index, pattern in enumerate(self.scanner.patterns):
            position = max(start, self.last[index] - window.base)
            while match := _first(pattern.regex, text, position, stop):
                end = pattern.accept(match) if pattern.accept else match.end(pattern.group)
                if end is None:
                    position = match.start() + 1
                    continue
                first = match.start(pattern.group)
                hits.append((index, window.hit(pattern.label, pattern.score, first, end)))
                position = end
                self.last[index] = window.base + end
        return hits


def _first(regex: re.Pattern[str], text: str, start: int, stop: int) -> re.Match[str] | None:
    """The first match that starts in [start, stop), without reading all of a long rest for it."""
    if len(text) - stop <= 8 * (stop - start) + 64:
        match = regex.search(text, start) if start < stop else None
        return match if match and match.start() < stop else None
    return next((match for at in range(start, stop) if (match := regex.match(text, at))), None)


class PatternCursor:
    """A guard made of scanners, reading one text."""

    __slots__ = ("_cursors", "done")

    def __init__(self, scanners: Sequence[Scanner]) -> None:
        self._cursors = [ScannerCursor(scanner) for scanner in scanners]
        self.done = 0

    def advance(self, window: Window, final: bool) -> list[Hit]:
        """See :class:`Cursor`."""
        hits: list[Hit] = []
        done = window.end
        for cursor in self._cursors:
            found = cursor.advance(window, final)
            if found:
                hits.extend(hit for _, hit in found)
            if cursor.done < done:
                done = cursor.done
        self.done = done
        return hits


class PatternGuard:
    """An inline guard made of scanners."""

    def __init__(self, scanners: Sequence[Scanner], readings: Readings = "exact") -> None:
        self.scanners = tuple(scanners)
        self.readings = readings
        self.longest = max(scanner.longest for scanner in scanners)

    def cursor(self) -> PatternCursor:
        """Begin to read a text."""
        return PatternCursor(self.scanners)


def chain(*atoms: str) -> str:
    """A pattern for any beginning of ``atoms`` that reaches the end of the text, the last one complete.

    ``chain("a", "b", "c*+\\\\Z")`` matches a trailing "a", "ab" and "abccc".
    """
    pattern = atoms[-1]
    for atom in reversed(atoms[:-1]):
        pattern = f"{atom}(?:\\Z|{pattern})"
    return pattern


Trie = dict[str, "Trie"]


def trie(words: Iterable[Sequence[str]]) -> Trie:
    """The words, as sequences of patterns of one step each, merged by their beginnings; "" ends a word."""
    root: Trie = {}
    for word in words:
        node = root
        for atom in word:
            node = node.setdefault(atom, {})
        node[""] = {}
    return root


def trie_pattern(node: Trie, then: str = "", unfinished: bool = False) -> str:
    """A pattern for the words of a trie, the longest first, each followed by ``then``.

    With ``unfinished`` it also matches a beginning of a word that reaches the end of the text.
    """
    # What only looks ahead ends a word: it comes last, or a longer word would never be tried.
    order = sorted((atom.startswith("(?"), atom) for atom in node if atom)
    branches = [atom + trie_pattern(node[atom], then, unfinished) for _, atom in order]
    if unfinished:
        branches.insert(0, r"\Z")
    if "" in node:
        branches.append(then)
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
