from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster.contracts import PolicyDocument
from cluster.errors import UsageError
from validation.guards import GuardEngine, default_policy, explain, load_policy, parse_policy
from validation.guards.coverage import coverage

GOOD = """
name: mine
version: 3
guards:
  - {name: pii, kind: pii, on: both, action: flag}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


NONE = {"record_text": "none"}


def test_naming_no_policy_means_the_shipped_default() -> None:
    assert load_policy() == load_policy("") == load_policy("default") == default_policy()
    kinds = {(guard.kind, guard.on, guard.action) for guard in default_policy().guards}
    assert {
        ("pii", "both", "redact"),
        ("secrets", "input", "block"),
        ("secrets", "output", "redact"),
    } <= kinds
    assert {("injection", "input", "block"), ("length", "both", "block")} <= kinds
    assert all(guard.on_error == "closed" and guard.mode == "enforce" for guard in default_policy().guards)


def test_a_policy_file_is_read_and_on_needs_no_quotes(tmp_path: Path) -> None:
    policy = load_policy(write(tmp_path, GOOD))
    assert (policy.name, policy.version, policy.guards[0].on) == ("mine", 3, "both")


def test_the_digest_follows_the_meaning_not_the_spelling(tmp_path: Path) -> None:
    policy = load_policy(write(tmp_path, GOOD))
    spelled_out = (
        GOOD.replace("action: flag", "action: flag, on_error: closed, timeout_s: 5") + "# a comment\n"
    )
    assert load_policy(write(tmp_path, spelled_out)).digest == policy.digest
    assert load_policy(write(tmp_path, GOOD.replace("flag", "block"))).digest != policy.digest
    assert re.fullmatch("[0-9a-f]{64}", policy.digest)


def test_a_published_policy_comes_back_equal() -> None:
    document = PolicyDocument.model_validate_json(default_policy().document().model_dump_json())
    assert parse_policy(document.body).digest == document.digest == default_policy().digest


GUARD = "- {name: pii, kind: pii, on: both, action: flag}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["expected a mapping"]),
        ("name: [", ["no YAML"]),
        (GOOD + "extra: 1", ["extra is no known key"]),
        (GOOD.replace("version: 3", "version: three"), ["version"]),
        (GOOD.replace("version: 3", "version: 2024-01-01"), ["unquoted date"]),
        ("a: &a [*a]", ["no form"]),
        (GOOD.replace("version: 3", "version: 3" + "0" * 5_000), ["cannot be read"]),
        (GOOD.replace(GUARD, "[]"), ["guards"]),
        (GOOD.replace("kind: pii", "kind: magic"), ["guards.0", "magic"]),
        (GOOD.replace("action: flag", "action: explode"), ["guards.0", "action"]),
        (GOOD.replace("action: flag", "entities: [SHOE_SIZE]"), ["entities", "EMAIL_ADDRESS"]),
        (GOOD.replace("action: flag", "timeout_s: '5'"), ["timeout_s"]),
        (GOOD + "  " + GUARD, ["two guards are named pii"]),
        (
            GOOD.replace("kind: pii, on: both, action: flag", "kind: injection, on: both, action: redact"),
            ["action"],
        ),
        (GOOD.replace("kind: pii", "kind: ban_list"), ["words"]),
        (GOOD.replace("kind: pii", "kind: guardrails, validator: os.system"), ["validator"]),
    ],
)
def test_a_wrong_policy_is_one_sentence(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        load_policy(write(tmp_path, text))
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    for word in ["mine.yaml", *words]:
        assert word in message


def test_a_policy_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    for name in ("nonsense", str(tmp_path / "gone.yaml"), str(tmp_path)):
        with pytest.raises(UsageError, match=r"no such policy; name a YAML file or one of default"):
            load_policy(name)


def test_the_coverage_matrix_names_every_guard() -> None:
    engine = GuardEngine(default_policy())
    rows = {row["guard"]: row for row in coverage(engine)}
    assert list(rows) == [guard.name for guard in default_policy().guards]
    assert rows["secrets-input"]["input"] == "block"
    assert rows["secrets-input"]["output"] == "-"
    assert rows["pii"]["stream_holds"] == 420
    assert default_policy().digest[:12] in explain(engine)


def test_what_may_be_recorded_is_said_only_when_it_is_not_the_default() -> None:
    body = {"name": "p", "version": 1, "guards": [{"name": "pii", "kind": "pii", "on": "both"}]}
    plain, same, more = (parse_policy(body | extra) for extra in ({}, NONE, {"record_text": "redacted"}))
    assert "record_text" not in plain.document().body, "gateways from before the field go on reading it"
    assert plain.digest == same.digest != more.digest
    assert parse_policy(more.document().body).record_text == "redacted"
