"""Documents that hold parts of an evaluation set: what a model has read cannot be asked of it any more.

As in GPT-3's report (https://arxiv.org/abs/2005.14165, appendix C) two texts overlap if they share a run of
13 words, where neither case nor punctuation counts.
"""

from __future__ import annotations

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
        description="Words in a run. A text with fewer is one run, which only an equal text shares.",
    )
    min_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Least share of a document's runs that must be found; 0: any one will do.",
    )
    language: str = Field(ENGLISH, description="Language whose tokeniser makes the words.")

    def keys(self, text: str) -> NDArray[np.uint64]:
        """The text's runs of words as 64-bit keys."""
        return n_gram_keys(Document(text).words(self.language).keys(), self.n)

    def index(self, sets: Mapping[str, Iterable[str]]) -> EvaluationIndex:
        """An index of evaluation sets: a name for each, and its texts (questions, passages, answers).

        Raises UsageError for more than 65,536 sets or a language without a tokeniser.
        """
        parts = []
        for name, texts in sets.items():
            keys = [self.keys(text) for text in texts]
            found = np.unique(np.concatenate(keys)) if keys else np.zeros(0, np.uint64)
            parts.append(EvaluationIndex(found, np.zeros(len(found), np.uint16), (name,)))
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

    @staticmethod
    def merge(parts: Sequence[EvaluationIndex]) -> EvaluationIndex:
        """One index of all; of several parts that know a key, the first keeps it."""
        names: dict[str, int] = {}
        keys: list[NDArray[np.uint64]] = [np.zeros(0, np.uint64)]
        sets: list[NDArray[np.uint16]] = [np.zeros(0, np.uint16)]
        for part in parts:
            places = [names.setdefault(name, len(names)) for name in part.names]
            if len(names) > _MAX_SETS:
                raise UsageError(
                    f"{len(names)} evaluation sets are more than {_MAX_SETS}; join some of them."
                )
            keys.append(part.keys)
            sets.append(np.array(places, np.uint16)[part.sets])
        unique, first = np.unique(np.concatenate(keys), return_index=True)
        return EvaluationIndex(unique, np.concatenate(sets)[first], tuple(names))

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

    def judge(self, document: Document) -> Verdict | None:
        keys = n_gram_keys(document.words(self._config.language).keys(), self._config.n)
        found = self._index.find(keys)
        known = found[found >= 0]
        if not len(known) or len(known) / len(keys) < self._config.min_share:
            return None
        commonest = int(np.bincount(known).argmax())
        return Verdict(f"in_{self._index.names[commonest]}", len(known) / len(keys))
