"""Topics by key phrases that stand near one another. It counts phrases and understands nothing.

A topic is found where enough *different* phrases of its list stand within :data:`SPAN` characters; each
text tells each topic once. A finding is the phrase that made it a topic: those before it have left a stream
already. It is no part that could be cut out: the policy may block or flag.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from validation.guards.inline.ban_list import list_scanner
from validation.guards.scan import Hit, Readings, Scanner, ScannerCursor, Window

#: Characters of the original within which phrases add up.
SPAN = 2_000


class TopicsCursor:
    """Counts the phrases of one text from left to right."""

    __slots__ = ("_at_least", "_last", "_scanner", "_told")

    def __init__(self, scanner: Scanner, at_least: int) -> None:
        self._scanner = ScannerCursor(scanner)
        self._at_least = at_least
        #: By topic and phrase where it stood last.
        self._last: dict[str, dict[str, Hit]] = {}
        self._told: set[str] = set()

    @property
    def done(self) -> int:
        """See :class:`~validation.guards.scan.Cursor`."""
        return self._scanner.done

    def advance(self, window: Window, final: bool) -> list[Hit]:
        """See :class:`~validation.guards.scan.Cursor`."""
        found = [hit for _, hit in self._scanner.advance(window, final)]
        hits: list[Hit] = []
        for hit in sorted(found, key=lambda item: (item.start, item.end, item.label)):
            topic, _, phrase = hit.label.partition(" ")
            if topic in self._told:
                continue
            seen = self._last.setdefault(topic, {})
            seen[phrase] = hit
            near = [past for past in seen.values() if hit.start - past.start <= SPAN]
            if len(near) >= self._at_least:
                self._told.add(topic)
                hits.append(Hit(topic, 1.0, hit.start, hit.end))
        return hits


class TopicsGuard:
    """The guard of policy kind ``topics``."""

    readings: Readings = "words"

    def __init__(self, topics: Mapping[str, Sequence[str]], at_least: int) -> None:
        # Each phrase has a pattern of its own, so that a match tells which it was.
        self._scanner = list_scanner(
            {
                f"{_label(topic)} {number}": [phrase]
                for topic, phrases in topics.items()
                for number, phrase in enumerate(dict.fromkeys(phrases))
            }
        )
        self._at_least = at_least
        self.longest = self._scanner.longest

    def cursor(self) -> TopicsCursor:
        """Begin to read a text."""
        return TopicsCursor(self._scanner, self._at_least)


def _label(topic: str) -> str:
    return f"TOPIC_{re.sub('[^A-Z0-9]', '_', topic.upper())}"
