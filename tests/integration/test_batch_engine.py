"""Which engine a batch gets when none is named, and that it keeps the one that it began with."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster import snapshots
from cluster.contracts import ArtifactRef, CodeRevision, Manifest, Route, Target
from cluster.errors import MantaError, NotFoundError, RefusedError, UnavailableError
from cluster.job.preflight import preflight
from cluster.settings import load_settings
from cluster.storage import ArtifactStore
from jobs import batch_inference
from jobs.batch import choosing, dedicated, warm
from jobs.batch.choosing import Choice, choose
from jobs.batch.source import resolve
from tests.conftest import S3
from tests.warm_stub import StubBatches, asked, write_prompts

pytestmark = pytest.mark.integration
Asked = Callable[..., Choice]


@pytest.fixture
def batches(s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StubBatches:
    """Batches of twelve short rows, one of them too long for the model, on a cluster of four CPUs."""
    write_prompts(tmp_path / "prompts.jsonl", ["TOO-LONG", *(f"Number {number}" for number in range(11))])
    monkeypatch.setattr(dedicated, "preflight", partial(preflight, nodes=[{"CPU": 4.0}]))
    return StubBatches(monkeypatch, tmp_path)


@pytest.fixture
def weights(artifacts: ArtifactStore, code: CodeRevision) -> Manifest:
    """A model artifact."""
    owner = load_settings().principal
    ref = ArtifactRef(team=owner.team, kind="model", name="engine", fingerprint=os.urandom(8).hex())
    attempt = artifacts.attempt(ref, "import-1")
    attempt.write("config.json", ref.fingerprint.encode())
    return attempt.commit(owner=owner, configuration={}, code=code, started_at=datetime.now(UTC))


@pytest.fixture
def name(weights: Manifest) -> str:
    """A public name that those weights answer under."""
    name = f"stub-{os.urandom(4).hex()}"
    target = Target(application="stub", deployment="model", model="stub", digest=weights.data_digest)
    route = Route(model=name, targets=[target], created_at=datetime.now(UTC))
    snapshots.publish(lambda s: s.model_copy(update={"routes": [*s.routes, route]}), by="test")
    return name


@pytest.fixture
def chosen(batches: StubBatches, tmp_path: Path, artifacts: ArtifactStore) -> Asked:
    """What is chosen for the prompts as they stand."""
    from jobs.batch_inference import BatchInferenceConfig

    def ask(model: str, **fields: Any) -> Choice:
        source = {"path": str(tmp_path / "prompts.jsonl")}
        config = BatchInferenceConfig.model_validate(
            {"name": "engine", "source": source, "model": model, **fields}
        )
        settings, store = load_settings(), artifacts.store
        return choose(config, resolve(config.source, store, settings.team), settings, store)

    return ask


def tracked(run_id: str) -> tuple[str, float]:
    """How MLflow's run ended, which is opened late, and the answers that it knows of."""
    from cluster.mlflow_store import mlflow_client

    settings = load_settings()
    client = mlflow_client(settings)
    experiment = client.get_experiment_by_name(f"{settings.team}/batch-inference")
    wanted = f"tags.`manta.run_id` = '{run_id}'"
    (run,) = client.search_runs([experiment.experiment_id], wanted)
    return run.info.status, run.data.metrics["succeeded"]


