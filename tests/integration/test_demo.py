"""The whole demo with a tiny model, as a user runs it: every step real, and a report at the end."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import pyarrow.parquet as pq
import pytest
import yaml

from cluster.demo.record import DemoRecord, StepRecord
from cluster.settings import Settings
from cluster.storage import ArtifactStore, object_store
from tests.integration.conftest import LocalCluster
from tests.tiny_model import make_tiny_llama

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]

#: Not the name of the model that the other tests of this cluster serve.
BASE = "tiny-demo"
#: A random model keeps none of them.
NO_LIMITS = ("min_accuracy", "min_valid", "min_recall", "min_gain", "max_p_value")


def serve_file(folder: Path, model: Path) -> Path:
    """The demo's own Serve configuration with another model in it."""
    content = yaml.safe_load(Path("deployments/configs/demo.yaml").read_text())
    application = next(a for a in content["applications"] if a["import_path"] == "deployments.model:build")
    application["args"]["model"] = str(model)
    application["args"]["llm_config"]["model_loading_config"]["model_id"] = BASE
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def choices(platform_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two steps of training, a gate that lets a random model through, and a few rows.

    Afterwards the demo's model goes: its engine would stay beside that of the other tests.
    """
    folder = tmp_path_factory.mktemp("demo")
    model = make_tiny_llama(folder / BASE)
    content = {
        "base_model": BASE,
        "serve": str(serve_file(folder, model)),
        "overrides": {
            "finetune": {
                "base_model": str(model),
                "base_model_name": BASE,
                "training.max_steps": 2,
                "training.logging_steps": 1,
            },
            "evaluate": {"max_rows": 24},
            "promote": {"gate": {"min_rows": 1, **dict.fromkeys(NO_LIMITS)}},
            "batch_inference": {"source.limit": 24},
        },
    }
    path = folder / "demo.yaml"
    path.write_text(yaml.safe_dump(content))
    yield path
    platform_cluster.must("deploy", "--delete", "gemma")


def test_the_whole_demo_runs_and_ends_with_its_report(
    platform: Settings, platform_cluster: LocalCluster, choices: Path
) -> None:
    done = platform_cluster.manta("demo", "--config", str(choices), timeout=1500)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]

    last = done.stdout.strip().splitlines()[-1]
    page = Path(urlparse(last.removeprefix("Report: ")).path)
    assert page.is_file()
    for hint in ("curl", "from openai import OpenAI", "dashboard", "manta down"):
        assert hint in done.stdout

    record = DemoRecord.load(page.with_name("demo.json"))
    assert [step.state for step in record.steps] == ["done"] * len(record.steps)
    plain, tuned, private, jailbreak = record.chats
    assert plain.error is None
    assert tuned.error is None
    assert private.seen is not None
    assert "4111 ••••" not in private.seen  # What the model saw is redacted, not merely masked by us.
    assert "•••@" not in private.seen
    assert jailbreak.status == 400
    assert jailbreak.error_code == "content_filter"

    html = page.read_text()
    assert not re.search(r'(src|href)="', html)
    assert "4111 1111 1111 1111" not in html
    assert "jane.doe@example.org" not in html
    for step in record.steps:
        if step.artifact is not None:
            assert step.artifact in html, step.name
    assert "raw/prompt-shield/train.csv" in html  # Lineage goes from a batch row back to the raw data.
    check_evaluation(next(step for step in record.steps if step.name == "evaluate"))


def check_evaluation(step: StepRecord) -> None:
    """Base and tuned model answered the same rows, through one engine."""
    assert step.artifact is not None
    assert step.log is not None
    assert Path(step.log).read_text().count("engine ready") == 1
    artifacts = ArtifactStore(object_store())
    manifest = artifacts.open(step.artifact)
    assert manifest.counts["rows"] == 24
    card = json.loads(artifacts.read(manifest, "scorecard.json"))
    assert set(card["models"]) == {"base", "tuned"}
    table = pq.read_table(io.BytesIO(artifacts.read(manifest, "predictions.parquet"))).to_pylist()
    assert len({row["row_id"] for row in table}) == 24
    assert all(row["expected"] in ("safe", "attack") for row in table)
    assert sum(row["tuned_correct"] for row in table) == card["models"]["tuned"]["correct"]


def test_a_second_demo_finds_what_the_first_has_made(platform_cluster: LocalCluster, choices: Path) -> None:
    done = platform_cluster.manta("demo", "--config", str(choices), timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    record_path = Path(urlparse(done.stdout.strip().splitlines()[-1].removeprefix("Report: ")).path)
    states = {step.name: step.state for step in DemoRecord.load(record_path.with_name("demo.json")).steps}
    assert {name for name, state in states.items() if state == "found"} >= {
        "preprocess",
        "finetune",
        "evaluate",
    }


def test_a_step_that_fails_says_why_and_where_its_log_is(
    platform_cluster: LocalCluster, tmp_path: Path
) -> None:
    path = tmp_path / "demo.yaml"
    path.write_text(json.dumps({"overrides": {"preprocess": {"no_such_field": 1}}}))
    done = platform_cluster.manta("demo", "--config", str(path), timeout=300)
    assert done.returncode != 0
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("error: The job preprocess failed:")
    assert "no_such_field" in error
    log = Path(error.rstrip(".").rpartition("whole log is ")[2])
    assert "no_such_field" in log.read_text()
