"""Scoring of answers: labels read from text, Wilson's interval, McNemar's test."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from validation.models import compare, mcnemar_p, read_label, score, wilson_interval

LABELS = ["safe", "attack"]


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("safe", "safe"),
        (" Attack.\n", "attack"),
        ("**SAFE**", "safe"),
        ("ｓａｆｅ", "safe"),  # Full-width letters.
        ("attack safe", "attack"),
        ("unsafe", None),
        ("safe-ish", None),
        ("safest", None),
        ("The message is safe", None),
        ("", None),
        ("?!", None),
    ],
)
def test_the_first_word_is_the_label_or_none(answer: str, label: str | None) -> None:
    assert read_label(answer, LABELS) == label


def test_a_score_counts_valid_correct_and_each_class() -> None:
    expected = ["safe", "safe", "attack", "attack"]
    got = score(["safe", "attack", "Attack!", "what?"], expected, LABELS)
    assert (got.valid, got.correct, got.accuracy) == (3, 2, 0.5)
    assert got.classes["safe"].recall == 0.5
    assert got.classes["attack"].model_dump() == {"rows": 2, "correct": 1, "recall": 0.5}
    low, high = got.interval
    assert low < 0.5 < high


def test_a_class_without_rows_has_no_recall() -> None:
    assert score(["safe"], ["safe"], LABELS).classes["attack"].recall is None


def test_as_many_answers_as_rows() -> None:
    with pytest.raises(ValueError, match="argument"):
        score(["safe"], ["safe", "attack"], LABELS)


def test_wilson_agrees_with_the_literature() -> None:
    # Newcombe 1998, table I.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="5 successes"):
        wilson_interval(5, 4)


@settings(deadline=None)
@given(st.integers(0, 2000), st.integers(0, 2000))
def test_wilson_holds_the_share(first: int, second: int) -> None:
    successes, trials = min(first, second), max(first, second)
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= high <= 1
    if trials:
        assert low <= successes / trials + 1e-12
        assert high >= successes / trials - 1e-12


def test_mcnemar_agrees_with_the_binomial_test() -> None:
    assert mcnemar_p(0, 0) == 1.0
    assert mcnemar_p(5, 5) == 1.0
    assert mcnemar_p(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar_p(0, 5000) == 0.0  # Smaller than a float.


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_a_symmetric_probability(first: int, second: int) -> None:
    assert 0 <= mcnemar_p(first, second) <= 1
    assert mcnemar_p(first, second) == mcnemar_p(second, first)


def test_a_comparison_is_row_by_row() -> None:
    expected = ["safe", "safe", "attack", "attack"]
    answers = {"base": ["safe", "", "", ""], "tuned": ["attack", "safe", "attack", "attack"]}
    got = compare(answers, expected, LABELS)
    assert (got.only_tuned, got.only_base, got.gain) == (3, 1, 0.5)
    assert got.p_value == pytest.approx(mcnemar_p(1, 3))
