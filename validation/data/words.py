"""Words as datatrove's tokenisers make them, each piece of text tokenised once in a process.

datatrove gives most languages spaCy's rule tokeniser. That splits at white space first and then looks at
each piece alone, so pieces are remembered: a corpus repeats them so often that nearly all work is a
look-up. Words get numbers, and what the rules ask of a word (its length, whether it has a letter, ...) is
kept by number in NumPy arrays.

The words are exactly datatrove's, but for two things. spaCy cannot read the word IS_ALPHA, or can, as the
process has read it before or not; here it is always left out. And a piece of more than ``MAX_PIECE``
characters is read as several: spaCy's time grows with the square of a piece, so that one row could hold up a
job for ever. Languages with another kind of tokeniser are passed on to it.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.errors import UsageError
from validation.data.affixes import Affixes, Exceptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

ENGLISH = "eng"
#: Characters of a piece of text between white space that are tokenised together.
MAX_PIECE = 1000

#: Pieces, and characters in them, that a process remembers for a language (some 60 MB) before it begins anew.
_MAX_PIECES = 200_000
_MAX_CHARACTERS = 2**24
#: An odd multiplier: n-grams of words are compared by a polynomial over their characters, modulo 2^64.
_BASE = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1

_PIECE = re.compile(r"\S+")
#: How a piece changes the number of sentences: (new sentences, whether a full stop was seen) after it, for
#: a piece that comes before any full stop, and for one that comes behind it.
_Steps = tuple[tuple[int, bool], tuple[int, bool]]


class Vocabulary:
    """Words by number, with what the rules ask about each of them."""

    def __init__(self) -> None:
        from datatrove.utils.text import PUNCTUATION_SET

        self._punctuation = frozenset(PUNCTUATION_SET)
        self._numbers: dict[str, int] = {}
        self.words: list[str] = []
        #: Characters of all words.
        self.size = 0
        #: Characters of the word.
        self.lengths: NDArray[np.int64] = np.zeros(1024, np.int64)
        #: Whether any character is a letter.
        self.alphabetic: NDArray[np.bool_] = np.zeros(1024, np.bool_)
        #: Whether the word is more than punctuation.
        self.verbal: NDArray[np.bool_] = np.zeros(1024, np.bool_)
        #: Polynomial over the characters, and the multiplier's power that appending the word needs.
        self.polynomials: NDArray[np.uint64] = np.zeros(1024, np.uint64)
        self.powers: NDArray[np.uint64] = np.zeros(1024, np.uint64)
        #: BLAKE2b of the lower-case word without what is neither letter, digit nor mark; 0 if it has no
        #: letter or digit. The same in every process.
        self.keys: NDArray[np.uint64] = np.zeros(1024, np.uint64)

    def __len__(self) -> int:
        return len(self.words)

    def number(self, word: str) -> int:
        """The word's number, a new one if it is new."""
        number = self._numbers.get(word)
        return self._add(word) if number is None else number

    def known(self, words: Iterable[str]) -> set[int]:
        """Numbers of those among ``words`` that have one."""
        return {self._numbers[word] for word in words if word in self._numbers}

    def _add(self, word: str) -> int:
        number = len(self.words)
        if number == len(self.lengths):
            for name in ("lengths", "alphabetic", "verbal", "polynomials", "powers", "keys"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros_like(old)]))
        self._numbers[word] = number
        self.words.append(word)
        self.size += len(word)
        self.lengths[number] = len(word)
        self.alphabetic[number] = any(map(str.isalpha, word))
        self.verbal[number] = not self._punctuation.issuperset(word)
        self.polynomials[number], self.powers[number] = _polynomial(word)
        self.keys[number] = _key("".join(filter(_counts, word.lower())))
        return number


@lru_cache(maxsize=65_536)
def _counts(char: str) -> bool:
    """Whether words that differ in the character are different: vowel signs of Indic scripts are marks."""
    return char.isalnum() or unicodedata.category(char) in ("Mn", "Mc")