def test_a_small_batch_goes_to_the_deployed_model_and_says_why(
    batches: StubBatches,
    name: str,
    artifacts: ArtifactStore,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slowly(*arguments: Any) -> Choice:
        time.sleep(0.3)
        return choose(*arguments)

    monkeypatch.setattr(batch_inference, "choose", slowly)
    # Nobody who waits for a small batch waits for weights to be found that it does not need.
    monkeypatch.setattr(choosing, "pin_behind", None)
    manifest = artifacts.open(batches.run("engine", name, sampling={"max_tokens": 10}).artifact)
    reason = manifest.summary["engine_reason"]
    assert manifest.summary["engine"] == manifest.configuration["engine"] == "warm"
    # A quarter of 97 characters, and 10 tokens a row at most.
    assert reason == "12 rows, at most about 144 tokens, below dedicated_from_tokens=1,000,000"
    assert f"warm engine: {reason}" in capsys.readouterr().out
    assert manifest.summary["first_row_s"] > 0.3
    assert tracked(manifest.run_id) == ("FINISHED", 11)
    named = batches.run("engine", name, sampling={"max_tokens": 10}, engine="warm")
    assert (named.artifact, named.reused) == (str(manifest.ref), True)

    def away(target: Target) -> None:
        raise UnavailableError("The model application 'stub' is not deployed.")

    # What is answered is found, be the model away or the batch a large one by now.
    monkeypatch.setattr(warm, "_handle", away)
    again = batches.run("engine", name, sampling={"max_tokens": 10}, dedicated_from_tokens=0)
    assert (again.artifact, again.reused) == (str(manifest.ref), True)


def test_a_large_batch_gets_an_engine_of_its_own_with_the_same_weights(
    chosen: Asked, name: str, weights: Manifest, artifacts: ArtifactStore, tmp_path: Path
) -> None:
    choice = chosen(name, dedicated_from_tokens=1000)
    assert choice.engine == "dedicated"
    assert choice.pin.weights is not None
    assert choice.pin.weights.model_source == artifacts.uri(weights)
    assert choice.pin.model.address == str(weights.ref)
    assert choice.reason.endswith("not below dedicated_from_tokens=1,000")

    crowded = chosen(name, dedicated_from_tokens=1000, dedicated={"concurrency": 50})
    assert crowded.engine == "warm"
    assert "but the batch asks for 52 CPUs but the cluster has 4" in crowded.reason
    formatted = {"response_format": {"type": "json_object"}}
    assert chosen(name, dedicated_from_tokens=1000, request=formatted).engine == "warm"
    lines = (tmp_path / "prompts.jsonl").read_text().splitlines()
    two = json.loads(lines[3])
    two["body"]["n"] = 2
    (tmp_path / "prompts.jsonl").write_text("\n".join([*lines[:3], json.dumps(two), *lines[4:]]))
    assert chosen(name, dedicated_from_tokens=0).reason == "rows ask for n, which only a deployed model has"


def test_where_only_one_engine_can_have_the_model_it_is_that_one(
    chosen: Asked, name: str, weights: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = str(weights.ref)
    choice = chosen(address)
    assert (choice.engine, choice.reason) == ("dedicated", "no model of that name is deployed")

    def away(target: Target) -> None:
        raise UnavailableError("The model application 'stub' is not deployed.")

    with monkeypatch.context() as patch:
        patch.setattr(warm, "_handle", away)
        choice = chosen(name)
    assert (choice.engine, choice.reason) == ("dedicated", f"{name} does not run on this cluster")

    unknown = Target(application="stub", deployment="model", model="stub", digest="5" * 64)
    route = Route(model=f"{name}-elsewhere", targets=[unknown], created_at=datetime.now(UTC))
    snapshots.publish(lambda s: s.model_copy(update={"routes": [*s.routes, route]}), by="test")
    choice = chosen(route.model, dedicated_from_tokens=0)
    assert choice.engine == "warm"
    assert "weights are not at hand" in choice.reason


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("nobody", r"no registered version .* and no model source .*: deploy it with `manta deploy`"),
        ("models:/nobody@champion", "an engine of its own cannot have it: .*nobody"),
        ("./nobody", "an engine of its own cannot have it: .*nobody"),
    ],
)
def test_a_model_that_neither_can_have_is_told_in_one_sentence(chosen: Asked, model: str, why: str) -> None:
    with pytest.raises(NotFoundError, match=f"^No model '{model}' is deployed .*{why}") as raised:
        chosen(model)
    assert "\n" not in str(raised.value)


def test_a_batch_goes_on_with_the_engine_that_it_began_with(
    batches: StubBatches, name: str, artifacts: ArtifactStore
) -> None:
    with pytest.raises(RefusedError, match="1 of 12 rows failed"):
        batches.run("begun", name, max_failed=0)
    assert asked(batches.log).total() == 12
    # By its size alone it would now get the other one.
    large = {"dedicated_from_tokens": 0}

    routes = snapshots.newest().routes  # type: ignore[union-attr]
    snapshots.publish(lambda s: s.model_copy(update={"routes": []}), by="test")
    with pytest.raises(MantaError, match=r"began this batch with the warm engine.*name the other engine"):
        batches.run("begun", name, **large)
    snapshots.publish(lambda s: s.model_copy(update={"routes": routes}), by="test")

    manifest = artifacts.open(batches.run("begun", name, **large).artifact)
    assert (manifest.summary["engine"], manifest.summary["resumed"]) == ("warm", 12)
    assert manifest.summary["engine_reason"].endswith("began this batch with it")
    assert asked(batches.log).total() == 12
