"""``/v1/fine_tuning/jobs`` with the official client: real storage, SQL and worker, scripted trainings."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn
from openai.types.fine_tuning import FineTuningJob
from sqlalchemy import text

from cluster import snapshots
from cluster.contracts import ArtifactRef, CodeRevision, Principal, Snapshot, Target
from cluster.contracts.tuning import TuningHyperparameters, TuningStatus
from cluster.database import Database
from cluster.errors import RefusedError, UnavailableError
from cluster.files import FileRepository
from cluster.job.config import parse_config
from cluster.job.submit import JobOutcome
from cluster.settings import load_settings
from cluster.storage import ArtifactStore, ObjectStore
from cluster.tuning import TuningRepository, changed, make_event
from deployments.gateway.args import TuningArgs
from deployments.plan import Plan, with_routes
from deployments.tuning.choosing import batches, choose
from deployments.tuning.trainings import Base, Order, base_of, words
from deployments.tuning.worker import TuningWorker
from jobs.tune import TuneConfig, _rows
from tests.conftest import S3, forget_settings
from tests.ports import free_ports
from tests.unit.gateway_app import Fixture, chat, gateway, key, route, snapshot, usage

pytestmark = pytest.mark.integration
_RATE = "learning_rate_multiplier"
_QUICK = TuningArgs(poll_s=0.05, lease_s=0.6)
_BASE = Base("default/model/m/0123456789abcdef", "default/adapters/", 16)
#: For what is the same whatever the database.
_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
_STEPS = [
    {"step": 1, "loss": 2.5, "samples_seen": 8, "elapsed_s": 1.0},
    {"step": 2, "loss": 1.5, "samples_seen": 16, "elapsed_s": 2.0},
]


class Cluster:
    """Ray, as far as a worker sees it."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.bases = {"app": _BASE}
        self.orders = list[Order]()
        self.jobs = dict[str, JobOutcome]()
        self.stopped = list[str]()
        self.away = False

    def base(self, application: str) -> Base:
        if application not in self.bases:
            raise RefusedError(f"Application {application} takes no adapters.")
        return self.bases[application]

    def submit(self, order: Order) -> None:
        self._answer()
        assert order.record.submission_id not in self.jobs
        self.orders.append(order)
        self.ends(order.record.submission_id, "RUNNING")

    def outcome(self, submission_id: str) -> JobOutcome | None:
        self._answer()
        return self.jobs.get(submission_id)

    def stop(self, submission_id: str) -> None:
        self._answer()
        self.stopped.append(submission_id)

    def _answer(self) -> None:
        if self.away:
            raise UnavailableError("The cluster does not answer.")

    def ends(self, submission_id: str, status: str, **more: Any) -> None:
        self.jobs[submission_id] = JobOutcome(submission_id=submission_id, status=status, **more)

    def succeeds(self, order: Order) -> None:
        """Make what ``jobs.tune`` would, and end."""
        record = order.record
        ref = ArtifactRef(team=record.team, kind="checkpoint", name=record.id, fingerprint="0" * 16)
        attempt = ArtifactStore(self._store).attempt(ref, "finetune-1")
        attempt.write("training.jsonl", "".join(f"{json.dumps(step)}\n" for step in _STEPS).encode())
        attempt.commit(
            owner=Principal(key_id=record.key_id, team=record.team),
            configuration={},
            code=CodeRevision(epoch=1),
            started_at=datetime.now(UTC),
            summary={"valid_loss": 1.75} if order.validation_file else {},
        )
        summary = {"model": f"{record.id}@1", "digest": "d" * 64, "checkpoint": str(ref), "steps": 2}
        summary |= {"trained_tokens": 320, "last_loss": 1.5, "valid_loss": None}
        self.ends(record.submission_id, "SUCCEEDED", result={"artifact": str(ref), "summary": summary})


