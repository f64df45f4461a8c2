"""A gateway with `/v1/fine_tuning`, real storage, SQL and workers, and scripted trainings."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from openai.types.fine_tuning import FineTuningJob
from sqlalchemy import text

from cluster import snapshots
from cluster.contracts import ArtifactRef, CodeRevision, Principal, Target
from cluster.contracts.tuning import TuningRecord
from cluster.database import Database
from cluster.errors import RefusedError, UnavailableError
from cluster.files import FileRepository
from cluster.job.submit import JobOutcome
from cluster.settings import load_settings
from cluster.storage import ArtifactStore, ObjectStore
from cluster.tuning import TuningRepository
from deployments.gateway.args import TuningArgs
from deployments.tuning.trainings import Base, Order
from deployments.tuning.worker import TuningWorker
from tests.conftest import S3, forget_settings
from tests.unit.gateway_app import Fixture, gateway, key, route, snapshot

QUICK = TuningArgs(poll_s=0.05, lease_s=0.6)
BASE = Base("default/model/m/0123456789abcdef", "default/adapters/", 16)
#: For what is the same whatever the database.
SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
STEPS = [
    {"step": 1, "loss": 2.5, "samples_seen": 8, "elapsed_s": 1.0},
    {"step": 2, "loss": 1.5, "samples_seen": 16, "elapsed_s": 2.0},
]


class Cluster:
    """Ray, as far as a worker sees it."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.bases = {"app": BASE}
        self.orders = list[Order]()
        self.jobs = dict[str, JobOutcome]()
        self.stopped = list[str]()
        self.retired = list[TuningRecord]()
        self.retires = "SUCCEEDED"
        #: Whether what is stopped ends at once.
        self.obeys = True
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

    def retire(self, record: TuningRecord, submission_id: str) -> None:
        self._answer()
        assert submission_id not in self.jobs
        self.retired.append(record)
        self.ends(submission_id, self.retires, message="It is served as another.")

    def outcome(self, submission_id: str) -> JobOutcome | None:
        self._answer()
        return self.jobs.get(submission_id)

    def stop(self, submission_id: str) -> None:
        self._answer()
        self.stopped.append(submission_id)
        if submission_id in self.jobs and self.jobs[submission_id].status == "RUNNING" and self.obeys:
            self.ends(submission_id, "STOPPED")

    def _answer(self) -> None:
        if self.away:
            raise UnavailableError("The cluster does not answer.")

    def ends(self, submission_id: str, status: str, **more: Any) -> None:
        self.jobs[submission_id] = JobOutcome(submission_id=submission_id, status=status, **more)

    def succeeds(self, order: Order, steps: list[dict[str, Any]] = STEPS) -> None:
        """Make what ``jobs.tune`` would, and end."""
        record = order.record
        ref = ArtifactRef(team=record.team, kind="checkpoint", name=record.id, fingerprint="0" * 16)
        attempt = ArtifactStore(self._store).attempt(ref, "finetune-1")
        attempt.write("training.jsonl", "".join(f"{json.dumps(step)}\n" for step in steps).encode())
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
            QUICK.model_copy(update=args),
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
        async with asyncio.timeout(300):
            while not good(job):
                await asyncio.sleep(0.02)
                job = await self.client.fine_tuning.jobs.retrieve(job.id)
        return job

    async def reaches(self, job: FineTuningJob, status: str) -> FineTuningJob:
        found = await self.until(job, lambda now: now.status in (status, "failed", "succeeded", "cancelled"))
        assert found.status == status, found
        return found

    async def tuned(self, **more: Any) -> TuningRecord:
        """Tune a model to the end; a worker must be there. The gateway knows it then."""
        job = await self.reaches(await self.submit(**more), "running")
        order = next(order for order in self.cluster.orders if order.record.id == job.id)
        self.cluster.succeeds(order)
        await self.reaches(job, "succeeded")
        await self.follow()
        repository = TuningRepository(load_settings().database_url)
        return repository.get(job.id, order.record.team)

    async def follow(self) -> None:
        """The gateway learns what is published of this test's models, as its poller would."""
        newest = snapshots.newest(store=self.store)
        assert newest is not None
        routes = [found for found in newest.routes if self.model in (found.model, found.base)]
        number = self.snapshots[-1].number + 1
        await self.publish(self.snapshots[-1].model_copy(update={"number": number, "routes": routes}))

    async def happens(self, good: Callable[[], object]) -> None:
        async with asyncio.timeout(300):
            while not good():  # noqa: ASYNC110 - nobody tells.
                await asyncio.sleep(0.02)

    async def settled(self) -> None:
        """Nothing is left to do."""
        query = text("SELECT count(*) FROM fine_tuning_jobs WHERE NOT settled")

        def is_settled() -> bool:
            with Database(load_settings().database_url).read() as connection:
                return connection.execute(query).scalar_one() == 0

        await self.happens(is_settled)

    async def told(self, job: FineTuningJob) -> list[str]:
        events = (await self.client.fine_tuning.jobs.list_events(job.id, limit=100)).data
        return [event.message for event in reversed(events)]


def example(number: int) -> dict[str, Any]:
    asked, answer = {"role": "user", "content": f"Say {number}"}, {"role": "assistant", "content": "No."}
    return {"messages": [asked, answer]}


def preference(number: int) -> dict[str, Any]:
    asked, answer = example(number)["messages"]
    other = {"role": "assistant", "content": "Perhaps."}
    return {"input": {"messages": [asked]}, "preferred_output": [answer], "non_preferred_output": [other]}


@pytest.fixture
async def tuning(
    s3: S3,
    store: ObjectStore,
    team: str,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Running]:
    """One that serves ``m-<team>`` from application ``app``; workers are started by tests, which name it."""
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
