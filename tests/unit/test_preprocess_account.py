"""Counts, tolerances and digests of preprocessing; no Ray."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from typing import Any

import pytest

from cluster.storage import merge_row_digests
from jobs.preprocessing.account import Tally, Tolerance, name, nested
from jobs.preprocessing.digest import _borders, _cut, _in_order, _sample
from jobs.preprocessing.writing import digests, kind_of
from validation.data.verdict import Rule


@pytest.mark.parametrize(
    ("rule", "broken", "fails"),
    [
        ({}, 100, False),
        ({"mostly": 0.9}, 10, False),
        ({"mostly": 0.9}, 11, True),
        ({"action": "fail"}, 1, True),
        ({"action": "fail"}, 0, False),
        ({"action": "fail", "mostly": 0.9}, 10, False),
        ({"action": "warn", "mostly": 1}, 100, False),
    ],
)
def test_more_broken_rows_than_a_rule_allows_fail_the_job(
    rule: dict[str, Any], broken: int, fails: bool
) -> None:
    tally = Tally(judged=Counter(language=100), broken=Counter(language=broken))
    said = tally.too_many(Tolerance.of("language", "language", Rule(**rule)))
    assert (said is not None) is fails
    assert said is None or said.startswith(f"language [{broken} of 100 rows do not pass")


def test_a_rule_that_judged_nothing_fails_nothing() -> None:
    tally = Tally(broken=Counter(near_duplicates=3))
    assert tally.too_many(Tolerance("near_duplicates", "near_duplicates", "drop", 1.0)) is None


def test_what_a_stage_did_is_told_in_a_line() -> None:
    rules = [
        Tolerance("quality", "gopher_quality", "drop", 0.0),
        Tolerance("quality", "c4_quality", "warn", 0.0),
        Tolerance("personal_data", "personal_data", "drop", 0.0),
        Tolerance("language", "language", "drop", 0.0),
    ]
    tally = Tally(
        judged=Counter({"quality/gopher_quality": 40, "personal_data": 37, "language": 40}),
        broken=Counter({"quality/gopher_quality": 3, "quality/c4_quality": 1, "personal_data": 2}),
        rows=Counter(read=40, masked=1),
        entities=Counter(EMAIL_ADDRESS=2),
    )
    said = {stage: tally.told_of(stage, rules) for stage in ("quality", "personal_data", "language")}
    assert said == {
        "quality": "quality: 3 rows dropped (gopher_quality 3), 1 row told of, and kept (c4_quality 1), of "
        "40 rows judged",
        "personal_data": "personal_data: 1 row changed (EMAIL_ADDRESS 2), 2 rows dropped, of 37 rows judged",
        "language": "language: 0 rows dropped, of 40 rows judged",
    }
    assert (tally.came_in, tally.counts) == ("40 rows read", {"input": 40})
    tally.rows["augmented"] = 1
    assert tally.came_in == "40 rows read and 1 made of them by augment"
    assert tally.counts == {"input": 40, "augmented": 1}


def test_tallies_of_blocks_add_up() -> None:
    one = Tally(dropped=Counter({name("quality", "short"): 2}), rows=Counter(read=5))
    other = Tally.from_bytes(one.to_bytes())
    assert other == one
    one.add(other)
    assert one.rows["read"] == 10
    assert nested(one.dropped) == {"quality": {"short": 4}}


@pytest.mark.parametrize(
    ("stage", "reason", "kind"),
    [
        ("read", "a.jsonl line 7: broken JSON.", "cannot be read"),
        (
            "shape",
            "label is '7', for which the template has no value",
            "label is …, for which the template has no value",
        ),
        ("language", "language_de", "language_de"),
    ],
)
def test_reasons_are_counted_without_the_rows_own_values(stage: str, reason: str, kind: str) -> None:
    assert kind_of(stage, reason) == kind


@pytest.mark.parametrize("ranges", [1, 2, 5])
def test_a_digest_in_ranges_is_that_of_all_rows(ranges: int) -> None:
    rng = random.Random(ranges)
    ids = [rng.choice(["a", "ä", "z", "\U0001f600", "\uffee"]) + str(number) for number in range(500)]
    pairs = [(i, hashlib.sha256(i.encode()).digest()) for i in ids]
    tables = [digests([{"row_id": i} for i in ids[at : at + 90]]) for at in range(0, 500, 90)]
    whole = merge_row_digests(
        (i, d)
        for table in tables
        for i, d in zip(*(table[c].to_pylist() for c in ("id", "digest")), strict=True)
    )
    tables.append(digests([]))  # Of a block of which no row is kept.
    borders = _borders([_sample(table) for table in tables], ranges)
    assert len(borders) == ranges - 1
    pieces = [_cut(table, borders) for table in tables]
    parts = [_in_order(*(piece[number] for piece in pieces)) for number in range(len(borders) + 1)]
    assert hashlib.sha256(b"".join(bytes(part) for part in parts)).hexdigest() == whole
    assert len(pairs) == sum(len(part) for part in parts) // 32
