"""``/v1/fine_tuning/jobs`` with the official client: real storage, SQL and worker, scripted trainings."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn

from cluster import snapshots
from cluster.contracts import Snapshot
from cluster.contracts.tuning import TuningHyperparameters
from cluster.files import FileRepository
from cluster.job.config import parse_config
from cluster.settings import load_settings
from cluster.tuning import TuningRepository, make_event
from deployments.gateway.args import TuningArgs
from deployments.plan import Plan, with_routes
from deployments.tuning.choosing import batches, choose
from deployments.tuning.trainings import words
from jobs.tune import TuneConfig, rows_of
from tests.integration.tuning import BASE, QUICK, SQLITE, STEPS, Running, example, preference, tuning
from tests.ports import free_ports
from tests.unit.gateway_app import chat, key, route, usage

pytestmark = pytest.mark.integration
_RATE = "learning_rate_multiplier"
_DPO = "method.dpo.hyperparameters"


g = tuning


async def test_a_job_from_upload_to_chat(g: Running, team: str) -> None:
    measured = await g.upload(3)
    job = await g.submit(
        validation_file=measured,
        suffix="small",
        seed=5,
        metadata={"for": "tests"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
    )
    assert (job.status, job.object, job.seed, job.metadata) == (
        "validating_files", "fine_tuning.job", 5, {"for": "tests"},
    )  # fmt: skip
    assert job.fine_tuned_model is None
    g.start_worker()
    job = await g.reaches(job, "running")
    (order,) = g.cluster.orders
    assert (order.training_file.id, order.base) == (job.training_file, BASE)
    chosen = {"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": 1.0}
    assert job.hyperparameters.to_dict() == chosen
    assert job.method is not None
    assert job.method.to_dict()["supervised"] == {"hyperparameters": chosen}
    jobs = TuningRepository(load_settings().database_url)
    for step in STEPS:  # As the training itself does, some of it twice.
        data = {"total_steps": 4, "train_loss": step["loss"], **step}
        event = make_event(job.id, f"step {step['step']}", "Step", type="metrics", data=data)
        jobs.tell(job.id, [event])
        jobs.tell(job.id, [event])
    job = await g.until(job, lambda now: now.estimated_finish is not None)
    g.cluster.succeeds(order)
    done = await g.reaches(job, "succeeded")
    assert done.fine_tuned_model == f"ft:m-{team}:{team}:small:{job.id.removeprefix('ftjob-')[:12]}"
    assert (done.trained_tokens, done.error, done.estimated_finish) == (320, None, None)
    assert done.finished_at is not None
    assert done.finished_at >= done.created_at
    assert await g.told(done) == [
        f"Created fine-tuning job: {job.id}",
        f"Validating training file: {job.training_file}",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        "Step",
        "Step",
        f"New fine-tuned model created: {done.fine_tuned_model}",
        "The job has successfully completed",
    ]
    file = await g.client.files.retrieve(done.result_files[0])
    assert (file.purpose, file.filename) == ("fine-tune-results", "step_metrics.csv")
    text = (await g.client.files.content(file.id)).text
    assert text == "step,train_loss,valid_loss\n1,2.5,\n2,1.5,1.75\n"
    (checkpoint,) = (await g.client.fine_tuning.jobs.checkpoints.list(job.id)).data
    assert (checkpoint.step_number, checkpoint.metrics.train_loss) == (2, 1.5)

    published = snapshots.newest(store=g.store)
    assert published is not None
    (tuned,) = [found for found in published.routes if found.model == done.fine_tuned_model]
    await g.publish(g.snapshots[0].model_copy(update={"number": 2, "routes": [route(g.model), tuned]}))
    g.script.says = [chat("Hi", finish="stop"), usage(1, 1)]
    asked: dict[str, Any] = {"model": tuned.model, "messages": [{"role": "user", "content": "x"}]}
    await g.client.chat.completions.create(**asked)
    assert g.script.targets[-1].model == f"engine-{g.model}:{job.id}-v1"
    others = g.client.with_options(api_key="sk-other")
    with pytest.raises(openai.NotFoundError):
        await others.chat.completions.create(**asked)
    assert [model.id for model in (await others.models.list()).data] == [g.model]

    def allowed(models: list[str]) -> Snapshot:
        keys = [key(team=team, models=models)]
        return g.snapshots[-1].model_copy(update={"number": g.snapshots[-1].number + 1, "keys": keys})

    await g.publish(allowed([g.model]))  # Who may use the base may use what its team tuned from it.
    await g.client.chat.completions.create(**asked)
    await g.publish(allowed(["another"]))
    with pytest.raises(openai.NotFoundError):
        await g.client.chat.completions.create(**asked)

    # The base deployed anew keeps it, with the new policy; other weights do not.
    base = route(g.model, policy="strict")
    kept = with_routes(published, Plan({"applications": [{"name": "app"}]}, routes=[base]))
    (again,) = [found for found in kept.routes if found.model == tuned.model]
    assert (again.policy, again.targets) == ("strict", tuned.targets)
    other = base.model_copy(update={"targets": [base.targets[0].model_copy(update={"digest": "e" * 64})]})
    gone = with_routes(published, Plan({"applications": [{"name": "app"}]}, routes=[other]))
    assert tuned.model not in {found.model for found in gone.routes}


@SQLITE
async def test_preferences_are_learned_by_dpo(g: Running, team: str) -> None:
    file = await g.upload(10, preference)
    asked = {"n_epochs": 2, "beta": 0.3, "learning_rate_multiplier": 2.0}
    job = await g.submit(training_file=file, method={"type": "dpo", "dpo": {"hyperparameters": asked}})
    left_to_us = await g.submit(training_file=file, method={"type": "dpo"})
    assert left_to_us.method is not None
    automatic = dict.fromkeys(("n_epochs", "batch_size", _RATE, "beta"), "auto")
    assert left_to_us.method.to_dict()["dpo"] == {"hyperparameters": automatic}
    g.start_worker(jobs_at_once=2)
    job, left_to_us = await g.reaches(job, "running"), await g.reaches(left_to_us, "running")
    chosen = asked | {"batch_size": 8}
    assert job.method is not None
    assert job.method.to_dict() == {"type": "dpo", "dpo": {"hyperparameters": chosen}}
    assert left_to_us.method is not None
    assert left_to_us.method.dpo is not None
    assert left_to_us.method.dpo.hyperparameters is not None
    assert left_to_us.method.dpo.hyperparameters.beta == 0.1

    order = next(order for order in g.cluster.orders if order.record.id == job.id)
    config = parse_config(TuneConfig, words(order, QUICK), {}, "tune")
    assert (config.method, config.dpo.beta) == ("dpo", 0.3)
    assert config.training.learning_rate == pytest.approx(2 * QUICK.dpo_learning_rate)
    (row, *others) = rows_of(g.store.get(order.training_file.key), config.method)
    assert len(others) == 9
    assert [row[name][-1]["content"] for name in ("prompt", "chosen", "rejected")] == [
        "Say 0", "No.", "Perhaps.",
    ]  # fmt: skip

    figures = {"chosen_reward": 0.5, "rejected_reward": -0.5, "reward_margin": 1.0, "reward_accuracy": 1.0}
    g.cluster.succeeds(order, [step | figures for step in STEPS])
    done = await g.reaches(job, "succeeded")
    lines = (await g.client.files.content(done.result_files[0])).text.splitlines()
    assert lines == [
        "step,train_loss,train_chosen_reward,train_rejected_reward,train_reward_margin,"
        "train_reward_accuracy,valid_loss",
        "1,2.5,0.5,-0.5,1.0,1.0,",
        "2,1.5,0.5,-0.5,1.0,1.0,",
    ]


async def test_lists_are_the_teams_and_paged(g: Running) -> None:
    file = await g.upload()
    made = [await g.submit(training_file=file, metadata={"n": str(n % 2)}) for n in range(5)]
    assert len({job.id for job in made}) == 5  # Equal ones too.
    jobs = g.client.fine_tuning.jobs
    assert [job.id async for job in jobs.list(limit=2)] == [job.id for job in reversed(made)]
    odd = [job.id async for job in jobs.list(limit=1, metadata={"n": "1"})]
    assert odd == [made[3].id, made[1].id]
    others = g.client.with_options(api_key="sk-other").fine_tuning.jobs
    assert (await others.list()).data == []
    for ask in (others.retrieve, others.cancel, others.list_events, others.checkpoints.list):
        with pytest.raises(openai.NotFoundError):
            await ask(made[0].id)
    with pytest.raises(openai.NotFoundError):
        await jobs.list(after="ftjob-none")
    with pytest.raises(openai.BadRequestError):
        await jobs.list(limit=0)
    for ask in (jobs.pause, jobs.resume):
        with pytest.raises(openai.BadRequestError) as refused:
            await ask(made[0].id)
        assert refused.value.code == "unsupported_operation"


_WRONG: list[tuple[dict[str, Any], int, str | None]] = [
    ({"model": "nobody"}, 404, "model"),
    ({"model": "elsewhere"}, 400, "model"),
    ({"suffix": "x" * 65}, 400, "suffix"),
    ({"suffix": "a:b"}, 400, "suffix"),
    ({"seed": -1}, 400, "seed"),
    ({"metadata": {"a": "x" * 513}}, 400, "metadata"),
    ({"training_file": "file-none"}, 404, None),
    ({"hyperparameters": {"n_epochs": 0}}, 400, "hyperparameters.n_epochs"),
    ({"hyperparameters": {"batch_size": 1.5}}, 400, "hyperparameters.batch_size"),
    ({"hyperparameters": {_RATE: "fast"}}, 400, f"hyperparameters.{_RATE}"),
    ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0}}}}, 400, f"{_DPO}.beta"),
    ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 2.5}}}}, 400, f"{_DPO}.beta"),
    ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"gamma": 1}}}}, 400, f"{_DPO}.gamma"),
    ({"method": {"type": "dpo", "supervised": {}}}, 400, "method"),
    (
        {"method": {"type": "supervised", "supervised": {"hyperparameters": {"beta": 0.1}}}},
        400,
        "method.supervised.hyperparameters.beta",
    ),
    ({"method": {"type": "reinforcement"}}, 400, "method.type"),
    ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, 400, "integrations"),
]


@SQLITE
async def test_what_cannot_be_asked_for(g: Running) -> None:
    file = await g.upload()
    for wanted, status, param in _WRONG:
        with pytest.raises(openai.APIStatusError) as refused:
            await g.submit(**{"training_file": file} | wanted)
        assert (refused.value.status_code, refused.value.param) == (status, param), wanted
    assert (await g.client.fine_tuning.jobs.list()).data == []


@SQLITE
async def test_files_that_do_not_fit(g: Running) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await g.submit(training_file=await g.upload(9))
    assert (refused.value.code, refused.value.param) == ("invalid_n_examples", "training_file")
    body = {"model": g.model, "messages": [{"role": "user", "content": "x"}]}
    rows = lambda n: {"custom_id": f"{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}  # noqa: E731
    with pytest.raises(openai.BadRequestError) as refused:
        await g.submit(training_file=await g.upload(10, rows, purpose="batch"))
    assert refused.value.code == "invalid_file_purpose"
    mine = await g.upload()
    with pytest.raises(openai.NotFoundError):
        await g.client.with_options(api_key="sk-other").fine_tuning.jobs.create(
            model=g.model, training_file=mine
        )
    with pytest.raises(openai.AuthenticationError):
        await g.client.with_options(api_key="sk-wrong").fine_tuning.jobs.create(
            model=g.model, training_file=mine
        )

    def tools(number: int) -> dict[str, Any]:
        return example(number) | ({"tools": [{"type": "function"}]} if number == 4 else {})

    def two_answers(number: int) -> dict[str, Any]:
        made = preference(number)
        return made | ({"preferred_output": made["preferred_output"] * 2} if number == 6 else {})

    g.start_worker(jobs_at_once=4)
    with_tools = await g.submit(training_file=await g.upload(10, tools))
    preferences = await g.submit(training_file=mine, validation_file=await g.upload(10, preference))
    dpo: dict[str, Any] = {"method": {"type": "dpo"}}
    imitations = await g.submit(training_file=mine, **dpo)
    twice = await g.submit(training_file=await g.upload(10, two_answers), **dpo)
    gone = await g.upload()
    g.workers[0].cancel()
    await asyncio.gather(g.workers[0], return_exceptions=True)
    deleted = await g.submit(training_file=gone)
    await g.client.files.delete(gone)
    g.start_worker()
    for job, code, says in (
        (with_tools, "invalid_training_file", "Line 5: it has tools"),
        (preferences, "invalid_validation_file", "Line 1: it is a preference"),
        (imitations, "invalid_training_file", "Line 1: it is no preference"),
        (twice, "invalid_training_file", "Line 7: an output has more than one message"),
        (deleted, "file_not_found", "no longer there"),
    ):
        failed = await g.reaches(job, "failed")
        assert failed.error is not None
        assert failed.error.code == code
        assert says in failed.error.message
        assert failed.fine_tuned_model is None
    assert g.cluster.orders == []


@SQLITE
async def test_a_team_has_so_many_jobs_at_once(g: Running) -> None:
    file = await g.upload()
    made = [await g.submit(training_file=file) for _ in range(TuningArgs().open_jobs_of_a_team)]
    with pytest.raises(openai.RateLimitError, match="have not ended"):
        await g.submit(training_file=file)
    others = g.client.with_options(api_key="sk-other")
    content = "\n".join(json.dumps(example(n)) for n in range(10)).encode()
    theirs = await others.files.create(file=("in.jsonl", content), purpose="fine-tune")
    await others.fine_tuning.jobs.create(model=g.model, training_file=theirs.id)
    await g.client.fine_tuning.jobs.cancel(made[-1].id)
    g.start_worker()  # It sees to the end of what was cancelled.
    await g.happens(lambda: g.cluster.stopped)
    async with asyncio.timeout(300):
        while True:
            try:
                await g.submit(training_file=file)
                return
            except openai.RateLimitError:
                await asyncio.sleep(0.05)


@SQLITE
async def test_a_line_ends_as_at_the_upload(g: Running, team: str) -> None:
    """A carriage return is white space of JSON, and no line's end."""
    content = b"\n".join(json.dumps(example(n)).encode().replace(b": ", b":\r") for n in range(10))
    file = await g.client.files.create(file=("in.jsonl", content), purpose="fine-tune")
    g.start_worker()
    await g.reaches(await g.submit(training_file=file.id), "running")
    stored = g.store.get(FileRepository(load_settings().database_url).get(file.id, team).key)
    assert len(list(rows_of(stored, "supervised"))) == 10