class Running(Fixture):
    """A gateway, its workers and what they train on."""

    model: str
    cluster: Cluster
    store: ObjectStore
    workers: list[asyncio.Task[None]]

    def start_worker(self, publish_s: float = 0.3, **args: Any) -> asyncio.Task[None]:
        url = load_settings().database_url
        worker = TuningWorker(
            self.poller,
            TuningRepository(url),
            FileRepository(url),
            self.store,
            _QUICK.model_copy(update=args),
            f"worker-{len(self.workers)}",
            self.cluster,
            3600,
            publish_s,
        )
        self.workers.append(asyncio.create_task(worker.run()))
        return self.workers[-1]

    async def upload(self, count: int = 10, make: Callable[[int], Any] | None = None, **more: Any) -> str:
        content = "\n".join(json.dumps((make or example)(number)) for number in range(count)).encode()
        wanted = {"purpose": "fine-tune"} | more
        return (await self.client.files.create(file=("in.jsonl", content), **wanted)).id

    async def submit(self, **more: Any) -> FineTuningJob:
        if "training_file" not in more:
            more["training_file"] = await self.upload()
        return await self.client.fine_tuning.jobs.create(**{"model": self.model} | more)

    async def until(self, job: FineTuningJob, good: Callable[[FineTuningJob], bool]) -> FineTuningJob:
        async with asyncio.timeout(30):
            while not good(job):
                await asyncio.sleep(0.02)
                job = await self.client.fine_tuning.jobs.retrieve(job.id)
        return job

    async def reaches(self, job: FineTuningJob, status: str) -> FineTuningJob:
        found = await self.until(job, lambda now: now.status in (status, "failed", "succeeded", "cancelled"))
        assert found.status == status, found
        return found

    async def happens(self, good: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not good():  # noqa: ASYNC110 - nobody tells.
                await asyncio.sleep(0.02)

    async def told(self, job: FineTuningJob) -> list[str]:
        events = (await self.client.fine_tuning.jobs.list_events(job.id, limit=100)).data
        return [event.message for event in reversed(events)]


def example(number: int) -> dict[str, Any]:
    asked, answer = {"role": "user", "content": f"Say {number}"}, {"role": "assistant", "content": "No."}
    return {"messages": [asked, answer]}


@pytest.fixture
async def g(
    s3: S3,
    store: ObjectStore,
    team: str,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Running]:
    monkeypatch.setenv("MANTA_HOME", str(tmp_path))
    monkeypatch.setenv("MANTA_DATABASE__URL", database_url)
    forget_settings()
    keys = [key(team=team), key("sk-other", id="other", team=f"{team}-other")]
    routes = [route(f"m-{team}"), route("elsewhere", targets=[Target(base_url="http://x", model="e")])]
    added = lambda now: now.model_copy(update={"routes": [*now.routes, routes[0]]})  # noqa: E731
    snapshots.publish(added, "test", store)
    async with gateway(snapshot(keys=keys, routes=routes)) as running:
        running.__class__ = Running
        assert isinstance(running, Running)
        running.model, running.store, running.workers = f"m-{team}", store, []
        running.cluster = Cluster(store)
        yield running
        for worker in running.workers:
            worker.cancel()
        await asyncio.gather(*running.workers, return_exceptions=True)
    forget_settings()


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
    assert (order.training_file.id, order.base) == (job.training_file, _BASE)
    chosen = {"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": 1.0}
    assert job.hyperparameters.to_dict() == chosen
    assert job.method is not None
    assert job.method.to_dict()["supervised"] == {"hyperparameters": chosen}
    jobs = TuningRepository(load_settings().database_url)
    for step in _STEPS:  # As the training itself does, some of it twice.
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
    ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1}}}}, 400, "method.type"),
    ({"method": {"type": "reinforcement"}}, 400, "method.type"),
    ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, 400, "integrations"),
]


