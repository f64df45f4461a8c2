"""Reversible redaction: the model sees ``<EMAIL_1>``, whoever sent the address gets it back in the answer.

The originals are in the memory of one request and nowhere else. Output guards judge what the model itself
says, placeholders and all; only what they let go is restored, and only placeholders that this request
issued: one that somebody made up stays as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

_ANY = re.compile(r"<[A-Z][A-Z_]*_[0-9]+>")
#: Names that models know, for labels that are long.
_NAMES = {
    "EMAIL_ADDRESS": "EMAIL",
    "PHONE_NUMBER": "PHONE",
    "CREDIT_CARD": "CARD",
    "IBAN_CODE": "IBAN",
    "US_SSN": "SSN",
    "IP_ADDRESS": "IP",
    "CRYPTO_ADDRESS": "WALLET",
}
_UNFINISHED_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*(\\(?:u[0-9a-fA-F]{0,3})?)\Z")


class Placeholders:
    """What stands for what in one request."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._by_value: dict[tuple[str, str], str] = {}
        self._values: dict[str, str] = {}
        self._counts: dict[str, int] = {}

    def __bool__(self) -> bool:
        """Whether any was issued."""
        return bool(self._values)

    def reserve(self, texts: Iterable[str]) -> None:
        """What looks like a placeholder in these texts of the request stands for itself: never issue it."""
        self._taken.update(found[0] for text in texts if "<" in text for found in _ANY.finditer(text))

    def issue(self, label: str, value: str) -> str:
        """The placeholder for a value: the same one each time."""
        name = _NAMES.get(label) or re.sub(r"[^A-Z]+", "_", label.upper()).strip("_") or "REDACTED"
        if (known := self._by_value.get((name, value))) is not None:
            return known
        while True:
            number = self._counts[name] = self._counts.get(name, 0) + 1
            placeholder = f"<{name}_{number}>"
            if placeholder not in self._taken:
                break
        self._by_value[name, value] = placeholder
        self._values[placeholder] = value
        return placeholder

    def restorer(self, *, json: bool = False) -> Restorer:
        """A restorer of one text. With ``json`` it is JSON, so that values are escaped."""
        return Restorer(self._values, json=json)

    def restore(self, text: str, *, json: bool = False) -> str:
        """A complete text with the originals."""
        restorer = self.restorer(json=json)
        return restorer.feed(text) + restorer.flush()


class Restorer:
    """Puts originals back into one text, however it is cut; holds back at most a placeholder's beginning."""

    def __init__(self, values: dict[str, str], *, json: bool) -> None:
        self._json = json
        self._held = ""
        self._values = {placeholder[1:-1]: value for placeholder, value in values.items()}
        self._patterns = _patterns(tuple(self._values), json) if values else None

    def feed(self, text: str) -> str:
        """Take the next piece; returns what may go out."""
        if self._patterns is None or not text:
            return text
        whole, begun = self._patterns
        text = self._held + text
        out: list[str] = []
        position = 0
        for match in whole.finditer(text):
            if match[1] is not None:
                out += text[position : match.start()], self._original(match[1])
                position = match.end()
        # What an original ends with, together with what follows, is no placeholder: only the rest is held.
        rest = text[position:]
        cut = len(rest)
        if self._json and (escape := _UNFINISHED_ESCAPE.search(rest)):
            cut = escape.start(1)
        if found := begun.search(rest, 0, cut):
            cut = found.start()
        self._held = rest[cut:]
        return "".join(out) + rest[:cut]

    def flush(self) -> str:
        """The text is complete; returns the rest."""
        held, self._held = self._held, ""
        return held

    def _original(self, name: str) -> str:
        value = self._values[name]
        return json.dumps(value, ensure_ascii=False)[1:-1] if self._json else value


def _patterns(names: tuple[str, ...], json: bool) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Of a whole placeholder, whose name is the group, and of the beginning of one at a text's end."""
    known, longest = "|".join(map(re.escape, names)), max(map(len, names))
    if not json:
        return re.compile(f"<({known})>"), re.compile(rf"<[A-Z_0-9]{{0,{longest}}}\Z")
    # In JSON the brackets may be escaped. Other escapes are read over: an escaped backslash begins none.
    return (
        re.compile(rf"(?:<|\\u003[cC])({known})(?:>|\\u003[eE])|\\u[0-9a-fA-F]{{4}}|\\[^u]"),
        re.compile(rf"(?:<|(?<!\\)(?:\\\\)*\\u003[cC])[A-Z_0-9]{{0,{longest}}}\Z"),
    )
