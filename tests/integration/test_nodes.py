"""The whole life of a model on a cluster of three machines that share nothing but S3 and SQL."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import pytest
import yaml

from cluster import snapshots
from cluster.contracts import ApiKey, RunState, Snapshot
from cluster.demo.record import DemoRecord
from cluster.runs import RunRepository
from cluster.settings import load_settings
from cluster.storage import ArtifactStore, object_store
from tests.conftest import forget_settings
from tests.integration.nodes import HEAD, WORKERS, Nodes, start_nodes, why_not
from tests.tiny_model import make_tiny_llama

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]

BASE = "tiny-nodes"
#: A random model keeps none of them.
NO_LIMITS = ("min_accuracy", "min_valid", "min_recall", "min_gain", "max_p_value")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """The cluster, with a key for the laptop; this process's settings lead to its storage and SQL."""
    if reason := why_not():
        pytest.skip(reason)
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()  # The small one of the tests before.
    work = tmp_path_factory.mktemp("n")
    with start_nodes(work) as started, pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("AWS_", "MANTA_", "MLFLOW_", "RAY_")):
                patch.delenv(name)
        for name, value in {**started.outside, "MANTA_HOME": str(work / "here")}.items():
            patch.setenv(name, value)
        forget_settings()
        publish_key(started.environment["OPENAI_API_KEY"])
        yield started
    forget_settings()


def publish_key(secret: str) -> None:
    """What `manta up` does for the local cluster."""
    key = ApiKey(id="laptop", sha256=hashlib.sha256(secret.encode()).hexdigest(), team=load_settings().team)

    def with_key(snapshot: Snapshot) -> Snapshot:
        return snapshot.model_copy(update={"keys": [*snapshot.keys, key]})

    snapshots.publish(with_key, by="test")


@pytest.fixture(scope="module")
def choices(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with a tiny model that is in S3, since no machine has the laptop's disk.

    A training worker asks for most of a machine, so that two of them need both.
    """
    folder = tmp_path_factory.mktemp("choices")
    store = object_store()
    store.upload_dir(make_tiny_llama(folder / BASE), f"models/{BASE}")
    model = store.uri(f"models/{BASE}")
    serve = yaml.safe_load(Path("deployments/configs/demo.yaml").read_text())
    application = next(a for a in serve["applications"] if a["import_path"] == "deployments.model:build")
    application["args"]["model"] = model
    application["args"]["llm_config"]["model_loading_config"]["model_id"] = BASE
    application["args"]["llm_config"]["engine_kwargs"]["max_model_len"] = 512
    (folder / "serve.yaml").write_text(yaml.safe_dump(serve))
    content = {
        "base_model": BASE,
        "serve": str(folder / "serve.yaml"),
        "overrides": {
            "finetune": {
                "base_model": model,
                "base_model_name": BASE,
                "resources_per_worker": {"CPU": 1.5},
                "training.max_steps": 2,
            },
            "evaluate": {"max_rows": 12},
            "promote": {"gate": {"min_rows": 1, **dict.fromkeys(NO_LIMITS)}},
            "batch_inference": {"source.limit": 12},
        },
    }
    path = folder / "demo.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def record(nodes: Nodes, choices: Path) -> DemoRecord:
    """`manta demo` on the laptop, from raw data to a batch, and what it wrote down."""
    said = nodes.must("manta", "demo", "--config", str(choices), timeout=1500)
    page = Path(urlparse(said.strip().splitlines()[-1].removeprefix("Report: ")).path)
    return DemoRecord.load(page.with_name("demo.json"))


@pytest.mark.parametrize("number", [HEAD, *WORKERS])
def test_a_machine_has_neither_the_code_nor_a_disk_of_others(nodes: Nodes, number: int) -> None:
    """Without this the tests below would prove little."""

    def python(program: str) -> subprocess.CompletedProcess[str]:
        return nodes.on(number, "python", "-c", program, timeout=60)

    assert "No module named 'cluster'" in python("import cluster").stderr
    assert "Read-only file system" in python("open('/var/x', 'w')").stderr
    (nodes.disk(number) / "mine").touch()
    others = [n for n in (HEAD, *WORKERS) if n != number]
    assert not any((nodes.disk(n) / "mine").exists() for n in others)
    (nodes.disk(number) / "mine").unlink()


def test_the_whole_demo_runs(record: DemoRecord) -> None:
    assert {step.name: step.state for step in record.steps} == dict.fromkeys(
        ("up", "data", "preprocess", "finetune", "evaluate", "promote", "deploy", "chat", "batch_inference"),
        "done",
    )
    plain, tuned, private, jailbreak = record.chats
    assert (plain.error, tuned.error, private.error) == (None, None, None)
    assert (jailbreak.status, jailbreak.error_code) == (400, "content_filter")


def test_both_workers_held_weights_and_the_head_none(nodes: Nodes, record: DemoRecord) -> None:
    def weights(number: int) -> list[str]:
        return [str(path) for path in nodes.disk(number).glob("home/.manta/cache/models/*/*.safetensors")]

    assert [bool(weights(number)) for number in WORKERS] == [True, True]
    assert weights(HEAD) == []


def test_a_batch_row_leads_back_to_the_data_and_to_delivered_code(record: DemoRecord) -> None:
    address = record.artifact("batch_inference")
    assert address is not None
    lineage = ArtifactStore(object_store()).lineage(address)
    assert {manifest.ref.kind for manifest in lineage} == {"batch-output", "checkpoint", "dataset", "model"}
    for manifest in lineage:
        assert manifest.code.git_revision is None
        assert (manifest.code.package or "").startswith("gcs://"), manifest.ref
    (dataset,) = [manifest for manifest in lineage if manifest.ref.kind == "dataset"]
    assert object_store().uri("raw/prompt-shield/train.csv") in [i.address for i in dataset.inputs]


def test_run_records_are_in_sql_and_lead_to_the_logs(nodes: Nodes, record: DemoRecord) -> None:
    runs = RunRepository(load_settings().database_url).list()
    assert {run.verb: run.state for run in runs} == dict.fromkeys(
        ("preprocess", "finetune", "evaluate", "promote", "batch-inference"), RunState.SUCCEEDED
    )
    for run in runs:
        assert run.log_address is not None
        assert run.id in nodes.must("manta", "logs", run.log_address)


def test_status_shows_every_part(nodes: Nodes, record: DemoRecord) -> None:
    found = json.loads(nodes.must("manta", "status", "--json"))
    assert {part["name"]: part["health"] for part in found["parts"]} == dict.fromkeys(
        ("storage", "ray", "registry", "gateway"), "healthy"
    )
    assert {app["name"]: app["status"] for app in found["applications"]} == dict.fromkeys(
        ("gateway", "gemma"), "RUNNING"
    )


def test_a_submitted_job_finds_what_the_demo_made(nodes: Nodes, record: DemoRecord) -> None:
    store = object_store()
    words = ["--train", json.dumps([store.uri("raw/prompt-shield/train.csv")])]
    words += ["--test", json.dumps([store.uri("raw/prompt-shield/test.csv")])]
    words += ["--license.text", store.uri("raw/prompt-shield/LICENSE.txt")]
    config = "jobs/configs/demo/preprocess.yaml"
    said = nodes.must("manta", "submit", "preprocess", "--config", config, "--json", "--", *words)
    result = json.loads(said)["result"]
    assert (result["artifact"], result["reused"]) == (record.artifact("preprocess"), True)