@_SQLITE
async def test_what_cannot_be_asked_for(g: Running) -> None:
    file = await g.upload()
    for wanted, status, param in _WRONG:
        with pytest.raises(openai.APIStatusError) as refused:
            await g.submit(**{"training_file": file} | wanted)
        assert (refused.value.status_code, refused.value.param) == (status, param), wanted
    assert (await g.client.fine_tuning.jobs.list()).data == []


@_SQLITE
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

    def preference(number: int) -> dict[str, Any]:
        asked, answer = example(number)["messages"]
        return {
            "input": {"messages": [asked]},
            "preferred_output": [answer],
            "non_preferred_output": [answer],
        }

    g.start_worker(jobs_at_once=4)
    with_tools = await g.submit(training_file=await g.upload(10, tools))
    preferences = await g.submit(training_file=mine, validation_file=await g.upload(10, preference))
    gone = await g.upload()
    g.workers[0].cancel()
    await asyncio.gather(g.workers[0], return_exceptions=True)
    deleted = await g.submit(training_file=gone)
    await g.client.files.delete(gone)
    g.start_worker()
    for job, code, says in (
        (with_tools, "invalid_training_file", "Line 5: it has tools"),
        (preferences, "invalid_validation_file", "Line 1: it is a preference"),
        (deleted, "file_not_found", "no longer there"),
    ):
        failed = await g.reaches(job, "failed")
        assert failed.error is not None
        assert failed.error.code == code
        assert says in failed.error.message
        assert failed.fine_tuned_model is None
    assert g.cluster.orders == []


@_SQLITE
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
    async with asyncio.timeout(30):
        while True:
            try:
                await g.submit(training_file=file)
                return
            except openai.RateLimitError:
                await asyncio.sleep(0.05)


@_SQLITE
async def test_a_line_ends_as_at_the_upload(g: Running, team: str) -> None:
    """A carriage return is white space of JSON, and no line's end."""
    content = b"\n".join(json.dumps(example(n)).encode().replace(b": ", b":\r") for n in range(10))
    file = await g.client.files.create(file=("in.jsonl", content), purpose="fine-tune")
    g.start_worker()
    await g.reaches(await g.submit(training_file=file.id), "running")
    stored = g.store.get(FileRepository(load_settings().database_url).get(file.id, team).key)
    assert len(list(_rows(stored))) == 10


@_SQLITE
async def test_a_record_that_cannot_be_read_holds_up_no_other(g: Running) -> None:
    bad, good = await g.submit(), await g.submit()  # As a newer release may leave one behind.
    with Database(load_settings().database_url).write() as connection:
        change = "UPDATE fine_tuning_jobs SET terms = '{}' WHERE id = :id"
        connection.execute(text(change), {"id": bad.id})
    worker = g.start_worker()
    await g.reaches(good, "running")
    assert not worker.done()


@_SQLITE
async def test_a_checkpoint_that_is_lost_ends_its_job(g: Running) -> None:
    g.start_worker()
    job = await g.reaches(await g.submit(), "running")
    summary = {"model": f"{job.id}@1", "digest": "d" * 64, "checkpoint": f"t/checkpoint/{job.id}/{'0' * 16}"}
    g.cluster.ends(
        g.cluster.orders[0].record.submission_id, "SUCCEEDED", result={"artifact": "", "summary": summary}
    )
    failed = await g.reaches(job, "failed")
    assert failed.error is not None
    assert "What was trained is lost" in failed.error.message


@_SQLITE
async def test_an_application_that_takes_no_adapters(g: Running, store: ObjectStore) -> None:
    g.cluster.bases.clear()
    g.start_worker()
    failed = await g.reaches(await g.submit(), "failed")
    assert failed.error is not None
    assert (failed.error.code, failed.error.param) == ("model_not_available", "model")
    served: dict[str, Any] = {"args": {"model": "a/b/c/d", "llm_config": {"engine_kwargs": {}}}}
    with pytest.raises(RefusedError, match="enable_lora"):
        base_of("app", served, store, "default")
    served["args"]["llm_config"] = {
        "engine_kwargs": {"enable_lora": True, "max_lora_rank": 4},
        "lora_config": {"dynamic_lora_loading_path": store.uri("others/adapters")},
    }
    assert base_of("app", served, store, "default") == Base("a/b/c/d", "others/adapters/", 4)


