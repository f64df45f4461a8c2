"""Upload, fine-tune, chat with what came of it: the official client, a real Ray job, a real engine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import openai
import pytest

from cluster.contracts import ModelRef
from cluster.errors import RefusedError
from cluster.registry import Registry
from cluster.settings import Settings
from cluster.storage import ArtifactStore, object_store
from cluster.storage.artifacts import artifact_inputs
from tests.integration.serving import BASE, Served

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]


def examples(count: int) -> bytes:
    lines = []
    for number in range(count):
        asked, answer = {"role": "user", "content": f"Say {number}"}, {"role": "assistant", "content": "No."}
        lines.append(json.dumps({"messages": [asked, answer]}))
    return "\n".join(lines).encode()


def test_a_tuned_model_answers_for_its_team_alone(served: Served, platform: Settings) -> None:
    client = served.client()
    file = client.files.create(file=("examples.jsonl", examples(10)), purpose="fine-tune")
    measure = client.files.create(file=("others.jsonl", examples(3)), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=BASE,
        training_file=file.id,
        validation_file=measure.id,
        suffix="refuser",
        seed=7,
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 5}},
        },
    )
    give_up = time.monotonic() + 1200
    while job.status not in ("succeeded", "failed", "cancelled"):
        assert time.monotonic() < give_up, (job, client.fine_tuning.jobs.list_events(job.id).data)
        time.sleep(0.5)
        job = client.fine_tuning.jobs.retrieve(job.id)
    events = client.fine_tuning.jobs.list_events(job.id, limit=100).data
    assert job.status == "succeeded", (job, events)
    assert job.fine_tuned_model is not None
    assert job.fine_tuned_model.startswith(f"ft:{BASE}:{platform.team}:refuser:")
    assert (job.trained_tokens or 0) > 100
    steps = [event for event in reversed(events) if event.type == "metrics"]
    assert [event.data["step"] for event in steps] == [1, 2]  # type: ignore[index]
    lines = client.files.content(job.result_files[0]).text.splitlines()
    assert lines[0] == "step,train_loss,valid_loss"
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "2"]
    assert float(lines[-1].split(",")[2]) > 0
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert (checkpoint.step_number, checkpoint.fine_tuned_model_checkpoint) == (2, job.fine_tuned_model)

    # The worker has waited for as long as gateways take to look; on a busy machine they take longer.
    until(lambda: job.fine_tuned_model in {model.id for model in client.models.list().data}, 300)
    asked = [{"role": "user", "content": "Say 3"}]
    answer = client.chat.completions.create(model=job.fine_tuned_model, messages=asked, max_tokens=5)  # type: ignore[arg-type]
    assert answer.model == job.fine_tuned_model
    assert answer.choices[0].message.content is not None
    assert job.fine_tuned_model in {model.id for model in client.models.list().data}

    other = of_another_team(served)
    with pytest.raises(openai.NotFoundError):
        other.chat.completions.create(model=job.fine_tuned_model, messages=asked)  # type: ignore[arg-type]
    assert job.fine_tuned_model not in {model.id for model in other.models.list().data}

    # From the model back to the file.
    artifacts = ArtifactStore(object_store())
    model = Registry(platform).resolve(f"models:/{job.id}/1")
    assert model.ref == ModelRef(name=job.id, version=1)
    trained = artifacts.open(model.checkpoint)
    (dataset,) = [ref for ref in artifact_inputs(trained) if ref.kind == "dataset"]
    sources = {item.address.rpartition("/")[2] for item in artifacts.open(str(dataset)).inputs}
    assert sources == {file.id, measure.id}

    # Deleted, its name goes at once, and by a Ray job what engines and the registry have of it.
    assert model.adapter is not None
    store = object_store()
    assert list(store.list(model.adapter))
    assert client.models.delete(job.fine_tuned_model).deleted
    until(lambda: job.fine_tuned_model not in {model.id for model in client.models.list().data}, 300)
    with pytest.raises(openai.NotFoundError, match="is not served now"):
        client.chat.completions.create(model=job.fine_tuned_model, messages=asked)  # type: ignore[arg-type]
    until(lambda: not list(store.list(model.adapter or "")), 600)
    with pytest.raises(RefusedError, match="was retired"):
        Registry(platform).resolve(f"models:/{job.id}/1")


def until(good: Callable[[], bool], seconds: float) -> None:
    give_up = time.monotonic() + seconds
    while not good():
        assert time.monotonic() < give_up
        time.sleep(0.5)


def of_another_team(served: Served) -> openai.OpenAI:
    made = served.cluster.manta("key", "create", "tuning-other", "--team", "others", "--json")
    assert made.returncode == 0, made.stderr
    client = served.client(api_key=json.loads(made.stdout.splitlines()[-1])["secret"])
    give_up, pause_s = time.monotonic() + 300, 0.5
    while True:
        try:
            client.models.list()
        except openai.AuthenticationError:
            assert time.monotonic() < give_up
            time.sleep(pause_s)
            pause_s = min(1.5 * pause_s, 5.0)  # Fewer failures a minute than the gateway answers with 401.
        else:
            return client
