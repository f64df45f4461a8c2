"""The view that guards judge: what a reader (or a model) would take a text for.

Each code point is folded on its own: compatibility decomposition (NFKD), diacritics and invisible
characters dropped, digits, dashes and spaces unified, a few Latin look-alikes mapped, characters of the
tag block (text hidden from people, not from models) shown as ASCII. Folding never looks at neighbours:
so the view of a stream is the same however it is cut, which composition (NFKC) would not give.

What a text hides in encodings or by its spacing needs its neighbours: see :mod:`validation.guards.disguise`.

A :class:`View` keeps, for each of its characters, which code points of the original it stands for.
Findings are always told in those.

With ``json_escapes`` (tool-call arguments), ``\\u0040`` and its like are judged as what they mean.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

_PLAIN = re.compile(r"[\t\n\r\x20-\x7e]*+\Z")
_DIACRITICS = ((0x300, 0x36F), (0x1AB0, 0x1AFF), (0x1DC0, 0x1DFF), (0x20D0, 0x20FF), (0xFE20, 0xFE2F))
_VARIATION = ((0xFE00, 0xFE0F), (0xE0100, 0xE01EF), (0x180B, 0x180F))
_FILLERS = frozenset("\u115f\u1160\u3164\uffa0")
_LOOKALIKES = str.maketrans(
    # Cyrillic
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u04bb\u0501\u051b\u051d"
    "\u043a\u04cf\u0475\u0461\u04bd\u04af"
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425\u0406\u0408\u0405"
    # Greek
    "\u03bf\u03b1\u03bd\u03c1\u03b9\u03ba\u03c4\u03c5\u03c7\u03b3\u03f2\u03b5"
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7"
    # Armenian
    "\u0585\u057d\u0570\u0578\u0581"
    # Latin letters of other alphabets, with a stroke or a hook
    "\u0131\u0261\u0251\u0192\u0142\u00f8\u0111\u0127\u0167\u0180\u0253\u0257\u025b\u0269"
    # Small capitals
    "\u1d00\u0299\u1d04\u1d05\u1d07\ua730\u0262\u029c\u026a\u1d0a\u1d0b\u029f\u1d0d\u0274"
    "\u1d0f\u1d18\u0280\ua731\u1d1b\u1d1c\u1d20\u1d21\u028f\u1d22"
    # The ideographic full stop
    "\u3002",
    "aeopcyxijshdqw" + "klvwey" + "ABEKMHOPCTYXIJS" + "oavpiktuxyce" + "ABEZHIKMNOPTYX"
    "ouhng" + "igaflodhtbbdei" + "abcdefghijklmnoprstuvwyz" + ".",
)
#: Letters in dark circles and squares and of flags, which have no compatibility decomposition: their As.
_ENCLOSED = (0x1F150, 0x1F170, 0x1F1E6)
_ESCAPE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\[\"\\/bfnrt]|[^\\]++|\\"
)
#: The beginning of an escape at the end of what has come so far.
_HALF_ESCAPE = re.compile(
    r"\\(?:u(?:[0-9a-fA-F]{0,3}|[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u[0-9a-fA-F]{0,3})?)?))?\Z"
)
_LONGEST_HALF = 11
_SHORT = {"b": " ", "f": "\n", "n": "\n", "r": "\n", "t": "\t"}


def _within(code: int, ranges: Sequence[tuple[int, int]]) -> bool:
    return any(first <= code <= last for first, last in ranges)


@lru_cache(maxsize=65_536)
def fold(char: str) -> str:
    """The view of one code point: none, one or several characters."""
    code = ord(char)
    if 0xE0020 <= code <= 0xE007E:
        return chr(code - 0xE0000)
    for first in _ENCLOSED:
        if first <= code < first + 26:
            return chr(code - first + ord("A"))
    return "".join(map(_fold_one, unicodedata.normalize("NFKD", char)))


def _fold_one(char: str) -> str:
    code, category = ord(char), unicodedata.category(char)
    if category == "Cf" or char in _FILLERS or _within(code, _DIACRITICS) or _within(code, _VARIATION):
        return ""
    if category == "Cc":
        return char if char.isspace() else ""
    if category == "Nd":
        return str(unicodedata.digit(char))
    if category == "Pd" or char == "\u2212":
        return "-"
    if category == "Zs" or char == "\u2800":
        return " "
    return char.translate(_LOOKALIKES)


@lru_cache(maxsize=65_536)
def _lower(char: str) -> str:
    lowered = char.lower()
    return lowered if len(lowered) == 1 else char


def lower(view: str) -> str:
    """Lower case, character by character: as long as ``view``, and blind to context (final sigma)."""
    return view.lower() if view.isascii() else "".join(map(_lower, view))


@dataclass(slots=True)
class View:
    """A folded text and where its characters come from.

    ``starts[i]`` and ``ends[i]`` are the code points of the original that view character ``i`` stands
    for; ``size`` is how many code points of the original have been read.
    """

    text: str
    starts: Sequence[int]
    ends: Sequence[int]
    size: int


class Normaliser:
    """Folds a text that comes in pieces; the concatenated views do not depend on how it is cut."""

    def __init__(self, json_escapes: bool = False) -> None:
        self._json = json_escapes
        self._half = ""
        self._read = 0

    def feed(self, text: str) -> View:
        """The view of what ``text`` completes, in offsets from the beginning of the stream."""
        if self._json:
            text = self._half + text
            whole = _unfinished(text)
            self._half, text = text[whole:], text[:whole]
        return self._fold(text)

    def finish(self) -> View:
        """The view of an escape that never became complete: its characters as they stand."""
        text, self._half = self._half, ""
        return self._fold(text)

    def _fold(self, text: str) -> View:
        first = self._read
        self._read = last = first + len(text)
        if _PLAIN.match(text) and not (self._json and "\\" in text):
            return View(text, range(first, last), range(first + 1, last + 1), last)
        parts: list[str] = []
        starts: list[int] = []
        ends: list[int] = []
        for char, start, end in _unescape(text) if self._json else _points(text):
            folded = fold(char)
            parts.append(folded)
            starts.extend([first + start] * len(folded))
            ends.extend([first + end] * len(folded))
        return View("".join(parts), starts, ends, last)


def normalise(text: str, json_escapes: bool = False) -> View:
    """The view of a complete text."""
    normaliser = Normaliser(json_escapes)
    view = normaliser.feed(text)
    rest = normaliser.finish()
    if not rest.text and rest.size == view.size:
        return view
    return View(view.text + rest.text, [*view.starts, *rest.starts], [*view.ends, *rest.ends], rest.size)


def _unfinished(text: str) -> int:
    """Where an escape begins that ``text`` does not complete; its length if none does."""
    half = _HALF_ESCAPE.search(text, max(0, len(text) - _LONGEST_HALF))
    while half:
        start = half.start()
        # A backslash behind an odd number of others is the second half of an escaped one.
        if (start - len(text[:start].rstrip("\\"))) % 2 == 0:
            return start
        half = _HALF_ESCAPE.search(text, start + 1)
    return len(text)


def _points(text: str) -> Iterator[tuple[str, int, int]]:
    for index, char in enumerate(text):
        yield char, index, index + 1


def _unescape(text: str) -> Iterator[tuple[str, int, int]]:
    for token in _ESCAPE.finditer(text):
        body, start, end = token[0], token.start(), token.end()
        if body[0] != "\\" or body == "\\":
            for index, char in enumerate(body):
                yield char, start + index, start + index + 1
        elif body[1] == "u":
            yield _code_point(body), start, end
        else:
            yield _SHORT.get(body[1], body[1]), start, end


def _code_point(escape: str) -> str:
    high = int(escape[2:6], 16)
    if len(escape) == 6:
        return chr(high)
    return chr(0x10000 + ((high - 0xD800) << 10) + (int(escape[8:12], 16) - 0xDC00))
