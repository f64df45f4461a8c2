"""spaCy's rule tokeniser for one piece of text between white space, without the objects that it makes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any


class Affixes:
    """spaCy's algorithm for one piece, with the language's own rules but without its Doc and lexemes.

    Those cost most of its time. What it lacks is the last step, :class:`Exceptions`.
    """

    def __init__(self, tokeniser: Any) -> None:
        from spacy.attrs import ORTH, intify_attrs

        #: Exceptions and their tokens.
        self.rules = {
            key: [intify_attrs(part)[ORTH] for part in parts] for key, parts in tokeniser.rules.items()
        }
        self._prefix, self._suffix = tokeniser.prefix_search, tokeniser.suffix_search
        self._infixes = tokeniser.infix_finditer
        self._wholes = [match for match in (tokeniser.token_match, tokeniser.url_match) if match]
        self._token_match = tokeniser.token_match

    def split(self, piece: str) -> list[str]:
        """The piece's tokens."""
        rules = self.rules
        before: list[str] = []
        after: list[str] = []
        while piece and piece not in rules and not (self._token_match and self._token_match(piece)):
            prefix = _length(self._prefix, piece)
            if prefix and piece[prefix:] in rules:
                before.append(piece[:prefix])
                piece = piece[prefix:]
                break
            suffix = _length(self._suffix, piece[prefix:])
            if suffix and piece[:-suffix] in rules:
                after.append(piece[-suffix:])
                piece = piece[:-suffix]
                break
            if not prefix and not suffix:
                break
            if prefix + suffix > len(piece):
                suffix = 0 if prefix else suffix
            if prefix:
                before.append(piece[:prefix])
            if suffix:
                after.append(piece[-suffix:])
            piece = piece[prefix : len(piece) - suffix]
        return [*before, *self._middle(piece), *reversed(after)]

    def _middle(self, piece: str) -> list[str]:
        if not piece:
            return []
        if piece in self.rules:
            return self.rules[piece]
        infixes = list(self._infixes(piece)) if self._infixes is not None else []
        if not infixes or any(match(piece) for match in self._wholes):
            return [piece]
        tokens, start = [], 0
        for infix in infixes:
            if infix.start() == 0:
                continue
            tokens += [piece[start : infix.start()], infix[0]]
            start = infix.end()
        return [token for token in (*tokens, piece[start:]) if token]


def _length(search: Any, text: str) -> int:
    match = search(text) if search is not None else None
    return match.end() - match.start() if match else 0


class Exceptions:
    """spaCy's exceptions such as ``:)`` are looked for in the whole text, after its pieces.

    What is found across pieces changes nothing by itself, but hides a shorter exception that it overlaps,
    inside one of them: ``x:) )`` has no ``:)``, since ``:))`` is an exception too.
    """

    def __init__(self, tokeniser: Any, rules: dict[str, list[str]]) -> None:
        from spacy.tokenizer import Tokenizer as SpacyTokenizer

        parts = ("prefix_search", "suffix_search", "infix_finditer", "token_match", "url_match")
        plain = SpacyTokenizer(tokeniser.vocab, **{name: getattr(tokeniser, name) for name in parts})
        #: Neighbours in any exception as they are tokenised without it, by the characters that meet.
        self.joints: dict[str, set[tuple[str, str]]] = {}
        phrases = set()
        for key, tokens in rules.items():
            without = tuple(token.text for token in plain(key))
            if without != tuple(tokens):
                phrases.add(without)
            for left, right in pairwise(without):
                self.joints.setdefault(left[-1] + right[0], set()).add((left, right))
        self._phrases = frozenset(phrases)
        self._lengths = sorted(set(map(len, phrases)))

    def inside(self, tokens: list[str]) -> bool:
        """Whether an exception changes a piece's tokens further."""
        return any(
            tuple(tokens[start : start + length]) in self._phrases
            for length in self._lengths
            for start in range(len(tokens) - length + 1)
        )
