"""Several models on the same prompts: who is right more often, who is faster, and what it costs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cluster.contracts import Manifest
from cluster.errors import RefusedError, UsageError
from cluster.storage import ArtifactStore
from jobs.batch.figures import SideBySide
from tests.conftest import S3
from tests.warm_stub import StubBatches, asked, publish, write_prompts

pytestmark = pytest.mark.integration
#: Whether a row is an attack; "careless" finds every second one, "sloppy" answers what is no label.
ROWS = [(f"Message {number}", "attack" if number % 3 == 0 else "safe") for number in range(60)]


def say(model: str, text: str) -> str:
    number = int(text.split()[-1])
    right = dict(ROWS)[f"Message {number}"]
    if model.startswith("careful"):
        return f" {right.title()}."
    if model.startswith("careless"):
        return right if number % 2 else "safe"
    return "I cannot say" if number % 5 == 0 else right


@pytest.fixture
def batches(s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StubBatches:
    """Batches of rows with a right answer."""
    lines = ["id,text,right", *(f"row-{number},{text},{right}" for number, (text, right) in enumerate(ROWS))]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    found = StubBatches(monkeypatch, tmp_path, say)
    found.source = {"path": str(tmp_path / "rows.csv"), "prompt_column": "text", "id_column": "id"}
    return found


@pytest.fixture
def models(s3: S3) -> dict[str, str]:
    """Public names by what their models are like; each has weights of its own."""
    names = ("careful", "careless", "sloppy")
    return {name: publish(f"{name}-{os.urandom(4).hex()}", os.urandom(32).hex()) for name in names}


def report(artifacts: ArtifactStore, manifest: Manifest) -> SideBySide:
    return SideBySide.model_validate_json(artifacts.read(manifest, "comparison.json"))


def test_models_are_scored_on_the_same_rows_and_told_apart(
    batches: StubBatches,
    models: dict[str, str],
    artifacts: ArtifactStore,
    capsys: pytest.CaptureFixture[str],
) -> None:
    careless, careful, sloppy = models["careless"], models["careful"], models["sloppy"]
    alone = batches.run("pick", careful)
    fields: dict[str, Any] = {
        "compare": [careful, sloppy],
        "source": {**batches.source, "expected_column": "right"},
        "price": {"input_per_million_tokens": 1, "output_per_million_tokens": 10},
        "comparison": {
            "labels": ["safe", "attack"],
            "prices": {sloppy: {"input_per_million_tokens": 0, "output_per_million_tokens": 1}},
        },
    }
    result = batches.run("pick", careless, **fields)
    manifest = artifacts.open(result.artifact)
    found = report(artifacts, manifest)
    base, best, third = found.models
    assert manifest.ref.kind == "comparison"
    assert manifest.counts == {"rows": 60, "models": 3, "failed": 0}
    assert [item.address for item in manifest.inputs] == [model.batch for model in found.models]
    # A batch that was made before is found: it is an ordinary one.
    assert (best.batch, best.reused, base.reused) == (alone.artifact, True, False)
    assert asked(batches.log).total() == 180

    assert base.score is not None
    assert best.score is not None
    assert third.score is not None
    assert (base.score.accuracy, best.score.accuracy, third.score.accuracy) == (50 / 60, 1.0, 48 / 60)
    assert (base.score.classes["attack"].correct, third.score.valid) == (10, 48)
    assert base.against_baseline is None
    assert best.against_baseline is not None
    assert best.against_baseline.only_tuned == 10
    assert best.against_baseline.p_value == pytest.approx(2 / 2**10)
    same = {pair.models: pair.same for pair in found.agreement}
    assert same == {(careless, careful): 50, (careless, sloppy): 40, (careful, sloppy): 48}
    assert base.cost == pytest.approx(60 * (20 * 1 + 12 * 10) / 1e6)
    assert third.cost == pytest.approx(60 * 12 / 1e6)
    assert 0 < (base.p50_s or 0) <= (base.p95_s or 0)
    assert (base.tokens_per_s or 0) > 0

    said = capsys.readouterr().out
    assert "| right answers (95 % interval) | 83.3% (" in said
    assert "+16.7 points, p = 0.002" in said
    written = artifacts.read(manifest, "comparison.md").decode()
    assert written.count("| row-") == 5
    assert "corrected for how many" in written

    again = batches.run("pick", careless, **fields)
    assert (again.artifact, again.reused) == (result.artifact, True)
    assert asked(batches.log).total() == 180
    from jobs.cli import batch

    for named in (result.artifact, manifest.run_id):
        shown = CliRunner().invoke(batch, ["show", named], catch_exceptions=False).output
        assert shown.strip() == written.strip()


def test_without_right_answers_no_quality_is_made_up(
    batches: StubBatches, models: dict[str, str], artifacts: ArtifactStore, tmp_path: Path
) -> None:
    lines = []
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    for number in range(10):
        body: dict[str, Any] = {"messages": [{"role": "user", "content": f"Message {number}"}]}
        if number < 4:
            body["response_format"] = form
        line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
        lines.append(json.dumps(line))
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    source = {"path": str(tmp_path / "prompts.jsonl")}
    compared = {"compare": [models["sloppy"]], "source": source, "output": {"formats": ["jsonl"]}}
    result = batches.run("plain", models["careful"], **compared)
    found = report(artifacts, artifacts.open(result.artifact))
    first = found.models[0]
    assert first.score is None
    assert (first.json_asked, first.json_valid) == (4, 0)
    assert found.agreement[0].rows == 10
    assert any("nothing here says whether an answer is right" in note for note in found.notes)
    paths = {file.path.partition("/")[0] for file in artifacts.open(first.batch).files}
    assert paths == {"jsonl", "output", "errors", "policy.json"}


def test_a_model_that_fails_costs_the_others_nothing(
    batches: StubBatches, models: dict[str, str], artifacts: ArtifactStore
) -> None:
    with pytest.raises(
        RefusedError, match=r"1 of 3 models failed: nobody: No model 'nobody' is deployed"
    ) as told:
        batches.run("one-away", models["careful"], compare=["nobody", models["sloppy"]])
    address = str(told.value).rstrip(".").split()[-1]
    found = report(artifacts, artifacts.open(address))
    assert [model.model for model in found.models] == [models["careful"], models["sloppy"]]
    assert "No model 'nobody' is deployed" in found.failed["nobody"]
    with pytest.raises(RefusedError, match=r"^No model could be asked: nobody: .*noone: "):
        batches.run("all-away", "nobody", compare=["noone"])


def test_what_cannot_be_compared_is_refused_before_anything_runs(
    batches: StubBatches, models: dict[str, str], tmp_path: Path
) -> None:
    careful, sloppy = models["careful"], models["sloppy"]
    labels = {"labels": ["safe", "attack"]}
    with pytest.raises(
        RefusedError, match=r"Row row-0 has no expected answer .*name source\.expected_column"
    ):
        batches.run("bad", careful, compare=[sloppy], comparison=labels)
    source = {**batches.source, "expected_column": "text"}
    with pytest.raises(RefusedError, match=r"Row row-0 expects an answer that is no label"):
        batches.run("bad", careful, compare=[sloppy], comparison=labels, source=source)
    with pytest.raises(ValueError, match="compared with itself"):
        batches.run("bad", careful, compare=[careful])
    prices = {"other": {"input_per_million_tokens": 0, "output_per_million_tokens": 1}}
    with pytest.raises(ValueError, match=r"comparison\.prices names other"):
        batches.run("bad", careful, compare=[sloppy], comparison={"prices": prices})
    write_prompts(tmp_path / "prompts.jsonl", ["Message 1"])
    line = json.loads((tmp_path / "prompts.jsonl").read_text())
    line["body"]["model"] = careful
    (tmp_path / "prompts.jsonl").write_text(json.dumps(line))
    with pytest.raises(UsageError, match="leave model out of the bodies"):
        batches.run("bad", careful, compare=[sloppy], source={"path": str(tmp_path / "prompts.jsonl")})
    columned = {"path": str(tmp_path / "prompts.jsonl"), "expected_column": "right"}
    with pytest.raises(UsageError, match=r"OpenAI's batch format, which has no column .*Parquet or CSV"):
        batches.run("bad", careful, compare=[sloppy], source=columned)
    assert asked(batches.log).total() == 0


def test_a_right_answer_that_was_corrected_is_scored_anew(
    batches: StubBatches, models: dict[str, str], artifacts: ArtifactStore, tmp_path: Path
) -> None:
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    (tmp_path / "rows.csv").write_text(
        "\n".join([f"{lines[0]},other", *(f"{line},safe" for line in lines[1:])])
    )
    fields: dict[str, Any] = {"compare": [models["careful"]], "comparison": {"labels": ["safe", "attack"]}}

    def accuracy(column: str) -> float:
        source = {**batches.source, "expected_column": column}
        result = batches.run("corrected", models["careless"], source=source, **fields)
        score = report(artifacts, artifacts.open(result.artifact)).models[1].score
        assert score is not None
        return score.accuracy

    assert accuracy("right") == 1.0
    assert accuracy("other") == pytest.approx(40 / 60)
    assert asked(batches.log).total() == 120  # No model saw the difference.
