"""Documents that hold parts of an evaluation set: what a model has read cannot be asked of it any more.

As in GPT-3's report (https://arxiv.org/abs/2005.14165, appendix C) two texts overlap if they share a run of
words, where neither case nor punctuation counts. There a run has 8 to 13 words, one number for each set; here
each text that is shorter than 13 words is one run of its own length. Runs of fewer than 8 words are in many
documents that owe an evaluation set nothing, so shorter texts are left out, and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from cluster.errors import UsageError
from validation.data.documents import Document
from validation.data.verdict import Judge, Rule, Verdict
from validation.data.words import ENGLISH, n_gram_keys, tokeniser

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAX_SETS = 2**16


class Contamination(Rule):
    """Documents that share word n-grams with an evaluation set."""

    n: int = Field(
        13,
        ge=1,
        description="Words in a run. A text of an evaluation set with fewer is one run.",
    )
    min_words: int = Field(
        8, ge=1, description="Texts of an evaluation set with fewer words (and fewer than n) are left out."
    )
    min_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Least share of a document's runs that must be found; 0: any one will do.",
    )
    language: str = Field(ENGLISH, description="Language whose tokeniser makes the words.")

    def index(self, sets: Mapping[str, Iterable[str]]) -> EvaluationIndex:
        """An index of evaluation sets: a name for each, and its texts (questions, passages, answers).

        Raises UsageError for more than 65,536 sets or a language without a tokeniser.
        """
        parts = []
        for name, texts in sets.items():
            keys: list[NDArray[np.uint64]] = [np.zeros(0, np.uint64)]
            sizes = Counter[int]()
            for text in texts:
                words = Document(text).words(self.language).keys()
                size = min(self.n, len(words))
                long_enough = size >= min(self.n, self.min_words)
                sizes[size if long_enough else 0] += 1
                keys += [n_gram_keys(words, size)] if long_enough else []
            found = np.unique(np.concatenate(keys))
            first: NDArray[np.uint16] = np.zeros(len(found), np.uint16)
            parts.append(EvaluationIndex(found, first, (name,), dict(sizes)))
        return EvaluationIndex.merge(parts)

    def build(self, index: EvaluationIndex) -> Judge:
        """The judge by an index that was made with the same ``n`` and language."""
        return _Contamination(self, index)


@dataclass(frozen=True, eq=False)
class EvaluationIndex:
    """Keys of evaluation sets; the arrays may be read-only views of shared memory."""

    #: In ascending order, each once.
    keys: NDArray[np.uint64]
    #: For each key the place of its set in ``names``, of several sets the first.
    sets: NDArray[np.uint16]
    names: tuple[str, ...]
    #: Words in a run to the number of texts whose runs have so many; under 0 the number left out.
    sizes: Mapping[int, int]

    @property
    def told(self) -> str:
        """How many texts there are, and how many were too short, in words."""
        whole, short = sum(self.sizes.values()), self.sizes.get(0, 0)
        share = short / max(whole, 1)
        return f"{whole} texts of evaluation sets, {short} of them ({share:.1%}) too short to be found"

    @staticmethod
    def merge(parts: Sequence[EvaluationIndex]) -> EvaluationIndex:
        """One index of all; of several parts that know a key, the first keeps it."""
        names: dict[str, int] = {}
        keys: list[NDArray[np.uint64]] = [np.zeros(0, np.uint64)]
        sets: list[NDArray[np.uint16]] = [np.zeros(0, np.uint16)]
        sizes = Counter[int]()
        for part in parts:
            places = [names.setdefault(name, len(names)) for name in part.names]
            if len(names) > _MAX_SETS:
                raise UsageError(
                    f"{len(names)} evaluation sets are more than {_MAX_SETS}; join some of them."
                )
            keys.append(part.keys)
            sizes.update(part.sizes)
            sets.append(np.array(places, np.uint16)[part.sets])
        unique, first = np.unique(np.concatenate(keys), return_index=True)
        return EvaluationIndex(unique, np.concatenate(sets)[first], tuple(names), dict(sizes))

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """For each of ``keys`` the place of its set in ``names``, or -1."""
        if not len(self.keys):
            return np.full(len(keys), -1)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[places] == keys, self.sets[places].astype(np.int64), -1)


class _Contamination:
    name = "contamination"

    def __init__(self, config: Contamination, index: EvaluationIndex) -> None:
        tokeniser(config.language)
        self._config, self._index = config, index
        self._sizes = sorted(size for size in index.sizes if size)

    def judge(self, document: Document) -> Verdict | None:
        words = document.words(self._config.language).keys()
        verdict = None
        for size in self._sizes:
            if size > len(words):
                break
            found = self._index.find(n_gram_keys(words, size))
            known = found[found >= 0]
            share = len(known) / len(found)
            if len(known) and share >= self._config.min_share and (not verdict or share > verdict[1]):
                verdict = (self._index.names[int(np.bincount(known).argmax())], share)
        return Verdict(f"in_{verdict[0]}", verdict[1]) if verdict else None