def _key(bare: str) -> int:
    digest = hashlib.blake2b(bare.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") if any(map(str.isalnum, bare)) else 0


def _polynomial(word: str) -> tuple[int, int]:
    if len(word) > 1000:
        codes = np.frombuffer(word.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
        powers = np.cumprod(np.full(len(word), _BASE, np.uint64))
        return int((codes[:-1] * powers[-2::-1]).sum(dtype=np.uint64) + codes[-1]), int(powers[-1])
    value, power = 0, 1
    for char in word:
        value = (value * _BASE + ord(char)) & _MASK
        power = (power * _BASE) & _MASK
    return value, power


class Words:
    """The words of one text."""

    def __init__(self, vocabulary: Vocabulary, numbers: list[int]) -> None:
        self.vocabulary = vocabulary
        #: The words' numbers, in order.
        self.numbers = numbers
        self.index: NDArray[np.int64] = np.array(numbers, np.int64)

    def __len__(self) -> int:
        return len(self.numbers)

    def strings(self) -> list[str]:
        """The words themselves."""
        return list(map(self.vocabulary.words.__getitem__, self.numbers))

    def keys(self) -> NDArray[np.uint64]:
        """A 64-bit key for each word that has a letter or digit; case and punctuation do not count.

        The same in every process and on every machine.
        """
        keys = self.vocabulary.keys[self.index]
        return keys[keys != 0]


class Tokeniser:
    """One language's words and sentences."""

    def __init__(self, language: str) -> None:
        self._tokeniser = _datatrove_tokeniser(language)
        self.vocabulary = Vocabulary()

    def words(self, text: str) -> Words:
        """The words of a text."""
        return self._directly(_readable(text))

    def count_sentences(self, text: str) -> int:
        """As many sentences as datatrove's ``split_into_sentences`` makes."""
        return max(1, len(self._tokeniser.span_tokenize(_readable(text))))

    def full(self) -> bool:
        """Whether it remembers so much that a new one should take its place."""
        return len(self.vocabulary) >= _MAX_PIECES or self.vocabulary.size >= _MAX_CHARACTERS

    def _directly(self, text: str) -> Words:
        words = self._tokeniser.word_tokenize(text)
        return Words(self.vocabulary, list(map(self.vocabulary.number, words)))


class PieceTokeniser(Tokeniser):
    """A language that spaCy's rules tokenise: every piece between white space once."""

    def __init__(self, language: str) -> None:
        super().__init__(language)
        from spacy.attrs import IS_PUNCT

        self._nlp = self._tokeniser.tokenizer
        self._stops = frozenset(self._nlp.get_pipe("sentencizer").punct_chars)
        self._pieces: dict[str, tuple[int, ...]] = {}
        self._steps: dict[str, _Steps] = {}
        self._affixes = Affixes(self._nlp.tokenizer)
        self._exceptions = Exceptions(self._nlp.tokenizer, self._affixes.rules)
        self._is_punctuation = self._nlp.vocab.lex_attr_getters[IS_PUNCT]
        #: Remembered pieces that hold an exception which only their neighbours could undo.
        self._delicate: set[str] = set()

    def full(self) -> bool:
        """See :class:`Tokeniser`."""
        return len(self._pieces) >= _MAX_PIECES or super().full()

    def words(self, text: str) -> Words:
        """See :class:`Tokeniser`."""
        text, pieces = _in_pieces(text)
        if not self._safe(text, pieces):
            return self._directly(text)
        return Words(self.vocabulary, list(chain.from_iterable(map(self._pieces.__getitem__, pieces))))

    def count_sentences(self, text: str) -> int:
        """See :class:`Tokeniser`."""
        text, pieces = _in_pieces(text)
        parts = text.split(" ")
        blanks = len(parts) != len(pieces)
        if (blanks and [part for part in parts if part] != pieces) or (not blanks and parts != pieces):
            # White space other than blanks is seldom, and may make tokens in several ways.
            return super().count_sentences(text)
        if not self._safe(text, pieces):
            return super().count_sentences(text)
        if parts[-1] == "":
            parts.pop()  # A blank belongs to the token before it; what more there is makes a token.
        count, stopped = 1, False
        for part in parts:
            more, stopped = self._steps[part][stopped] if part else (int(stopped), False)
            count += more
        return count

    def _learn(self, pieces: list[str]) -> None:
        new = set(pieces).difference(self._pieces)
        hard = []
        for piece in new:
            tokens = self._affixes.split(piece)
            if self._exceptions.inside(tokens):
                hard.append(piece)
            else:
                self._remember(piece, tokens)
        if not hard:
            return
        # Without the zone spaCy would keep every string that it ever saw.
        with self._nlp.memory_zone():
            for piece in hard:
                self._remember(piece, [token.text for token in self._nlp.tokenizer(piece)])
        self._delicate.update(hard)

    def _remember(self, piece: str, tokens: list[str]) -> None:
        words = [text.strip() for text in tokens if text.strip()]
        self._pieces[piece] = tuple(map(self.vocabulary.number, words))
        self._steps[piece] = _steps([(text, self._is_punctuation(text)) for text in tokens], self._stops)

    def _safe(self, text: str, pieces: list[str]) -> bool:
        """Learn the pieces; false if they might be tokenised otherwise in this text than alone."""
        self._learn(pieces)
        if self._delicate.isdisjoint(pieces):
            return True
        delicate = self._delicate
        return not any(
            (left in delicate or right in delicate) and self._joined(left, right)
            for left, right in pairwise(pieces)
        )

    def _joined(self, left: str, right: str) -> bool:
        """Whether an exception could reach from one piece into the next, at least one of them delicate.

        Of a delicate piece it is not known which tokens spaCy had before it looked for exceptions.
        """
        words, delicate = self.vocabulary.words, self._delicate
        for end, start in self._exceptions.joints.get(left[-1] + right[0], ()):
            ends = left.endswith(end) if left in delicate else words[self._pieces[left][-1]] == end
            if ends and (
                right.startswith(start) if right in delicate else words[self._pieces[right][0]] == start
            ):
                return True
        return False


def _readable(text: str) -> str:
    """The text without what spaCy cannot read; what comes to stand together then, in small letters."""
    return text.replace("IS_ALPHA", "").replace("IS_ALPHA", "is_alpha")


def _in_pieces(text: str) -> tuple[str, list[str]]:
    """The text as it is read, and its pieces between white space, none of them too long."""
    text = _readable(text)
    pieces = text.split()
    if pieces and max(map(len, pieces)) > MAX_PIECE:
        text = _PIECE.sub(_divided, text)
        pieces = text.split()
    return text, pieces


def _divided(piece: re.Match[str]) -> str:
    whole = piece[0]
    return " ".join(whole[start : start + MAX_PIECE] for start in range(0, len(whole), MAX_PIECE))


def _steps(tokens: list[tuple[str, bool]], stops: frozenset[str]) -> _Steps:
    """spaCy's sentencizer over one piece: a sentence begins at the first word behind a full stop."""
    ends = []
    for stopped in (False, True):
        count = 0
        for text, is_punctuation in tokens:
            is_stop = text in stops
            if stopped and not is_punctuation and not is_stop:
                count, stopped = count + 1, False
            elif is_stop:
                stopped = True
        ends.append((count, stopped))
    return ends[0], ends[1]


def _datatrove_tokeniser(language: str) -> Any:
    from datatrove.utils.word_tokenizers import load_word_tokenizer

    try:
        return load_word_tokenizer(language)
    except ValueError:
        raise UsageError(
            f"language {language}: datatrove assigns no tokeniser to it; give a code such as eng or deu_Latn."
        ) from None
    except ImportError as error:
        raise UsageError(f"language {language}: its tokeniser needs a package: {error}.") from None


@cache
def _tokenisers() -> dict[str, Tokeniser]:
    return {}


def tokeniser(language: str = ENGLISH) -> Tokeniser:
    """This process's tokeniser for a language, by datatrove's code of it (``eng``, ``deu``, ``zho_Hans``).

    Raises UsageError for a language that datatrove has no tokeniser for, or whose package is missing.
    """
    known = _tokenisers()
    if language not in known or known[language].full():
        known[language] = _make(language)
    return known[language]


def _make(language: str) -> Tokeniser:
    from datatrove.utils.word_tokenizers import SpaCyTokenizer
    from spacy.tokenizer import Tokenizer as SpacyTokenizer

    found = _datatrove_tokeniser(language)
    with _without_plugins():
        rules = isinstance(found, SpaCyTokenizer) and type(found.tokenizer.tokenizer) is SpacyTokenizer
    return PieceTokeniser(language) if rules else Tokeniser(language)


@contextmanager
def _without_plugins() -> Iterator[None]:
    """Make spaCy pipelines without what other packages register for them.

    A blank one needs none, and Presidio's would import transformers: three seconds in every process.
    """
    from spacy.util import registry

    factories = registry._entry_point_factories
    before, factories.entry_points = factories.entry_points, False
    try:
        yield
    finally:
        factories.entry_points = before


def n_gram_keys(keys: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """A 64-bit key for each run of ``n`` words, from the words' keys; one for the whole if it is shorter.

    Empty for no words. The same in every process and on every machine.
    """
    n = min(n, len(keys))
    if not n:
        return keys
    rows = len(keys) - n + 1
    mixed = keys[:rows]
    for shift in range(1, n):
        mixed = mixed * np.uint64(_BASE) + keys[shift : shift + rows]
    return mix(mixed)


def mix(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: every bit of a key comes to depend on every other."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))