@pytest.mark.parametrize(
    ("examples", "epochs", "batch"), [(10, 10, 8), (3, 25, 3), (50, 3, 8), (20_000, 1, 40)]
)
def test_what_auto_chooses(examples: int, epochs: int, batch: int) -> None:
    chosen = choose(TuningHyperparameters(), examples)
    assert (chosen.n_epochs, chosen.batch_size, chosen.learning_rate_multiplier) == (epochs, batch, 1.0)
    workers, rows, passes = batches(chosen, TuningArgs(num_workers=4))
    assert workers * rows * passes == batch


def test_a_preference_takes_the_memory_of_two_conversations() -> None:
    imitated = TuningHyperparameters(n_epochs=1, batch_size=32, learning_rate_multiplier=1.0)
    preferred = imitated.model_copy(update={"beta": 0.1})
    args = TuningArgs(rows_per_pass=8)
    assert (batches(imitated, args), batches(preferred, args)) == ((1, 8, 4), (1, 4, 8))
    assert batches(preferred, TuningArgs(rows_per_pass=1)) == (1, 1, 32)


@SQLITE
async def test_a_training_is_ordered_as_the_job_reads_it(g: Running) -> None:
    g.start_worker(num_workers=2, resources_per_worker={"GPU": 1})
    asked = {"n_epochs": 4, "batch_size": 6, "learning_rate_multiplier": 0.5}
    job = await g.reaches(await g.submit(hyperparameters=asked, seed=11), "running")
    args = QUICK.model_copy(update={"num_workers": 2, "resources_per_worker": {"GPU": 1.0}})
    config = parse_config(TuneConfig, words(g.cluster.orders[0], args), {}, "tune")
    training = config.training
    assert (config.name, config.num_workers, config.resources_per_worker) == (job.id, 2, {"GPU": 1.0})
    assert (training.seed, training.num_train_epochs, training.learning_rate) == (11, 4, 1e-4)
    assert training.rows_per_step(config.num_workers) == 6
    assert config.base_model == BASE.address


