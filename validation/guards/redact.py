"""Cut findings out of a text: overlapping ones as one, each replaced by its label in brackets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from validation.guards.placeholders import Placeholders

_JSON_MARK = re.compile(r'[\\"]')


@dataclass(frozen=True, slots=True)
class Span:
    """A part of the original that must not go on."""

    start: int
    end: int
    label: str
    #: Whether it may be told to the client again.
    reversible: bool = False


def merge(spans: Iterable[Span]) -> list[Span]:
    """Overlapping spans as one, in order; the longest of them gives its label.

    One is reversible only if all in it are.
    """
    merged: list[Span] = []
    longest = 0
    for span in sorted(spans, key=lambda item: (item.start, -item.end, item.label)):
        if not merged or span.start >= merged[-1].end:
            merged.append(span)
            longest = span.end - span.start
            continue
        last = merged[-1]
        size = span.end - span.start
        label = span.label if size > longest else last.label
        longest = max(longest, size)
        both = last.reversible and span.reversible
        merged[-1] = Span(last.start, max(last.end, span.end), label, both)
    return merged


class Redactor:
    """Writes a text out, piece by piece and in order, with spans replaced.

    With ``json``, a span that does not stand in a string (a number, say) is replaced by a string, so
    that tool-call arguments stay JSON.
    """

    def __init__(self, json: bool = False, placeholders: Placeholders | None = None) -> None:
        """:param placeholders: what reversible spans are kept in; without it they are cut out for good."""
        self._json = json
        self._placeholders = placeholders
        self._in_string = False
        self._escaped = False

    def write(self, text: str, start: int, spans: Sequence[Span]) -> str:
        """``text``, which begins at code point ``start``, without ``spans`` (merged, and all within it)."""
        if not spans and not self._json:
            return text
        out: list[str] = []
        position = start
        for span in spans:
            out.append(self._read(text[position - start : span.start - start]))
            mark = self._mark(span, text[span.start - start : span.end - start])
            out.append(mark if self._in_string or not self._json else f'"{mark}"')
            self._read(text[span.start - start : span.end - start])
            position = span.end
        out.append(self._read(text[position - start :]))
        return "".join(out)

    def _mark(self, span: Span, original: str) -> str:
        if not span.reversible or self._placeholders is None:
            return f"[{span.label}]"
        return self._placeholders.issue(span.label, _meant(original) if self._json else original)

    def _read(self, raw: str) -> str:
        """Pass a piece of the original on, and keep track of JSON strings."""
        if not self._json or not raw:
            return raw
        skip = 1 if self._escaped else 0
        self._escaped = False
        while (mark := _JSON_MARK.search(raw, skip)) is not None:
            skip = mark.end()
            if mark[0] == '"':
                self._in_string = not self._in_string
                continue
            skip += 1
            if skip > len(raw):
                self._escaped = True
                break
        return raw


def _meant(raw: str) -> str:
    """What a part of a JSON text means: its escapes read."""
    try:
        return str(json.loads(f'"{raw}"'))
    except ValueError:  # It reaches over a string's end.
        return raw