@_SQLITE
async def test_cancel_stops_what_runs(g: Running) -> None:
    g.start_worker()
    job = await g.reaches(await g.submit(), "running")
    cancelled = await g.client.fine_tuning.jobs.cancel(job.id)
    assert (cancelled.status, cancelled.fine_tuned_model) == ("cancelled", None)
    assert cancelled.finished_at is not None
    (order,) = g.cluster.orders
    await g.happens(lambda: g.cluster.stopped)
    assert g.cluster.stopped == [order.record.submission_id]
    with pytest.raises(openai.BadRequestError, match="already been cancelled"):
        await g.client.fine_tuning.jobs.cancel(job.id)
    # Its place is free again, and one that waits can be cancelled too.
    second = await g.reaches(await g.submit(), "running")
    waits = await g.reaches(await g.submit(), "queued")
    assert (await g.client.fine_tuning.jobs.cancel(waits.id)).status == "cancelled"
    await g.happens(lambda: len(g.cluster.stopped) == 2)
    g.cluster.succeeds(g.cluster.orders[-1])
    done = await g.reaches(second, "succeeded")
    with pytest.raises(openai.BadRequestError, match="already succeeded"):
        await g.client.fine_tuning.jobs.cancel(done.id)
    assert len(g.cluster.orders) == 2


@_SQLITE
async def test_a_cancel_in_the_last_moment_takes_the_route_away(g: Running) -> None:
    def published() -> set[str]:
        found = snapshots.newest(store=g.store)
        return {made.model for made in (found.routes if found else [])}

    g.start_worker(publish_s=2.0)
    job = await g.reaches(await g.submit(), "running")
    (order,) = g.cluster.orders
    g.cluster.succeeds(order)
    await g.happens(lambda: order.record.tuned_name in published())
    assert (await g.client.fine_tuning.jobs.cancel(job.id)).status == "cancelled"
    await g.happens(lambda: order.record.tuned_name not in published())
    job = await g.client.fine_tuning.jobs.retrieve(job.id)
    assert (job.status, job.fine_tuned_model, job.result_files) == ("cancelled", None, [])


async def test_a_killed_worker_and_a_lost_cluster(g: Running) -> None:
    first = g.start_worker()
    job = await g.reaches(await g.submit(), "running")
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    g.start_worker()
    g.cluster.away = True  # It is waited for.
    await asyncio.sleep(0.3)
    assert (await g.client.fine_tuning.jobs.retrieve(job.id)).status == "running"
    assert len(g.cluster.orders) == 1  # The second worker found the same training.
    g.cluster.jobs.clear()  # A new cluster knows nothing of it.
    g.cluster.away = False
    await g.happens(lambda: len(g.cluster.orders) == 2)
    lost, again = g.cluster.orders
    assert words(lost, _QUICK) == words(again, _QUICK)  # The same, so that it resumes.
    g.cluster.succeeds(again)
    await g.reaches(job, "succeeded")


@_SQLITE
async def test_trainings_that_fail_are_begun_again_and_given_up(g: Running) -> None:
    g.start_worker(attempts=2)
    job = await g.reaches(await g.submit(), "running")
    for attempt in (1, 2):
        await g.happens(lambda attempt=attempt: len(g.cluster.orders) == attempt)
        g.cluster.ends(g.cluster.orders[-1].record.submission_id, "FAILED", message="The node died.")
    failed = await g.reaches(await g.until(job, lambda now: now.status != "running"), "failed")
    assert failed.error is not None
    assert (failed.error.code, failed.error.message) == ("training_failed", "The node died.")
    assert len({order.record.submission_id for order in g.cluster.orders}) == 2


