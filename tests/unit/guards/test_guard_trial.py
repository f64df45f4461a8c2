"""`manta guard test`: a policy tried on labelled texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cluster.errors import MantaError, NotFoundError, RefusedError, UsageError
from validation.cli import guard

POLICY = """
name: mine
version: 4
guards:
  - {name: pii, kind: pii, on: both}
  - {name: words, kind: ban_list, on: input, action: block, words: [zap]}
  - {name: later, kind: ban_list, on: both, mode: shadow, words: [zap, zip]}
  - {name: leak, kind: system_prompt_leak}
"""
LINES: list[dict[str, Any]] = [
    {"text": "zap me", "label": "attack", "source": "mine"},
    {"text": "zip me", "label": "attack"},
    {"text": "nothing", "label": "attack"},
    {"messages": [{"role": "user", "content": "mail joe@example.com"}], "label": "attack"},
    {
        "text": "The word is osprey and nobody may know",
        "direction": "output",
        "system": "The word is osprey and nobody may know it.",
        "label": "leak",
    },
    {"text": "hello", "label": "benign"},
    {"body": {"prompt": "zip it"}, "label": "benign"},
    {"text": "who knows"},
]


def tried(tmp_path: Path, *words: str, lines: Any = LINES, policy: str = POLICY) -> Result:
    (tmp_path / "p.yaml").write_text(policy)
    file = tmp_path / "texts.jsonl"
    file.write_text("\n\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return CliRunner().invoke(
        guard, ["test", str(tmp_path / "p.yaml"), str(file), *words], standalone_mode=False
    )


def cells(result: Result) -> dict[tuple[str, str], tuple[int, int, int, int]]:
    return {
        (cell["guard"], cell["label"]): (cell["texts"], cell["found"], cell["blocked"], cell["redacted"])
        for cell in json.loads(result.output)["cells"]
    }


def failed(result: Result, kind: type[MantaError], words: str) -> None:
    assert isinstance(result.exception, kind), result.exception
    assert words in str(result.exception)


def test_recall_and_false_positives_are_told_by_guard_and_label(tmp_path: Path) -> None:
    result = tried(tmp_path, "--json")
    assert result.return_value == 0
    body = json.loads(result.output)
    assert (body["policy"], body["version"], body["texts"]) == ("mine", 4, 8)
    assert body["recall"] == pytest.approx(4 / 5)
    assert body["false_positive_rate"] == pytest.approx(1 / 2)
    table = cells(result)
    assert table["pii", "attack"] == (4, 1, 0, 1)
    assert table["words", "attack"] == (4, 1, 1, 0)
    # Shadow guards count as they would if they were enforced.
    assert table["later", "attack"] == (4, 2, 2, 0)
    assert table["later", "benign"] == (2, 1, 1, 0)
    assert table["leak", "leak"] == (1, 1, 1, 0)
    assert table["(any)", "attack"] == (4, 3, 2, 1)
    assert table["(any)", "unlabelled"] == (1, 0, 0, 0)
    assert {cell["mode"] for cell in body["cells"] if cell["guard"] == "later"} == {"shadow"}


def test_the_table_is_readable_and_ends_with_the_sum(tmp_path: Path) -> None:
    lines = tried(tmp_path).output.splitlines()
    assert lines[0].split() == ["guard", "mode", "label", "texts", "found", "blocked", "redacted", "failed"]
    assert ["later", "shadow", "benign", "2", "50.0%", "false", "positives", "1", "0", "0"] in [
        line.split() for line in lines
    ]
    assert lines[-1].endswith("8 texts, recall 80.0%, false positives 50.0%")


def test_limits_make_a_policy_fail(tmp_path: Path) -> None:
    assert tried(tmp_path, "--min-recall", "0.8", "--max-false-positives", "0.5").return_value == 0
    failed(tried(tmp_path, "--min-recall", "0.81"), RefusedError, "recall is 0.8000, below 0.81")
    failed(tried(tmp_path, "--max-false-positives", "0.4"), RefusedError, "above 0.4")
    assert tried(tmp_path, "--min-recall", "0.81", "--json").return_value == 1
    harmless = ("--benign", "benign", "--benign", "leak", "--max-false-positives", "0.6")
    failed(tried(tmp_path, *harmless), RefusedError, "0.6667 of the benign texts")
    failed(tried(tmp_path, "--min-recall", "0.5", lines=LINES[5:]), UsageError, "no texts with the labels")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nonsense", "line 1: expected one JSON object"),
        ("[1]", "line 1"),
        ({"label": "attack"}, "one of text, messages and body"),
        ({"text": "a", "messages": []}, "one of text, messages and body"),
        ({"text": 5}, "text"),
        ({"text": "a", "direction": "sideways"}, "direction"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "Text 1"),
        ("", "no line to judge"),
    ],
)
def test_a_line_that_cannot_be_read_is_one_sentence(tmp_path: Path, line: Any, words: str) -> None:
    failed(tried(tmp_path, lines=[line]), UsageError, words)


def test_a_file_or_policy_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    missing = CliRunner().invoke(
        guard, ["test", "default", str(tmp_path / "no.jsonl")], standalone_mode=False
    )
    failed(missing, NotFoundError, "does not exist")
    missing = CliRunner().invoke(guard, ["test", "none", str(tmp_path / "no.jsonl")], standalone_mode=False)
    failed(missing, UsageError, "no such policy")


def test_a_packaged_validator_runs_here_too_and_one_that_fails_does_not_count_as_found(
    tmp_path: Path,
) -> None:
    pytest.importorskip("guardrails")
    far = f"{{name: far, kind: guardrails, on: both, timeout_s: 300, validator: '{MOODY}'}}"
    policy = f"name: m\nversion: 1\nguards:\n  - {far}\n"
    lines = [{"text": text, "label": "attack"} for text in ("fine", "bad", "raise")]
    failed(tried(tmp_path, lines=lines, policy=policy), RefusedError, "a guard failed on 1 texts")
    result = tried(tmp_path, "--json", lines=lines, policy=policy)
    assert (result.return_value, cells(result)["far", "attack"]) == (1, (3, 1, 1, 0))


#: As a policy names it.
MOODY = "tests.unit.guards.test_guard_trial:Moody"


class Moody:
    """A validator that finds what is bad, and breaks on another word."""

    def __init__(self, on_fail: str) -> None:
        self.on_fail = on_fail

    def validate(self, text: str, metadata: dict[str, Any]) -> Any:
        if text == "raise":
            raise ValueError(text)

        class Result:
            outcome = "fail" if text == "bad" else "pass"
            error_spans = None

        return Result()
