"""Quotes of the request's own system prompt, by runs of words that both have.

Words are compared folded, without what stands between them, so a quote in other case, spacing, punctuation
or Markdown counts, too. A quote is a run of at least so many words; of Chinese, Japanese and Korean each
character is a word. A paraphrase, a translation or an encoded copy passes: this is no proof that a system
prompt stays secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any

from validation.guards.normalise import lower, normalise
from validation.guards.scan import Hit, Readings, Window

LABEL = "SYSTEM_PROMPT"
_SINGLE = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_LONGEST_WORD = 48
_WORD = re.compile(rf"[{_SINGLE}]|[^\W_{_SINGLE}]{{1,{_LONGEST_WORD}}}")
#: Words of a quote after which a finding is told and the next begins: what a stream holds is bounded.
_MOST = 64


def system_text(body: Mapping[str, Any]) -> str:
    """The system prompt of an OpenAI request: its system and developer messages, joined by line ends."""
    messages = body.get("messages")
    texts: list[str] = []
    # What is no message is refused elsewhere, with a sentence.
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, Mapping) and message.get("role") in ("system", "developer"):
            content = message.get("content")
            parts = content if isinstance(content, list) else [{"text": content}]
            read = (part.get("text") for part in parts if isinstance(part, Mapping))
            texts.extend(text for text in read if isinstance(text, str))
    return "\n".join(texts)


class Prompt:
    """What of a system prompt quotes are known by."""

    __slots__ = ("pairs", "quotes", "size", "words")

    def __init__(self, text: str, words: int) -> None:
        read = [match[0] for match in _WORD.finditer(lower(normalise(text).text))]
        #: Words in a row that make a quote; a prompt of fewer is quoted as a whole, and "Be brief." never.
        self.size = min(words, len(read))
        self.words = frozenset(read) if self.size >= 4 else frozenset()
        self.pairs = frozenset(pairwise(read))
        self.quotes = frozenset(
            tuple(read[at : at + self.size]) for at in range(len(read) - self.size + 1) if self.size >= 4
        )


class SystemPromptCursor:
    """Reads one answer word by word."""

    __slots__ = ("_prompt", "_read", "_run", "_words", "done")

    def __init__(self, prompt: Prompt) -> None:
        self._prompt = prompt
        #: View position up to which words are known.
        self._read = 0
        #: The last words with where they stand (view position, code points): those that may begin a quote.
        self._words: list[tuple[str, int, int, int]] = []
        #: Words at the beginning of those that are a quote already; 0 if none is.
        self._run = 0
        self.done = 0

    def advance(self, window: Window, final: bool) -> list[Hit]:
        """See :class:`~validation.guards.scan.Cursor`."""
        if not self._prompt.words:
            self.done = window.end
            return []
        hits: list[Hit] = []
        text, base = window.folded, window.base
        unread = self._read
        for match in _WORD.finditer(text, self._read - base):
            if match.end() == len(text) and not final and not self._is_whole(match[0]):
                unread = base + match.start()
                break
            first, last = window.starts[match.start()], window.ends[match.end() - 1]
            hits.extend(self._take(match[0], base + match.start(), first, last))
            unread = base + match.end()
        else:
            unread = window.end
        self._read = unread
        if final:
            hits.extend(self._tell())
        self.done = min(unread, self._words[0][1]) if self._words else unread
        return hits

    def _is_whole(self, word: str) -> bool:
        return len(word) == _LONGEST_WORD or re.fullmatch(f"[{_SINGLE}]", word) is not None

    def _take(self, word: str, place: int, first: int, last: int) -> list[Hit]:
        """One more word; the finding that it ends, if any."""
        prompt, words = self._prompt, self._words
        hits: list[Hit] = []
        words.append((word, place, first, last))
        quoted = tuple(item[0] for item in words[-prompt.size :]) in prompt.quotes
        if quoted:
            if not self._run:
                # Words before it have not become part of a quote.
                del words[: -prompt.size]
            self._run = len(words)
            if self._run >= _MOST:
                hits = self._tell()
        elif self._run:
            hits = self._tell()
            self._words.append((word, place, first, last))
        if not self._run:
            self._forget()
        return hits

    def _tell(self) -> list[Hit]:
        """End the quote. Its last words stay: they may begin another, which then overlaps it."""
        if not self._run:
            return []
        quote, self._run = self._words[: self._run], 0
        self._words = quote[-(self._prompt.size - 1) :]
        return [Hit(LABEL, 1.0, quote[0][2], quote[-1][3])]

    def _forget(self) -> None:
        """Drop words that can no longer begin a quote: they or what follows them stand otherwise there."""
        words = self._words
        keep = len(words) if words[-1][0] not in self._prompt.words else 0
        if not keep:
            keep = max(0, len(words) - self._prompt.size + 1)
            for at in range(len(words) - 1, keep, -1):
                if (words[at - 1][0], words[at][0]) not in self._prompt.pairs:
                    keep = at
                    break
        del words[:keep]


class SystemPromptGuard:
    """The guard of policy kind ``system_prompt_leak``; each request has a system prompt of its own."""

    readings: Readings = "none"

    def __init__(self, words: int) -> None:
        self._size = words
        self.longest = _MOST * (_LONGEST_WORD + 1)

    def cursor(self, system_text: str = "") -> SystemPromptCursor:
        """Begin to read an answer to a request with that system prompt."""
        return SystemPromptCursor(_prompt(system_text, self._size))


@lru_cache(maxsize=16)
def _prompt(text: str, words: int) -> Prompt:
    """Choices of an answer share their prompt, and so do the requests of one application."""
    return Prompt(text, words)