@_SQLITE
async def test_a_key_that_ends_ends_its_job(g: Running, team: str) -> None:
    g.start_worker()
    job = await g.reaches(await g.submit(), "running")
    keys = [key(team=team, revoked=True), key("sk-second", id="second", team=team)]
    await g.publish(g.snapshots[-1].model_copy(update={"number": 2, "keys": keys}))
    with pytest.raises(openai.AuthenticationError):
        await g.client.fine_tuning.jobs.retrieve(job.id)
    g.client = g.client.with_options(api_key="sk-second")
    failed = await g.until(job.model_copy(), lambda now: now.status == "failed")
    assert failed.error is not None
    assert failed.error.code == "key_ended"
    await g.happens(lambda: g.cluster.stopped)


@_SQLITE
async def test_a_base_that_changes_meanwhile_gets_no_adapter_of_the_old_one(g: Running) -> None:
    g.start_worker()
    job = await g.reaches(await g.submit(), "running")
    g.cluster.bases["app"] = Base("default/model/m/" + "f" * 16, "default/adapters/", 16)
    g.cluster.succeeds(g.cluster.orders[0])
    failed = await g.reaches(job, "failed")
    assert failed.error is not None
    assert "another model now" in failed.error.message


async def test_only_the_holder_reports(g: Running, team: str) -> None:
    made = await g.submit()
    jobs = TuningRepository(load_settings().database_url)
    found = jobs.claim("one", 0.0)
    assert found is not None
    record, stale = found
    assert record.id == made.id
    taken = jobs.claim("two", 60.0)
    assert taken is not None
    assert jobs.claim("three", 60.0) is None
    running = changed(record, status=TuningStatus.RUNNING)
    for late in (
        lambda: jobs.report(record.id, stale, running, 1),
        lambda: jobs.renew(record.id, stale, 1),
        lambda: jobs.settle(record.id, stale),
    ):
        with pytest.raises(RefusedError):
            late()
    jobs.cancel(record.id, team)
    # What its worker still says changes nothing.
    assert jobs.report(record.id, taken[1], running, 1).status is TuningStatus.CANCELLED
    jobs.settle(record.id, taken[1])
    assert jobs.claim("four", 60.0) is None


@pytest.mark.parametrize(
    ("examples", "epochs", "batch"), [(10, 10, 8), (3, 25, 3), (50, 3, 8), (20_000, 1, 40)]
)
def test_what_auto_chooses(examples: int, epochs: int, batch: int) -> None:
    chosen = choose(TuningHyperparameters(), examples)
    assert (chosen.n_epochs, chosen.batch_size, chosen.learning_rate_multiplier) == (epochs, batch, 1.0)
    workers, rows, passes = batches(chosen, TuningArgs(num_workers=4))
    assert workers * rows * passes == batch


@_SQLITE
async def test_a_training_is_ordered_as_the_job_reads_it(g: Running) -> None:
    g.start_worker(num_workers=2, resources_per_worker={"GPU": 1})
    asked = {"n_epochs": 4, "batch_size": 6, "learning_rate_multiplier": 0.5}
    job = await g.reaches(await g.submit(hyperparameters=asked, seed=11), "running")
    args = _QUICK.model_copy(update={"num_workers": 2, "resources_per_worker": {"GPU": 1.0}})
    config = parse_config(TuneConfig, words(g.cluster.orders[0], args), {}, "tune")
    training = config.training
    assert (config.name, config.num_workers, config.resources_per_worker) == (job.id, 2, {"GPU": 1.0})
    assert (training.seed, training.num_train_epochs, training.learning_rate) == (11, 4, 1e-4)
    assert training.rows_per_step(config.num_workers) == 6
    assert config.base_model == _BASE.address


@_SQLITE
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
