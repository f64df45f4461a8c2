import random

import numpy as np
import pytest

from tests.unit.text.texts import package_texts, prose
from validation.data.documents import Document
from validation.data.near_duplicates import (
    NearDuplicates,
    bucket_edges,
    find_near_duplicates,
)


def _edges(hasher, texts, partitions):
    bands = hasher.bands([Document(text) for text in texts])
    ordinals = np.repeat(np.arange(len(texts), dtype=np.uint64), bands.shape[1])
    keys = bands.ravel()
    return [
        bucket_edges(ordinals[keys % np.uint64(partitions) == n], keys[keys % np.uint64(partitions) == n])
        for n in range(partitions)
    ]


def _varied(text, share, seed):
    rng = random.Random(seed)
    return " ".join(f"{word}x" if rng.random() < share else word for word in text.split(" "))


def test_of_near_duplicates_the_first_stays():
    texts = [
        prose(40),
        "Something else: " + prose(40, 100),
        _varied(prose(40), 0.01, 1),
        prose(40).upper().replace(".", " ;"),
        _varied(prose(40, 100), 0.01, 2),
        _varied(prose(40), 0.6, 3),
        "short text",
        "another short text",
        "Short: text!",
        "...",
        "!!!",
        "...",
        "",
    ]
    hasher = NearDuplicates().build()
    for partitions in (1, 3, 8):
        repeats = find_near_duplicates(_edges(hasher, texts, partitions))
        assert repeats.ordinals.tolist() == [2, 3, 4, 8, 11]
        assert repeats.originals.tolist() == [0, 0, 1, 6, 9]
        assert repeats.ordinals.dtype == repeats.originals.dtype == np.uint64


def test_band_keys_do_not_depend_on_the_company():
    texts = [prose(20, 100 * n) for n in range(5)]
    hasher = NearDuplicates().build()
    together = hasher.bands([Document(text) for text in texts])
    alone = np.concatenate([NearDuplicates().build().bands([Document(text)]) for text in reversed(texts)])
    assert (together == alone[::-1]).all()
    # A word that spaCy reads otherwise the second time changes nothing.
    odd = Document("IS_ALPHA " + texts[0]), Document("IS_ALPHA " + texts[0])
    assert (hasher.bands(odd[:1]) == hasher.bands(odd[1:])).all()
    assert len(np.unique(together)) == together.size
    assert together.shape == (5, 14)
    assert hasher.bands([]).shape == (0, 14)
    other = NearDuplicates(seed=2, num_buckets=4, hashes_per_bucket=3).build()
    assert other.bands([Document(texts[0])]).shape == (1, 4)
    assert other.num_perm == 12


def test_signatures_agree_as_the_texts_do():
    text = prose(150)
    documents = [Document(text), Document(_varied(text, 0.03, 1)), Document(_varied(text, 0.1, 2))]
    signatures = NearDuplicates(num_buckets=64, hashes_per_bucket=8).build().signatures(documents)
    shingles = []
    for document in documents:
        words = document.text.lower().replace(".", "").split()
        shingles.append({tuple(words[i : i + 5]) for i in range(len(words) - 4)})
    for other in (1, 2):
        jaccard = len(shingles[0] & shingles[other]) / len(shingles[0] | shingles[other])
        assert (signatures[0] == signatures[other]).mean() == pytest.approx(jaccard, abs=0.1)


def test_groups_are_connected_components():
    rng = random.Random(4)
    for size in (0, 1, 5, 300):
        edges = np.array(
            [[rng.randrange(2**60), rng.randrange(2**60)] for _ in range(size)]
            + [[n, n + 1] for n in range(7, 7 + 3 * size)],
            np.uint64,
        ).reshape(-1, 2)
        rng.shuffle(chosen := edges.tolist())
        group = {}
        for left, right in chosen:
            whole = group.get(left, {left}) | group.get(right, {right})
            group |= dict.fromkeys(whole, whole)
        expected = {row: min(whole) for row, whole in group.items() if row != min(whole)}
        halves = [np.array(chosen[::2], np.uint64).reshape(-1, 2), np.array(chosen[1::2], np.uint64)]
        repeats = find_near_duplicates(halves)
        assert repeats.ordinals.tolist() == sorted(expected)
        assert repeats.originals.tolist() == [expected[row] for row in sorted(expected)]


def test_real_texts_repeat_when_they_are_given_twice():
    texts = package_texts()[:40]
    hasher = NearDuplicates().build()
    once = find_near_duplicates(_edges(hasher, texts, 4))
    twice = find_near_duplicates(_edges(hasher, [*texts, *texts], 4))
    assert set(range(40, 80)) <= set(twice.ordinals.tolist())
    assert [n for n in twice.ordinals.tolist() if n < 40] == once.ordinals.tolist()
