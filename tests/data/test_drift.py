"""Drift is seen where there is some, and not where samples of one distribution merely differ."""

from __future__ import annotations

import math
import random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import UsageError
from validation.data.drift import compare_profiles, js_distance, psi, psi_noise
from validation.data.profile import Profile, ProfileSpec, merge_profiles, profile_block
from validation.data.sketches import hash_texts

SPEC = ProfileSpec(split=None, texts=["text"], numbers={"score": [0, 0.25, 0.5, 0.75]}, categories=["label"])
COUNTS = st.lists(st.integers(0, 1000), min_size=4, max_size=4)


def profile(rows: int, seed: int, *, letter: str = "w", length: int = 20, share: float = 0.5) -> Profile:
    draw = random.Random(seed)
    texts = [
        " ".join(f"{letter}{int(draw.paretovariate(1)) % 200}" for _ in range(length)) for _ in range(rows)
    ]
    columns = {
        "text": texts,
        "score": [draw.random() for _ in range(rows)],
        "label": [str(draw.random() < share) for _ in range(rows)],
    }
    return merge_profiles(SPEC, [profile_block(SPEC, pa.table(columns))])


def test_the_measures_are_those_of_their_definitions() -> None:
    # (0.6 - 0.4) ln(0.6 / 0.4) twice, on counts so large that half a row more is nothing.
    assert psi([6 * 10**9, 4 * 10**9], [4 * 10**9, 6 * 10**9]) == pytest.approx(0.4 * math.log(1.5))
    assert js_distance([1, 0], [0, 1]) == 1
    # By hand: m = (3/4, 1/4); (log2(4/3) + log2(2/3) / 2 + log2(2) / 2) / 2.
    assert js_distance([2, 0], [3, 3]) ** 2 == pytest.approx(
        (math.log2(4 / 3) + math.log2(2 / 3) / 2 + math.log2(2) / 2) / 2
    )


@settings(deadline=None)
@given(COUNTS, COUNTS)
def test_distances_are_symmetric_and_none_from_itself(counts: list[int], others: list[int]) -> None:
    assert psi(counts, counts) == pytest.approx(0)
    assert js_distance(counts, counts) == 0
    assert psi(counts, others) == pytest.approx(psi(others, counts))
    assert psi(counts, others) >= -1e-12
    assert 0 <= js_distance(counts, others) <= 1 + 1e-12
    assert js_distance(counts, others) == pytest.approx(js_distance(others, counts), abs=1e-9)


def test_noise_is_rarely_exceeded_by_samples_of_one_distribution() -> None:
    draw = random.Random(7)
    beyond = 0
    for _ in range(1000):
        first, second = ([0] * 12, [0] * 12)
        for counts, size in ((first, 150), (second, 400)):
            for _ in range(size):
                counts[draw.randrange(12)] += 1
        beyond += psi(first, second) > psi_noise(first, second)
    assert beyond <= 10


@pytest.mark.parametrize(("rows", "before"), [(60, 60), (3000, 300)])
def test_two_samples_of_one_source_are_stable(rows: int, before: int) -> None:
    found = compare_profiles(profile(rows, 1), profile(before, 2))
    assert {c.column: c.verdict for c in found.columns} == dict.fromkeys(
        ["text.characters", "text.words", "score", "label", "text"], "stable"
    )
    assert found.verdict == "stable"
    assert found.rows_change == rows / before - 1


@pytest.mark.parametrize(
    ("change", "columns"),
    [
        # Other words: the same lengths.
        ({"letter": "v"}, ["text"]),
        ({"length": 60}, ["text.characters", "text.words"]),
        ({"share": 0.9}, ["label"]),
    ],
)
def test_what_changed_is_named_and_nothing_else(change: dict[str, Any], columns: list[str]) -> None:
    found = compare_profiles(profile(2000, 1, **change), profile(2000, 2))
    drifted = [c.column for c in found.beyond("stable")]
    assert drifted == columns
    assert found.verdict != "stable"


def test_a_value_more_than_a_column_has_room_for_is_no_drift() -> None:
    spec = ProfileSpec(split=None, categories=["label"])
    values = [f"v{n}" for n in range(256)]
    # The value that has to go when there is one more.
    last = values[int(hash_texts(values).argmax())]
    assert hash_texts(["new"])[0] < hash_texts([last])[0]
    before, now, other = (
        merge_profiles(spec, [profile_block(spec, pa.table({"label": [*values, *labels]}))])
        for labels in ([last] * 9000, [last] * 9000 + ["new"], ["v1"] * 9000 + ["new"])
    )
    assert now.categories["label"].capped
    assert last not in now.categories["label"].counts
    for first, second in ((now, before), (before, now), (now, now)):
        assert compare_profiles(first, second).columns[0].psi < 0.01
    for first, second in ((other, before), (now, other)):
        assert compare_profiles(first, second).columns[0].verdict == "large"


def test_overlap_of_vocabularies_is_estimated() -> None:
    tables = [pa.table({"text": [f"w{i}" for i in range(a, b)]}) for a, b in ((0, 9000), (3000, 12000))]
    spec = ProfileSpec(split=None, texts=["text"])
    first, second = (merge_profiles(spec, [profile_block(spec, t)]) for t in tables)
    shared = compare_profiles(first, second).columns[-1].vocabulary_overlap
    assert shared == pytest.approx(0.5, abs=0.05)


def test_other_bins_are_refused_and_other_columns_named() -> None:
    spec = SPEC.model_copy(update={"numbers": {"score": [0, 1]}})
    with pytest.raises(UsageError, match="score stand on different bins"):
        compare_profiles(profile(10, 1), merge_profiles(spec, [profile_block(spec, _scores())]))
    narrow = ProfileSpec(split=None, numbers=SPEC.numbers)
    found = compare_profiles(profile(10, 1), merge_profiles(narrow, [profile_block(narrow, _scores())]))
    assert found.only_here == ["label", "text (tokens)", "text.characters", "text.words"]
    assert [c.column for c in found.columns] == ["score"]


def _scores() -> pa.Table:
    return pa.table({"text": ["a"], "score": [0.5], "label": ["x"]})
