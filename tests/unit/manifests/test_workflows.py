"""The workflows, held against GitHub's schema, and against what they run; and the style of all YAML."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cluster.cli import cli
from cluster.errors import RefusedError

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
GITHUB = ROOT / ".github"
CI = GITHUB / "workflows" / "ci.yaml"


def check(path: Path, schema: str) -> str:
    """What is wrong with a file by a schema that check-jsonschema carries; nothing if all is well."""
    command = [BIN / "check-jsonschema", "--builtin-schema", schema, path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def yamllint(*paths: Path, cwd: Path = ROOT) -> str:
    command = [BIN / "yamllint", "--strict", "--format", "parsable", *paths]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=cwd).stdout


@pytest.mark.parametrize("path", sorted(GITHUB.glob("workflows/*")), ids=lambda path: path.name)
@pytest.mark.parametrize("schema", ["vendor.github-workflows", "custom.github-workflows-require-timeout"])
def test_a_workflow_has_githubs_form(path: Path, schema: str) -> None:
    assert check(path, schema) == ""


def test_the_action_has_githubs_form() -> None:
    assert check(GITHUB / "actions" / "setup" / "action.yaml", "vendor.github-actions") == ""


@pytest.mark.parametrize(
    ("schema", "old", "new", "said"),
    [
        ("vendor.github-workflows", "runs-on: ubuntu-24.04", "run-on: ubuntu-24.04", "run-on"),
        ("vendor.github-workflows", "steps:", "step:", "step"),
        ("vendor.github-workflows", "permissions: {contents: read}", "permissions: {contents: rw}", "rw"),
        ("vendor.github-workflows", "needs: [checks, tests]", "needs: 1", "needs"),
        ("custom.github-workflows-require-timeout", "timeout-minutes: 90", "name: tests", "timeout-minutes"),
    ],
)
def test_a_planted_mistake_is_named(tmp_path: Path, schema: str, old: str, new: str, said: str) -> None:
    text = CI.read_text()
    assert old in text
    path = tmp_path / "ci.yaml"
    path.write_text(text.replace(old, new, 1))
    assert said in check(path, schema)


def test_what_is_run_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    texts = [path.read_text() for path in GITHUB.rglob("*.yaml")]
    assert targets >= {target for text in texts for target in re.findall(r"\bmake ([a-z-]+)", text)}
    commands = set(cli().list_commands(None))  # type: ignore[arg-type]
    assert commands >= {word for text in texts for word in re.findall(r"\bbin/manta ([a-z-]+)", text)}


def test_the_regression_gate_keeps_the_accepted_scorecard_and_refuses_a_worse_one(tmp_path: Path) -> None:
    """With the workflow's own words, and a file in the place of the demo's evaluation."""
    (words,) = re.findall(r"bin/manta (compare .+)$", CI.read_text(), flags=re.MULTILINE)
    verb, baseline, newer = words.split()
    assert newer == "latest:prompt-shield"

    command = cli().get_command(None, verb)  # type: ignore[arg-type]
    assert command is not None  # Called without the frame, which would adopt a developer's own cluster.

    def run(file: Path) -> Result:
        return CliRunner().invoke(command, [str(ROOT / baseline), str(file)], standalone_mode=False)

    done = run(ROOT / baseline)
    assert done.exception is None
    assert done.output.count("kept: ") == 5
    scorecard = json.loads((ROOT / baseline).read_text())
    scorecard["models"]["tuned"]["accuracy"] -= 0.04
    worse = tmp_path / "scorecard.json"
    worse.write_text(json.dumps(scorecard))
    assert isinstance(run(worse).exception, RefusedError)


def test_all_yaml_has_one_style() -> None:
    assert yamllint(Path(".")) == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2\n", "duplication of key"),
        ("a: [1\n", "syntax error"),
        ("a: 1 \n", "trailing spaces"),
        ("a: yes\n", "truthy value"),
    ],
)
def test_a_planted_mistake_in_yaml_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    (tmp_path / ".yamllint.yaml").write_text((ROOT / ".yamllint.yaml").read_text())
    (tmp_path / ".gitignore").write_text("")
    assert said in yamllint(Path("x.yaml"), cwd=tmp_path)
