"""Summaries of a set or a stream whose merge does not depend on how the data was split, nor on its order.

Each is bounded, and exact in this sense: merging the summaries of parts gives the summary of the whole, bit
for bit. Hashes are pandas' SipHash of the UTF-8 text with its fixed key: they hold across runs and machines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from validation.data.words import mix

#: Hashes that leave the process have 53 bits: every reader of JSON keeps them whole.
HASH_BITS = 53
#: A Count-Min sketch of this size puts 95 % of the counts at most 0.07 % of all tokens too high.
_DEPTH, _WIDTH = 3, 4096
_COUNT: Any = np.dtype("<i8")
#: Tokens that may turn out to be frequent ones: far more than anyone names.
_CANDIDATES = 2048


def hash_texts(texts: Any) -> Any:
    """64-bit hashes of an object array of strings, as uint64."""
    from pandas.util import hash_array

    return hash_array(np.asarray(texts, dtype=object), categorize=False)


def mixed(hashes: Any, salt: int = 0) -> Any:
    """Another hash of each hash (the finaliser of SplitMix64, Steele et al. 2014)."""
    return mix(hashes + np.uint64((salt + 1) * 0x9E3779B97F4A7C15 % 2**64))


class DistinctSketch(BaseModel):
    """The ``size`` smallest hashes of a set: its number of elements, and its overlap with another set.

    Bottom-k sketch (Bar-Yossef et al. 2002; estimator by Beyer et al. 2007): exact below ``size`` elements,
    beyond it with a relative standard error of 1 / sqrt(size).
    """

    size: int
    #: Sorted, of 53 bits each.
    hashes: list[int] = Field(default_factory=list)

    @classmethod
    def of(cls, hashes: Any, size: int) -> Self:
        """Of any 64-bit hashes, repeated ones too."""
        return cls(size=size, hashes=np.unique(hashes >> np.uint64(64 - HASH_BITS))[:size].tolist())

    def add(self, other: DistinctSketch) -> None:
        """Take in another part of the set."""
        self.hashes = sorted({*self.hashes, *other.hashes})[: self.size]

    @property
    def distinct(self) -> int:
        """How many elements the set has, estimated if there are ``size`` or more."""
        if len(self.hashes) < self.size:
            return len(self.hashes)
        return round((self.size - 1) * 2.0**HASH_BITS / self.hashes[-1])


def overlap(first: list[int], second: list[int], size: int) -> float:
    """Jaccard similarity of two sets by their bottom-k sketches of ``size``; 1 for two empty ones."""
    union = sorted({*first, *second})[:size]
    both = set(first) & set(second)
    return sum(h in both for h in union) / len(union) if union else 1.0


class ValueCounts(BaseModel):
    """Exact counts of at most ``size`` distinct values: of more, those with the smallest hashes stay.

    Which values stay depends on nothing but the set of values, so a kept value's count is exact, however
    the rows were split.
    """

    total: int
    counts: dict[str, int]
    distinct: DistinctSketch

    @classmethod
    def of(cls, counts: Mapping[str, int], size: int) -> Self:
        """Of one part's counts."""
        made = cls(
            total=sum(counts.values()),
            counts=dict(counts),
            distinct=DistinctSketch.of(hash_texts(list(counts)), size + 1),
        )
        made._trim()
        return made

    @property
    def capped(self) -> bool:
        """Whether there are more values than are counted."""
        return len(self.distinct.hashes) == self.distinct.size

    def add(self, other: ValueCounts) -> None:
        """Take in another part's counts."""
        self.total += other.total
        for value, count in other.counts.items():
            self.counts[value] = self.counts.get(value, 0) + count
        self.distinct.add(other.distinct)
        self._trim()

    def _trim(self) -> None:
        size = self.distinct.size - 1
        if len(self.counts) > size:
            values = list(self.counts)
            order = sorted(zip(hash_texts(values).tolist(), values, strict=True))
            self.counts = {value: self.counts[value] for _, value in order[:size]}


class TokenSketch(BaseModel):
    """Frequencies of tokens without a dictionary of them all.

    Counts are a Count-Min sketch (Cormode and Muthukrishnan 2005): never too low. Which tokens are worth
    asking for is a bottom-k sample with aggregation (Cohen and Kaplan 2007): each pair of a token and a text
    draws a number by its hash, and the tokens with the smallest numbers stay, so that a token in many texts
    is all but sure to be among them.
    """

    # Numbers as bytes: a list of thousands costs milliseconds to read.
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    vocabulary: DistinctSketch
    total: int = 0
    #: Little-endian 64-bit integers, row after row.
    counts: bytes
    #: Token to the smallest number that it drew.
    drawn: dict[str, int] = Field(default_factory=dict)

    @classmethod
    def of(cls, tokens: Any, counts: Any, drawn: Any, size: int) -> Self:
        """Of distinct tokens (objects), how often each occurs, and the smallest number that each drew."""
        hashes = hash_texts(tokens)
        rows = [np.bincount(p, weights=counts, minlength=_WIDTH) for p in _places(hashes)]
        first = np.argsort(drawn, kind="stable")[:_CANDIDATES]
        return cls(
            vocabulary=DistinctSketch.of(hashes, size),
            total=int(counts.sum()),
            counts=np.concatenate(rows).astype(_COUNT).tobytes(),
            drawn=dict(zip(tokens[first].tolist(), drawn[first].tolist(), strict=True)),
        )

    def add(self, other: TokenSketch) -> None:
        """Take in another part of the stream."""
        self.vocabulary.add(other.vocabulary)
        self.total += other.total
        self.counts = (self._table + other._table).tobytes()
        for token, number in other.drawn.items():
            self.drawn[token] = min(number, self.drawn.get(token, number))
        order = sorted((number, token) for token, number in self.drawn.items())
        self.drawn = {token: number for number, token in order[:_CANDIDATES]}

    def top(self, number: int) -> dict[str, int]:
        """The most frequent tokens and their counts, each at least as high as the truth."""
        tokens, table = sorted(self.drawn), self._table
        rows = [table[depth][places] for depth, places in enumerate(_places(hash_texts(tokens)))]
        counts = np.min(rows, axis=0).tolist()
        order = sorted(zip(tokens, counts, strict=True), key=lambda pair: (-pair[1], pair[0]))
        return dict(order[:number])

    def buckets(self, number: int) -> list[int]:
        """Occurrences in ``number`` (a power of two) buckets by hash: a distribution to compare."""
        folded: list[int] = self._table[0].reshape(-1, number).sum(axis=0).tolist()
        return folded

    @property
    def _table(self) -> Any:
        return np.frombuffer(self.counts, _COUNT).reshape(_DEPTH, _WIDTH)


def _places(hashes: Any) -> Iterator[Any]:
    for depth in range(_DEPTH):
        yield (mixed(hashes, depth) % np.uint64(_WIDTH)).astype(np.int64)
