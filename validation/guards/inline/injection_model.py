"""Attempts to override a model's instructions, by a small trained classifier. **It errs.**

TF-IDF over words (1-2) and characters within words (3-5), and logistic regression: it weighs how attacks are
worded, where :mod:`validation.guards.inline.injection` knows phrases. Trained by
``python -m validation.guards.train_injection``, which writes ``models/injection.json`` and the figures of
``models/INJECTION.md``. Inference is plain Python, as the gateway loads no numerical library.

A long text is read in windows, and counts as much as its worst one. A finding is such a window, not a part
that could be cut out: the policy may flag or block.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from validation.guards.scan import Hit, Readings, Window

MODEL = Path(__file__).parents[1] / "models" / "injection.json"
#: Characters of the view that are judged at once, and from one window to the next.
WINDOW, STEP = 1_200, 800
#: Lengths of the n-grams of characters.
SHORTEST_GRAM, LONGEST_GRAM = 3, 5
#: Different words whose n-grams are remembered.
_REMEMBERED = 4_000
#: Fewer words than this are too little to judge: greetings and short wishes look like anything.
FEWEST = 4
#: A text of fewer words than this is an attack only from that score on.
SHORT, SURE = 5, 0.9
#: Letters only: hashes and encoded parts say nothing here (what they hide is another reading).
_WORD = re.compile(r"(?<![^\W_])[^\W\d_]{2,18}(?![^\W_])")
#: What stands between white space: a word with its punctuation, a number, a sign.
_CHUNK = re.compile(
    r"(?<!\S)(?:(?=\S{0,22}[^\W\d_]{2})[^\s\d]{2,24}|[0-9]{1,6}[.,:;%)]{0,2}|[^\w\s]{1,3})(?!\S)"
)


def grams(word: str) -> list[str]:
    """The n-grams of characters of one word, its ends marked by spaces; a short word is one itself."""
    padded = f" {word} "
    found: list[str] = []
    for size in range(SHORTEST_GRAM, LONGEST_GRAM + 1):
        found.extend(padded[at : at + size] for at in range(max(1, len(padded) - size + 1)))
        if len(padded) <= size:
            break
    return found


def words_of(text: str) -> list[str]:
    """The words of a folded text that are judged."""
    return _WORD.findall(text)


def char_features(text: str) -> list[str]:
    """The n-grams of characters of a folded text."""
    return [gram for chunk in chunks_of(text) for gram in grams(chunk)]


def chunks_of(text: str) -> list[str]:
    """What of a folded text n-grams of characters are made of."""
    return _CHUNK.findall(text)


def word_features(text: str) -> list[str]:
    """The words of a folded text and their pairs."""
    words = words_of(text)
    return [*words, *(f"{first} {second}" for first, second in pairwise(words))]


#: Inverse document frequency and weight by feature.
Features = dict[str, tuple[float, float]]
Gram = tuple[str, tuple[float, float]]


@dataclass(slots=True)
class InjectionModel:
    """The trained weights."""

    words: Features
    #: By n-gram the n-gram itself with its figures: one object, that every remembered word shares.
    chars: dict[str, Gram]
    bias: float
    _grams: dict[str, tuple[Gram, ...]] = field(default_factory=dict)

    def score(self, text: str) -> float:
        """How likely a folded text of at most a window is an attack, from 0 to 1; 0 of what is too short."""
        size = len(words_of(text))
        if size < FEWEST:
            return 0.0
        score = self._score(text)
        return score if size >= SHORT or score >= SURE else 0.0

    def _score(self, text: str) -> float:
        known = Counter(feature for feature in word_features(text) if feature in self.words)
        logit = self.bias + _dot((count, *self.words[feature]) for feature, count in known.items())
        counts: dict[str, int] = {}
        weights: dict[str, tuple[float, float]] = {}
        for word, times in Counter(chunks_of(text)).items():
            for gram, weight in self._known_grams(word):
                counts[gram] = counts.get(gram, 0) + times
                weights[gram] = weight
        logit += _dot((count, *weights[gram]) for gram, count in counts.items())
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, logit))))

    def _known_grams(self, word: str) -> tuple[Gram, ...]:
        remembered = self._grams.get(word)
        if remembered is None:
            remembered = tuple(self.chars[gram] for gram in grams(word) if gram in self.chars)
            if len(self._grams) < _REMEMBERED and len(word) <= 32:
                self._grams[word] = remembered
        return remembered


def _dot(features: Iterable[tuple[int, float, float]]) -> float:
    """The weighted sum of features (count, inverse document frequency, weight), as a unit vector."""
    total = square = 0.0
    for count, idf, weight in features:
        value = (1 + math.log(count)) * idf if count > 1 else idf
        total += value * weight
        square += value * value
    return total / math.sqrt(square) if square else 0.0


@cache
def injection_model() -> InjectionModel:
    """The model of this release, read once."""
    return read_model(json.loads(MODEL.read_text(encoding="utf-8")))


def read_model(body: dict[str, Any]) -> InjectionModel:
    """The model of a file's content."""

    def features(part: dict[str, Any]) -> Features:
        names = part["features"].split("\n")
        return {
            name: (idf / body["scale"], weight / body["scale"])
            for name, idf, weight in zip(names, part["idf"], part["weight"], strict=True)
        }

    chars = {name: (name, figures) for name, figures in features(body["chars"]).items()}
    return InjectionModel(features(body["words"]), chars, body["bias"])


class InjectionModelCursor:
    """Judges one complete text; its worst window counts. Policies apply it to input only."""

    __slots__ = ("_threshold", "done")

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self.done = 0

    def advance(self, window: Window, final: bool) -> list[Hit]:
        """See :class:`~validation.guards.scan.Cursor`."""
        if not final or window.end <= self.done:
            return []
        text = window.folded
        # The last window reaches the end: none begins where the one before has read all.
        starts = range(0, max(1, len(text) - (WINDOW - STEP)), STEP)
        score, start = max((injection_model().score(text[at : at + WINDOW]), -at) for at in starts)
        self.done = window.end
        if score < self._threshold:
            return []
        return [window.hit("PROMPT_INJECTION", round(score, 4), -start, min(len(text), WINDOW - start))]


class InjectionModelGuard:
    """The guard of policy kind ``injection_model``."""

    longest = 0
    readings: Readings = "words"

    def __init__(self, threshold: float) -> None:
        injection_model()
        self._threshold = threshold

    def cursor(self) -> InjectionModelCursor:
        """Begin to read a text."""
        return InjectionModelCursor(self._threshold)
