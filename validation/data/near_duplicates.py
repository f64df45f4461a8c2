"""Near duplicates by MinHash and bands (locality-sensitive hashing), in steps that a cluster can share.

A worker turns each document into a few band keys (:class:`MinHasher`). Rows with a band key in common are
candidates; they meet when the keys are partitioned by their value, and each partition gives edges
(:func:`bucket_edges`). All edges together make groups, of which the row with the lowest ordinal stays
(:func:`find_near_duplicates`). Rows are known by ordinals only: number them so that the row to prefer comes
first (test before train, say).

Names are those of datatrove's ``MinhashConfig``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from pydantic import Field

from validation.data.documents import Document
from validation.data.verdict import Rule
from validation.data.words import ENGLISH, mix, n_gram_keys, tokeniser

if TYPE_CHECKING:
    from numpy.typing import NDArray


class NearDuplicates(Rule):
    """Documents that share most of their word n-grams with an earlier one."""

    n_grams: int = Field(5, ge=1, description="Words in a shingle; shorter documents are one shingle.")
    num_buckets: int = Field(14, ge=1, description="Bands; one equal band makes two documents candidates.")
    hashes_per_bucket: int = Field(
        8,
        ge=1,
        description="MinHash values in a band. With 14 bands of 8, documents with Jaccard similarity 0.75 "
        "become candidates in 77 of 100 cases, with 0.5 in 5.",
    )
    seed: int = Field(1, ge=0, lt=2**64, description="Seed of the hash functions.")
    language: str = Field(ENGLISH, description="Language whose tokeniser makes the words.")

    def build(self) -> MinHasher:
        """What makes signatures. Raises UsageError for a language without a tokeniser."""
        return MinHasher(self)


class MinHasher:
    """Signatures and band keys of documents: the same in every process for one configuration."""

    def __init__(self, config: NearDuplicates) -> None:
        from rensa import RMinHash

        tokeniser(config.language)
        self._config, self._rensa = config, RMinHash
        self.num_perm = config.num_buckets * config.hashes_per_bucket

    def signatures(self, documents: Iterable[Document]) -> NDArray[np.uint32]:
        """A row of ``num_perm`` MinHash values for each document."""
        shingles = list(map(self._shingles, documents))
        ends = np.cumsum([0, *map(len, shingles)], dtype=np.uint64)
        flat = np.concatenate(shingles) if shingles else np.zeros(0, np.uint64)
        matrix = self._rensa.digest_matrix_from_flat_token_hashes(
            flat, ends, self.num_perm, self._config.seed
        )
        return np.array(matrix.to_rows(), np.uint32).reshape(len(shingles), self.num_perm)

    def bands(self, documents: Sequence[Document]) -> NDArray[np.uint64]:
        """A row of ``num_buckets`` band keys for each document. Keys of different bands do not meet."""
        return self.bands_of(self.signatures(documents))

    def bands_of(self, signatures: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """Band keys from signatures."""
        config = self._config
        rows = len(signatures)
        values = signatures.reshape(rows, config.num_buckets, config.hashes_per_bucket).astype(np.uint64)
        # A band's number is its seed: equal values in different bands make different keys.
        keys = np.broadcast_to(mix(np.arange(1, config.num_buckets + 1, dtype=np.uint64)), values.shape[:2])
        for place in range(config.hashes_per_bucket):
            keys = mix(keys ^ values[:, :, place])
        return keys

    def _shingles(self, document: Document) -> NDArray[np.uint64]:
        keys = n_gram_keys(document.words(self._config.language).keys(), self._config.n_grams)
        if len(keys):
            return keys
        # Without any word, only an equal text is near.
        digest = hashlib.blake2b(document.text.encode(errors="surrogatepass"), digest_size=16)
        return np.frombuffer(digest.digest(), np.uint64)


class Repeats(NamedTuple):
    """Rows that leave, in order, and for each the row that it repeats, which stays."""

    ordinals: NDArray[np.uint64]
    originals: NDArray[np.uint64]


def bucket_edges(ordinals: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Pairs (smallest ordinal of a bucket, other ordinal in it), as an array of two columns.

    ``ordinals`` and ``keys`` are two columns of one table with a row for each band of each document: all that
    fell into one partition of the keys. Equal keys make a bucket.
    """
    order = np.lexsort((ordinals, keys))
    keys, ordinals = keys[order], ordinals[order]
    first: NDArray[np.bool_] = np.ones(len(keys), np.bool_)
    first[1:] = keys[1:] != keys[:-1]
    heads = ordinals[np.maximum.accumulate(np.where(first, np.arange(len(keys)), 0))]
    edges = np.stack([heads, ordinals], axis=1)[heads != ordinals]
    return np.unique(edges, axis=0)


def find_near_duplicates(edges: Iterable[NDArray[np.uint64]]) -> Repeats:
    """Which rows leave: all of a connected group but the one with the lowest ordinal.

    Memory and time grow with the edges, not with the rows.
    """
    parts = [part for part in edges if len(part)]
    if not parts:
        return Repeats(np.zeros(0, np.uint64), np.zeros(0, np.uint64))
    ordinals, ends = np.unique(np.concatenate(parts), return_inverse=True)
    left, right = ends.reshape(-1, 2).T
    # Each row points to the lowest of its group found so far; rows are numbered in the order of ordinals.
    lowest = np.arange(len(ordinals))
    while True:
        low = np.minimum(lowest[left], lowest[right])
        np.minimum.at(lowest, lowest[left], low)
        np.minimum.at(lowest, lowest[right], low)
        while (lowest != (jumped := lowest[lowest])).any():
            lowest = jumped
        if (lowest[left] == lowest[right]).all():
            break
    leaves = lowest != np.arange(len(ordinals))
    return Repeats(ordinals[leaves], ordinals[lowest[leaves]])
