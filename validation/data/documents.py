"""A text with what the judges read in it, each made when it is first asked for, and once."""

from __future__ import annotations

import re
from functools import cached_property

from validation.data.words import ENGLISH, Words, tokeniser

_PARAGRAPHS = re.compile(r"\n{2,}")
_LINES = re.compile(r"\n+")


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
