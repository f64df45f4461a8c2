"""A text with what the judges read in it, each made when it is first asked for, and once."""

from __future__ import annotations

import re
import unicodedata
from functools import cache, cached_property

from validation.data.words import ENGLISH, Words, tokeniser

_PARAGRAPHS = re.compile(r"\n{2,}")
_LINES = re.compile(r"\n+")
#: A text of more punctuation marks and symbols, and of so great a share of them, is no text: to make words of
#: 16 MB of them takes minutes, of prose seconds.
MAX_SIGNS, MAX_SIGNS_SHARE = 100_000, 0.3


@cache
def _signs() -> re.Pattern[str]:
    """Runs of what is neither letter, digit, underscore, white space nor a mark on a letter (vowels are)."""
    marks = (chr(n) for n in range(0x300, 0x20000) if unicodedata.category(chr(n)) in ("Mn", "Mc"))
    return re.compile(rf"[^\w\s{''.join(marks)}]+")


class Document:
    """One text, shared by all judges of a row."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._words: dict[str, Words] = {}

    def words(self, language: str = ENGLISH) -> Words:
        """The words as datatrove's tokeniser for the language makes them.

        Raises UsageError for a language without a tokeniser.
        """
        words = self._words.get(language)
        if words is None:
            words = self._words[language] = tokeniser(language).words(self.text)
        return words

    @cached_property
    def signs_share(self) -> float | None:
        """The signs' share of a text that is to be read no further for them; None of any other text."""
        if len(self.text) <= MAX_SIGNS:
            return None
        signs = sum(len(match[0]) for match in _signs().finditer(self.text))
        share = signs / len(self.text)
        return share if signs > MAX_SIGNS and share > MAX_SIGNS_SHARE else None

    @cached_property
    def lines(self) -> list[str]:
        """The text at every kind of line boundary, as ``str.splitlines`` makes them."""
        return self.text.splitlines()

    @cached_property
    def feeds(self) -> list[str]:
        """The text at its line feeds, runs of them taken as one."""
        return _LINES.split(self.text)

    @cached_property
    def paragraphs(self) -> list[str]:
        """The text, stripped, at its empty lines."""
        return _PARAGRAPHS.split(self.text.strip())