@SQLITE
async def test_readme(g: Running, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """README's lines, over HTTP."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (snippet,) = [part for part in re.findall(r"```python\n(.*?)```", readme, re.S) if "fine_tuning" in part]
    assert "gemma-3-270m" in snippet
    g.start_worker()
    g.script.says = [chat("yes", finish="stop"), usage(1, 1)]

    async def train_and_publish() -> None:
        await g.happens(lambda: g.cluster.orders)
        g.cluster.succeeds(g.cluster.orders[0])
        name = g.cluster.orders[0].record.tuned_name
        while True:  # As the poller of a gateway does.
            found = snapshots.newest(store=g.store)
            mine = [made for made in (found.routes if found else []) if made.model == name]
            if mine:
                routes = [*g.snapshots[-1].routes, *mine]
                await g.publish(g.snapshots[-1].model_copy(update={"number": 2, "routes": routes}))
                return
            await asyncio.sleep(0.02)

    training = asyncio.create_task(train_and_publish())
    port = free_ports(1)
    server = uvicorn.Server(uvicorn.Config(g.app, port=port, lifespan="off", log_level="warning"))
    serving = asyncio.create_task(server.serve())
    await g.happens(lambda: server.started)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="sk-test")
    names = {"client": client, "json": json, "time": time}
    await asyncio.to_thread(exec, snippet.replace("gemma-3-270m", g.model), names)
    server.should_exit = True
    await serving
    await training
    assert capsys.readouterr().out.splitlines()[-1] == "yes"
