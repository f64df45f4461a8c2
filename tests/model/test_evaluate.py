"""What evaluation refuses before an engine starts; the demo's test runs it with one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.contracts import ArtifactInput, Manifest
from cluster.errors import RefusedError, UsageError
from cluster.job import command
from cluster.models import ensure_model
from cluster.storage import ArtifactStore, object_store
from jobs.evaluate import EvaluateConfig, run
from tests.model.conftest import make_dataset, rows
from tests.model.test_promote import make

pytestmark = pytest.mark.integration

ENGINE = {"max_model_len": 256, "max_num_seqs": 8, "enforce_eager": True, "dtype": "bfloat16"}


def make_checkpoint(name: str, model: Path, dataset: Manifest, scratch: Path) -> Manifest:
    """A checkpoint whose adapter changes the tiny model's answers."""
    from tests.tiny_model import make_tiny_adapter

    base = ensure_model(str(model))
    adapter = make_tiny_adapter(model, scratch / "adapter")
    files = {
        f"adapter/{path.name}": path.read_bytes() for path in adapter.iterdir() if path.name != "README.md"
    }
    return make(
        "checkpoint",
        name,
        files,
        summary={"base_model": str(base.ref), "dataset": str(dataset.ref)},
        inputs=[ArtifactInput(address=str(m.ref), digest=m.data_digest) for m in (base, dataset)],
    )


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Path, dataset: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_checkpoint("judged", tiny_model, dataset, tmp_path_factory.mktemp("adapter"))


def config(checkpoint: Manifest, **changes) -> EvaluateConfig:
    fields = {"name": "judged", "checkpoint": str(checkpoint.ref), "labels": ["safe", "attack"]}
    return EvaluateConfig(**fields | {"max_rows": 20, "engine_kwargs": ENGINE} | changes)


def test_rows_that_were_trained_on_are_refused(s3, checkpoint: Manifest, dataset: Manifest) -> None:
    trained = make(
        "checkpoint",
        "trained",
        {"adapter/adapter_config.json": json.dumps({"r": 8}).encode()},
        summary=checkpoint.summary,
        configuration={"split": "train"},
    )
    with pytest.raises(RefusedError, match="was trained on split 'train'"):
        run(config(trained, split="train"))


def test_an_answer_that_is_no_label_is_refused(local_ray, checkpoint: Manifest) -> None:
    odd = rows(4, first=2000)
    odd[2]["messages"][-1]["content"] = "perhaps"
    questions = make_dataset("odd", rows(2), odd)
    with pytest.raises(RefusedError, match="Row row-02002 does not end with an answer among safe, attack"):
        run(config(checkpoint, dataset=str(questions.ref)))
    assert list(ArtifactStore(object_store()).list(kind="evaluation", name="odd")) == []


def test_more_cpus_than_there_are_is_refused(local_ray, checkpoint: Manifest) -> None:
    with pytest.raises(RefusedError, match="Evaluation asks for 64 CPUs but the cluster has 4"):
        run(config(checkpoint, num_cpus=64, seed=8))


def test_a_label_is_one_word(capfd) -> None:
    arguments = ["--name", "x", "--checkpoint", "latest:x", "--labels", '["not safe", "attack"]']
    assert command(EvaluateConfig, run, arguments) == UsageError.exit_status
    assert "'not safe' is no single word" in capfd.readouterr().err
