"""Which of several equal or similar rows stays, whatever blocks and buckets they lie in; no Ray."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.preprocessing import duplicates
from jobs.preprocessing.duplicates import CROSSED, DECISIONS, decision_schema, gathered
from jobs.preprocessing.rows import file_of, line_of, ordinal

TRAIN = 1 << 63


def keys(rows: list[dict[str, Any]]) -> pa.Table:
    """As a marked block gives them: rows have a place, a key, an answer, and bands."""
    return pa.table(
        {
            "place": pa.array([row["place"] for row in rows], pa.uint64()),
            "key": pa.array([b"%016d" % row.get("key", 0) for row in rows], pa.binary(16)),
            "answer": pa.array([row.get("answer", 0) for row in rows], pa.uint64()),
            "bands": pa.array(
                [np.array(row["bands"], np.uint64).tobytes() if "bands" in row else None for row in rows],
                pa.binary(),
            ),
        }
    )


def in_buckets(table: pa.Table, split: Any, decide: Any, join: Any, buckets: int, blocks: int) -> pa.Table:
    """What the tasks of a shuffle do, one after another."""
    step = -(-len(table) // blocks) or 1
    parts = [split(table.slice(at, step), buckets) for at in range(0, len(table), step)]
    return join(*(decide(*(part[number] for part in parts)) for number in range(buckets)))


exact_rows = st.lists(
    st.tuples(st.integers(0, 5), st.booleans(), st.sampled_from([0, 0, 0, 1])), min_size=1, max_size=40
)


@settings(deadline=None)
@given(exact_rows, st.integers(1, 4), st.integers(1, 4))
def test_of_equal_rows_the_first_stays_and_none_of_contradicting_ones(
    drawn: list[tuple[int, bool, int]], buckets: int, blocks: int
) -> None:
    rows = [
        {"place": ordinal(0, line) | (TRAIN if train else 0), "key": key, "answer": answer}
        for line, (key, train, answer) in enumerate(drawn, start=1)
    ]
    random.Random(len(rows)).shuffle(rows)
    found = in_buckets(
        keys(rows), duplicates._split_keys, duplicates._decide_exact, gathered, buckets, blocks
    )
    expected = {}
    for key in {row["key"] for row in rows}:
        group = sorted((row for row in rows if row["key"] == key), key=lambda row: row["place"])
        contradict = len({row["answer"] for row in group}) > 1
        for row in group if contradict else group[1:]:
            code = 2 if contradict else int(group[0]["place"] < TRAIN <= row["place"])
            first = None if contradict else group[0]["place"] % TRAIN
            expected[row["place"] % TRAIN] = (code, first, len(group) - 1 if contradict else None)
    got = {row["ordinal"]: (row["code"], row["repeats"], row["score"]) for row in found.to_pylist()}
    assert got == expected
    assert found["ordinal"].to_pylist() == sorted(expected)
    assert {code for code, _, _ in got.values() if code in CROSSED} <= {1}
    assert DECISIONS[1][1] == "repeats a row of test"


@pytest.mark.parametrize("values", [30, 300, 3000])
@pytest.mark.parametrize("buckets", [1, 7])
def test_of_rows_alike_by_way_of_others_the_first_stays(values: int, buckets: int) -> None:
    rng, bands = random.Random(values), 4
    rows = [
        {
            "place": ordinal(0, line) | (TRAIN if rng.random() < 0.9 else 0),
            "bands": [rng.randrange(values) * bands + band for band in range(bands)],
        }
        for line in range(1, 501)
    ]
    gone_before = ordinal(0, 7)
    exact = duplicates.decided(*(np.array([value]) for value in (np.uint64(gone_before), 0, np.uint64(0), 0)))
    table = duplicates._bands(keys(rows), exact)
    found = in_buckets(table, duplicates._split_bands, duplicates._alike, duplicates._decide_near, buckets, 3)

    lowest = {row["place"]: row["place"] for row in rows}

    def root(place: int) -> int:
        return place if lowest[place] == place else root(lowest[place])

    for band in range(bands):
        first: dict[int, int] = {}
        for row in rows:
            if row["place"] % TRAIN == gone_before:
                continue
            here = first.setdefault(row["bands"][band], row["place"])
            one, other = sorted((root(here), root(row["place"])))
            lowest[other] = one
    expected = {place % TRAIN: root(place) % TRAIN for place in lowest if root(place) != place}
    assert dict(zip(found["ordinal"].to_pylist(), found["repeats"].to_pylist(), strict=True)) == expected


def test_nothing_is_decided_on_nothing() -> None:
    none = keys([])
    nothing = decision_schema().empty_table()
    assert duplicates._decide_exact(none).equals(nothing)
    assert duplicates._decide_near(duplicates._alike(duplicates._bands(none, nothing))).equals(nothing)
    assert gathered().equals(nothing)


def test_a_place_can_be_told_from_an_ordinal() -> None:
    number = ordinal(2**23 - 1, 2**32 - 1, 255)
    assert number < 2**63
    assert (file_of(number), line_of(number)) == (2**23 - 1, 2**32 - 1)
