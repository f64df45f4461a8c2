"""Fine-tuning with Ray Train on a tiny model: through ``jobs.finetune.run`` and its command."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import yaml

from cluster.contracts import Manifest
from cluster.errors import NotFoundError, RefusedError, UsageError
from cluster.job import command
from cluster.storage import ArtifactStore, object_store
from jobs.finetune import FinetuneConfig, run
from tests.model.conftest import make_dataset, rows

pytestmark = pytest.mark.integration


def config(dataset: Manifest, model: Path, name: str, **changes) -> FinetuneConfig:
    training = {
        "learning_rate": 5e-3,
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "save_steps": 2,
        "logging_steps": 1,
    } | changes.pop("training", {})
    return FinetuneConfig(
        name=name, dataset=str(dataset.ref), base_model=str(model), training=training, **changes
    )


def curve(artifacts: ArtifactStore, manifest: Manifest) -> list[dict]:
    return [json.loads(line) for line in artifacts.read(manifest, "training.jsonl").splitlines()]


def test_two_workers_learn_and_a_second_run_finds_it(
    local_ray, artifacts: ArtifactStore, dataset: Manifest, tiny_model: Path, capfd
) -> None:
    training = {"max_steps": 16, "save_steps": 8}
    wanted = config(dataset, tiny_model, "tuned", training=training, validation_split="test")
    done = run(wanted)
    manifest = artifacts.open(done.artifact)
    artifacts.verify(manifest)
    steps = curve(artifacts, manifest)
    assert [record["step"] for record in steps] == list(range(1, 17))
    assert steps[-1]["loss"] < steps[0]["loss"] - 1
    assert done.summary["valid_loss"] < steps[0]["loss"] - 1
    # 64 rows by 8 a step: two epochs, each row twice.
    tokens = manifest.counts["tokens_seen"]
    assert manifest.counts == {"samples_seen": 128, "tokens_seen": tokens, "left_out_too_long": 0}
    assert tokens > 128 * 10
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "training.jsonl"} == {
        file.path for file in manifest.files
    }
    adapter = json.loads(artifacts.read(manifest, "adapter/adapter_config.json"))
    assert adapter["base_model_name_or_path"] == done.summary["base_model"]
    assert {ref.address for ref in manifest.inputs} == {str(dataset.ref), done.summary["base_model"]}
    said = capfd.readouterr().out
    assert "step 16/16, loss" in said
    assert "s left" in said
    # Nothing of the training area stays.
    left = [item.key for item in artifacts.store.list(f"{manifest.ref}/") if ".train/" in item.key]
    assert left == []

    again = run(wanted)
    assert again.reused
    assert again.artifact == done.artifact
    # How it runs is not what it makes.
    assert run(wanted.model_copy(update={"max_failures": 0})).reused


#: Long enough to be killed on the way, with checkpoints as often as progress lines.
_LONG = {"max_steps": 40, "save_steps": 5, "logging_steps": 5, "learning_rate": 1e-3}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_job_leaves_nothing_visible_and_resumes_over_a_killed_worker(
    local_ray, artifacts: ArtifactStore, dataset: Manifest, tiny_model: Path, tmp_path: Path, capfd
) -> None:
    wanted = config(dataset, tiny_model, "killed", training=_LONG)
    kill_driver_at(wanted, "step 20/40", tmp_path)
    assert list(artifacts.list(kind="checkpoint", name="killed")) == []

    with kill_one_worker() as killed:
        done = run(wanted)
    said = capfd.readouterr().out
    assert len(killed) == 1
    resumed = [int(step) for step in re.findall(r"training resumes at step (\d+)", said)]
    assert len(resumed) == 2, said
    assert 10 <= resumed[0] <= resumed[1] < 40
    manifest = artifacts.open(done.artifact)
    assert not done.reused
    assert manifest.run_id.endswith("-2")

    # To the driver's death, to the worker's and without either: the same training.
    whole = run(wanted.model_copy(update={"name": "whole"}))
    interrupted, uninterrupted = curve(artifacts, manifest), curve(artifacts, artifacts.open(whole.artifact))
    assert [record["step"] for record in interrupted] == list(range(1, 41))
    assert manifest.counts["samples_seen"] == 40 * 8
    losses = [[record["loss"] for record in steps] for steps in (interrupted, uninterrupted)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02, abs=0.01)


def kill_driver_at(wanted: FinetuneConfig, line: str, folder: Path) -> None:
    """Run the command in a process of its own, and kill it with SIGKILL at a progress line."""
    import ray

    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(wanted.model_dump(mode="json")))
    job = subprocess.Popen(
        [sys.executable, "-m", "jobs.finetune", "--config", str(file)],
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert job.stdout is not None
    reached = any(line in said for said in job.stdout)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait(timeout=300)
    assert reached


@contextmanager
def kill_one_worker() -> Iterator[list[int]]:
    """Kill one training worker of this process's Ray once the second attempt has written a checkpoint."""
    stop, killed = threading.Event(), list[int]()

    def kill() -> None:
        while not stop.wait(0.1):
            keys = [item.key for item in object_store().list("default/checkpoint/killed/")]
            if any("-2.train/checkpoint_manager_snapshot.json" in key for key in keys):
                break
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    process.kill()
                    killed.append(process.pid)
                    return

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    yield killed
    stop.set()
    killer.join(timeout=300)


def test_more_cpus_than_there_are_is_refused(local_ray, dataset: Manifest, tiny_model: Path) -> None:
    wanted = config(dataset, tiny_model, "greedy", num_workers=99)
    with pytest.raises(RefusedError, match=r"49\.5 CPUs but the cluster has 4: lower num_workers"):
        run(wanted)


def test_rows_without_an_answer_are_refused_in_one_sentence(
    local_ray, artifacts: ArtifactStore, tiny_model: Path
) -> None:
    bad = rows(8)
    bad[3]["messages"] = bad[3]["messages"][:1]
    questions = make_dataset("unanswered", bad, rows(2))
    with pytest.raises(RefusedError, match="Row row-00003 does not end with a message of the assistant"):
        run(config(questions, tiny_model, "unanswered", max_failures=0))
    assert list(artifacts.list(kind="checkpoint", name="unanswered")) == []


def test_unknown_inputs_are_told_apart(s3, dataset: Manifest, tiny_model: Path) -> None:
    wanted = config(dataset, tiny_model, "lost")
    with pytest.raises(NotFoundError, match="no dataset named 'nothing'"):
        run(wanted.model_copy(update={"dataset": "latest:nothing"}))
    with pytest.raises(NotFoundError, match="no split 'dev'; it has test, train"):
        run(wanted.model_copy(update={"split": "dev"}))
    with pytest.raises(UsageError, match="latest:<name>"):
        run(wanted.model_copy(update={"dataset": "somewhere"}))
    with pytest.raises(NotFoundError):
        run(wanted.model_copy(update={"base_model": "/no/such/model"}))


def test_the_command_names_an_unknown_key(capfd) -> None:
    arguments = ["--name", "x", "--dataset", "latest:y", "--base_model", "demo"]
    assert command(FinetuneConfig, run, [*arguments, "--training.learning_rat", "1"]) == 2
    assert "learning_rat" in capfd.readouterr().err
