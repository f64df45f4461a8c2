"""The regression gate: what a newer evaluation may lose, as a function and as ``manta compare``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cluster.errors import MantaError, NotFoundError, RefusedError, UsageError
from tests.unit.test_model_gate import card
from validation.cli import compare
from validation.models import RegressionLimits, Scorecard, decide_regression


def test_an_equal_or_better_evaluation_is_kept() -> None:
    accepted = card(20, 180)
    for newer in (accepted, card(20, 190)):
        decision = decide_regression(accepted, newer, RegressionLimits())
        assert decision.passed
        assert len(decision.checks) == 5


def test_a_loss_within_the_limits_is_kept_and_one_more_row_is_not() -> None:
    limits = RegressionLimits(max_drop=0.03, max_recall_drop=1)
    assert decide_regression(card(20, 180), card(20, 174), limits).passed
    assert not decide_regression(card(20, 180), card(20, 173), limits).passed


@pytest.mark.parametrize(
    ("newer", "limits", "reason"),
    [
        (card(20, 170), {}, "accuracy is 85.0%, was 90.0% (87.0% required)"),
        (card(40, 180), {}, "gain over the base is 70.0%, was 80.0% (77.0% required)"),
        (card(20, 180, tuned_invalid=10), {}, "share of valid answers is 95.0%, was 100.0% (98.0% required)"),
        (card(20, 176), {"max_recall_drop": 0.01}, "recall of 'safe' is 88.0%, was 90.0% (89.0% required)"),
    ],
)
def test_each_loss_is_named_with_its_figures(newer: Scorecard, limits: dict[str, float], reason: str) -> None:
    decision = decide_regression(card(20, 180), newer, RegressionLimits(**limits))
    assert not decision.passed
    assert reason in decision.reasons


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": "other"}, "task shield in the baseline, other here"),
        ({"labels": ["a", "b"]}, "labels safe, attack"),
    ],
)
def test_what_cannot_be_compared_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        decide_regression(card(20, 180), card(20, 180).model_copy(update=change), RegressionLimits())


def test_another_number_of_rows_cannot_be_compared() -> None:
    with pytest.raises(UsageError, match="rows 200 in the baseline, 100 here"):
        decide_regression(card(20, 180), card(10, 90, rows=100), RegressionLimits())


def run(tmp_path: Path, old: Scorecard, new: Scorecard | str, *words: str) -> Result:
    files = [tmp_path / "old.json", tmp_path / "new.json"]
    for file, content in zip(files, (old, new), strict=True):
        file.write_text(content if isinstance(content, str) else content.model_dump_json())
    return CliRunner().invoke(compare, [*map(str, files), *words], standalone_mode=False)


def test_the_command_says_each_figure_and_fails_for_a_worse_one(tmp_path: Path) -> None:
    done = run(tmp_path, card(20, 180), card(20, 180))
    assert done.exception is None
    assert done.output.splitlines()[0] == "kept: accuracy is 90.0%, was 90.0% (87.0% required)"
    done = run(tmp_path, card(20, 180), card(20, 150))
    assert isinstance(done.exception, RefusedError)
    assert "WORSE: accuracy is 75.0%" in done.output
    assert "new.json is worse than" in str(done.exception)
    done = run(
        tmp_path, card(20, 180), card(20, 150), "--max-drop", "0.2", "--max-recall-drop", "0.4", "--json"
    )
    assert done.exception is None
    assert {check["passed"] for check in json.loads(done.output)["checks"]} == {True}
    worse = run(tmp_path, card(20, 180), card(20, 150), "--json")
    assert worse.return_value == 1
    assert False in {check["passed"] for check in json.loads(worse.output)["checks"]}


@pytest.mark.parametrize(
    ("text", "words", "error", "said"),
    [
        ("{}", (), UsageError, "is no scorecard: task: field required"),
        ("not json", (), UsageError, "is no scorecard"),
        (card(1, 2).model_dump_json(), ("--max-drop", "2"), UsageError, "limits: max_drop"),
        (
            card(1, 2).model_copy(update={"models": {}}).model_dump_json(),
            (),
            UsageError,
            "one has no model 'tuned'",
        ),
    ],
)
def test_what_the_command_cannot_read_is_one_sentence(
    tmp_path: Path, text: str, words: tuple[str, ...], error: type[MantaError], said: str
) -> None:
    done = run(tmp_path, card(1, 2), text, *words)
    assert isinstance(done.exception, error)
    assert said in str(done.exception)
    assert "\n" not in str(done.exception)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    words = [str(tmp_path / "no.json"), str(tmp_path / "no.json")]
    done = CliRunner().invoke(compare, words, standalone_mode=False)
    assert isinstance(done.exception, NotFoundError)
