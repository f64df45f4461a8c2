"""The gate: each limit alone, and the words in which it refuses."""

from __future__ import annotations

import pytest

from validation.models import GateConfig, Scorecard, compare, decide, score

LABELS = ["safe", "attack"]


def card(base_right: int, tuned_right: int, rows: int = 200, tuned_invalid: int = 0) -> Scorecard:
    """Rows alternate; each model is right on the first so many, and the tuned one invalid on the last."""
    expected = [LABELS[number % 2] for number in range(rows)]
    wrong = {"safe": "attack", "attack": "safe"}

    def answers(right: int, invalid: int = 0) -> list[str]:
        given = [label if number < right else wrong[label] for number, label in enumerate(expected)]
        return given[: rows - invalid] + ["?"] * invalid

    given = {"base": answers(base_right), "tuned": answers(tuned_right, tuned_invalid)}
    return Scorecard(
        task="shield",
        rows=rows,
        labels=LABELS,
        models={name: score(found, expected, LABELS) for name, found in given.items()},
        comparison=compare(given, expected, LABELS),
    )


def test_a_clear_gain_passes_and_every_check_says_so() -> None:
    decision = decide(card(20, 180), GateConfig(min_accuracy=0.8, min_recall=0.8, min_gain=0.2))
    assert decision.passed
    assert decision.reasons == []
    assert [check.name for check in decision.checks] == [
        "min_rows",
        "min_accuracy",
        "min_valid",
        "min_recall[safe]",
        "min_recall[attack]",
        "min_gain",
        "max_p_value",
    ]


@pytest.mark.parametrize(
    ("scores", "gate", "reason"),
    [
        (card(5, 45, rows=50), {}, "scored rows is 50 (100 required)"),
        (card(20, 140), {"min_accuracy": 0.8}, "accuracy is 70.0% (80.0% required)"),
        (
            card(20, 180, tuned_invalid=20),
            {},
            "share of valid answers is 90.0% (95.0% required)",
        ),
        (card(20, 150), {"min_recall": 0.9}, "recall of 'safe' is 75.0% (90.0% required)"),
        (card(150, 160), {"min_gain": 0.1}, "gain over the base is 5.0% (10.0% required)"),
        (card(150, 140), {}, "gain over the base is -5.0% (0.0% required)"),
        (card(150, 153), {}, "the difference to the base may be chance (p 0.25, 0.05 allowed)"),
    ],
)
def test_each_limit_refuses_with_its_figures(scores: Scorecard, gate: dict, reason: str) -> None:
    decision = decide(scores, GateConfig(**gate))
    assert not decision.passed
    assert reason in decision.reasons


def test_an_absent_limit_is_not_checked() -> None:
    gate = GateConfig(min_valid=None, min_gain=None, max_p_value=None)
    assert [check.name for check in decide(card(150, 140), gate).checks] == ["min_rows"]


def test_a_class_without_rows_refuses() -> None:
    expected, given = ["safe"] * 120, {"base": ["?"] * 120, "tuned": ["safe"] * 120}
    lopsided = Scorecard(
        task="shield",
        rows=120,
        labels=LABELS,
        models={name: score(found, expected, LABELS) for name, found in given.items()},
        comparison=compare(given, expected, LABELS),
    )
    reasons = decide(lopsided, GateConfig(min_recall=0.5)).reasons
    assert reasons == ["recall of 'attack' is unknown: no row of the kind was scored (50.0% required)"]
