"""``/v1/batches`` with the official client: real storage and SQL, the real worker, a scripted model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn
from openai.types import Batch
from sqlalchemy import text

from cluster.batches import BatchRepository, new_batch_id
from cluster.contracts import Target, UpstreamRequest
from cluster.contracts.batches import BatchProgress, BatchRecord, BatchTerms
from cluster.database import Database
from cluster.errors import RefusedError
from cluster.files import FileRepository
from cluster.settings import load_settings
from cluster.storage import ObjectStore
from deployments.batches.ending import finish
from deployments.batches.parts import Parts
from deployments.batches.worker import BatchWorker
from deployments.gateway.args import BatchArgs
from deployments.gateway.errors import ApiError
from tests.conftest import S3, forget_settings
from tests.ports import free_ports
from tests.unit.gateway_app import (
    Chunk,
    Fixture,
    NoWorkers,
    chat,
    gateway,
    key,
    policy,
    route,
    snapshot,
    usage,
)
from tests.unit.test_gateway_record import Keeps
from validation.guards import GuardEngine

pytestmark = pytest.mark.integration
_QUICK = BatchArgs(flush_s=0.05, poll_s=0.05, lease_s=60)
_ENDED = ("completed", "failed", "cancelled", "expired")


class Model:
    """Answers each row by its own text, and knows how often it was asked."""

    def __init__(self) -> None:
        self.asked = Counter[str]()
        self.pause_s = 0.0
        #: Answers until :attr:`go_on` is set; who asks for more waits for that.
        self.most_answers: float = float("inf")
        self.go_on = asyncio.Event()
        self.at_once = self.most_at_once = 0
        self.fails: Callable[[str, int], Exception | None] = lambda text, time: None

    async def chunks(self, target: Target, request: UpstreamRequest) -> AsyncGenerator[list[Chunk], None]:
        text = request.body["messages"][-1]["content"]
        self.asked[text] += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        failure = self.fails(text, self.asked[text])
        try:
            await asyncio.sleep(self.pause_s)
            self.most_answers -= 1
            if self.most_answers < 0:
                await self.go_on.wait()
        finally:
            self.at_once -= 1
        if failure is not None:
            raise failure
        yield [chat(f"Answer to {text}", finish="stop"), usage(3, 2)]


class Running(Fixture):
    """A gateway, and its workers."""

    model: Model
    kept: Keeps
    store: ObjectStore
    workers: list[asyncio.Task[None]]
    worker: BatchWorker

    def start_worker(self, **args: Any) -> asyncio.Task[None]:
        url = load_settings().database_url
        worker = BatchWorker(
            self.pipeline,
            BatchRepository(url),
            FileRepository(url),
            self.store,
            _QUICK.model_copy(update=args),
            f"worker-{len(self.workers)}",
            GuardEngine,
            3600,
        )
        self.worker = worker
        self.workers.append(asyncio.create_task(worker.run()))
        return self.workers[-1]

    async def upload(self, count: int, **more: Any) -> str:
        content = b"".join(json.dumps(line(number, **more)).encode() + b"\n" for number in range(count))
        return (await self.client.files.create(file=("in.jsonl", content), purpose="batch")).id

    async def submit(self, count: int, **more: Any) -> Batch:
        return await self.client.batches.create(
            input_file_id=await self.upload(count),
            endpoint="/v1/chat/completions",
            completion_window="24h",
            **more,
        )

    async def until(self, batch: Batch, good: Callable[[Batch], bool]) -> Batch:
        async with asyncio.timeout(300):
            while not good(batch):
                await asyncio.sleep(0.02)
                batch = await self.client.batches.retrieve(batch.id)
        return batch

    async def happens(self, good: Callable[[], object]) -> None:
        async with asyncio.timeout(300):
            while not good():  # noqa: ASYNC110 - nobody tells.
                await asyncio.sleep(0.02)

    async def swept(self, team: str) -> None:
        """Nothing is left of the team's batches but their files."""
        await self.happens(lambda: not list(self.store.list(f"{team}/batches/")))

    async def ended(self, batch: Batch) -> Batch:
        return await self.until(batch, lambda now: now.status in _ENDED)

    async def lines(self, file_id: str | None) -> dict[str, dict[str, Any]]:
        """By custom id; each is there once."""
        if file_id is None:
            return {}
        content = (await self.client.files.content(file_id)).text
        lines = [json.loads(text) for text in content.splitlines()]
        found = {item["custom_id"]: item for item in lines}
        assert len(found) == len(lines)
        return found


def line(number: int, **more: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": f"question {number}"}]}
    whole = {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return whole | more


@pytest.fixture
async def g(
    s3: S3, store: ObjectStore, team: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Running]:
    monkeypatch.setenv("MANTA_HOME", str(tmp_path))
    forget_settings()
    keys = [key(team=team), key("sk-other", id="other", team=f"{team}-other")]
    guards = policy("default", {"name": "words", "kind": "ban_list", "on": "both", "words": ["forbidden"]})
    kept = Keeps()
    async with gateway(snapshot(keys=keys, policies=[guards]), observers=[kept]) as running:
        running.__class__ = Running
        assert isinstance(running, Running)
        running.model, running.store, running.workers, running.kept = Model(), store, [], kept
        running.script.chunks = running.model.chunks  # type: ignore[method-assign]
        yield running
        for worker in running.workers:
            worker.cancel()
        await asyncio.gather(*running.workers, return_exceptions=True)
    forget_settings()


async def test_a_batch_from_upload_to_results(g: Running, team: str) -> None:
    g.start_worker()
    batch = await g.submit(40, metadata={"night": "1"})
    assert (batch.status, batch.object, batch.metadata) == ("validating", "batch", {"night": "1"})
    assert batch.expires_at == batch.created_at + 24 * 3600
    done = await g.ended(batch)
    assert (done.status, done.errors, done.error_file_id) == ("completed", None, None)
    assert done.request_counts is not None
    assert done.request_counts.to_dict() == {"total": 40, "completed": 40, "failed": 0}
    assert done.usage is not None
    assert (done.usage.input_tokens, done.usage.output_tokens, done.usage.total_tokens) == (120, 80, 200)
    assert done.created_at <= done.in_progress_at <= done.finalizing_at <= done.completed_at  # type: ignore[operator]
    output = await g.lines(done.output_file_id)
    assert set(output) == {f"row-{number}" for number in range(40)}
    answer = output["row-7"]
    assert (answer["error"], answer["response"]["status_code"]) == (None, 200)
    assert answer["response"]["body"]["choices"][0]["message"]["content"] == "Answer to question 7"
    assert answer["response"]["body"]["model"] == "m"
    assert set(g.model.asked.values()) == {1}
    file = await g.client.files.retrieve(done.output_file_id or "")
    assert (file.purpose, file.filename) == ("batch_output", f"{batch.id}_output.jsonl")
    await g.swept(team)  # The parts are in the file now.


async def test_rows_fail_alone(g: Running) -> None:
    def fails(text: str, time: int) -> Exception | None:
        if text == "question 1":
            return ApiError(400, "This model's maximum context length is 8.", code="context_length_exceeded")
        if text == "question 2":
            return ApiError(503, "failed", code="replica_failed", retry_after_s=0)
        if text == "question 3" and time <= 4:
            return ApiError(503, "overloaded", code="overloaded", retry_after_s=0)
        return RuntimeError("a bug") if text == "question 4" else None

    g.model.fails = fails
    g.start_worker(attempts=2)
    rows = [line(number) for number in range(6)]
    rows[5]["body"]["messages"][0]["content"] = "a forbidden word"
    content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    file = await g.client.files.create(file=("in.jsonl", content), purpose="batch")
    batch = await g.client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    done = await g.ended(batch)
    assert done.status == "completed"
    output, errors = await g.lines(done.output_file_id), await g.lines(done.error_file_id)
    assert set(output) == {"row-0", "row-3"}  # Whoever finds no place waits.
    told = {
        name: (row["response"]["status_code"], row["response"]["body"]["error"]["code"])
        for name, row in errors.items()
    }
    assert told == {
        "row-1": (400, "context_length_exceeded"),
        "row-2": (503, "replica_failed"),
        "row-4": (500, None),
        "row-5": (400, "content_filter"),
    }
    assert g.model.asked["question 2"] == 2
    # Each try is on record, under its row's request id.
    tries: dict[str, list[int | None]] = {}
    for record in g.kept.records:
        if record.endpoint == "chat":
            tries.setdefault(record.request_id, []).append(record.attempt)
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in tries.values())
    assert sorted(map(len, tries.values())) == [1, 1, 1, 2, 2, 5]
    assert "a forbidden word" not in g.model.asked


async def test_another_worker_goes_on_where_one_died(g: Running) -> None:
    g.model.most_answers = 20
    first = g.start_worker(concurrency=4)
    batch = await g.submit(100)
    await g.until(batch, lambda now: now.request_counts.completed >= 20)  # type: ignore[union-attr]
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    asked = sum(g.model.asked.values())
    left = await g.client.batches.retrieve(batch.id)
    assert left.request_counts is not None
    g.model.go_on.set()
    g.start_worker(concurrency=4)
    done = await g.ended(batch)
    assert done.request_counts is not None
    assert done.request_counts.completed == 100
    assert len(await g.lines(done.output_file_id)) == 100
    # What was told as done stays done, and of the rest each row is asked once more at most.
    assert sum(g.model.asked.values()) <= asked + 100 - left.request_counts.completed


async def test_a_worker_that_comes_back_too_late_changes_nothing(g: Running, team: str) -> None:
    batch = await g.submit(3)
    repository = BatchRepository(load_settings().database_url)
    late = repository.claim("late", 0.0)
    assert late is not None
    g.start_worker()
    done = await g.ended(batch)
    for change in (
        lambda: repository.renew(batch.id, late[1], 10),
        lambda: repository.report(batch.id, late[1], late[0], 10),
    ):
        with pytest.raises(RefusedError, match="now"):
            change()
    repository.release(batch.id, late[1])
    assert (await g.client.batches.retrieve(batch.id)).status == done.status == "completed"
    assert repository.claim("more", 1) is None


async def test_a_cancelled_batch_keeps_what_it_has(g: Running) -> None:
    g.model.most_answers = 5
    g.start_worker(concurrency=2)
    batch = await g.submit(200)
    await g.until(batch, lambda now: now.request_counts.completed >= 5)  # type: ignore[union-attr]
    assert (await g.client.batches.cancel(batch.id)).status == "cancelling"
    done = await g.ended(batch)
    assert done.status == "cancelled"
    assert done.cancelled_at is not None
    output, errors = await g.lines(done.output_file_id), await g.lines(done.error_file_id)
    assert set(output) | set(errors) == {f"row-{number}" for number in range(200)}
    assert not set(output) & set(errors)
    assert len(output) == 5
    assert {row["error"]["code"] for row in errors.values()} == {"batch_cancelled"}
    assert sum(g.model.asked.values()) <= 5 + 2
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a batch with status 'cancelled'"):
        await g.client.batches.cancel(batch.id)


async def test_cancelled_before_it_began(g: Running) -> None:
    batch = await g.submit(3)
    await g.client.batches.cancel(batch.id)
    g.start_worker()
    done = await g.ended(batch)
    assert (done.status, done.output_file_id) == ("cancelled", None)
    assert len(await g.lines(done.error_file_id)) == 3
    assert not g.model.asked


async def test_a_batch_that_is_not_done_in_time(g: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.gateway.batches._WINDOW", timedelta(seconds=1))
    g.model.pause_s = 0.1
    g.start_worker(concurrency=2)
    done = await g.ended(await g.submit(100))
    assert done.status == "expired"
    output, errors = await g.lines(done.output_file_id), await g.lines(done.error_file_id)
    assert len(output) + len(errors) == 100
    assert {row["error"]["code"] for row in errors.values()} == {"batch_expired"}


async def test_a_key_that_is_revoked_meanwhile(g: Running, team: str) -> None:
    g.model.most_answers = 5
    g.start_worker(concurrency=2)
    batch = await g.submit(100)
    await g.until(batch, lambda now: now.request_counts.completed >= 5)  # type: ignore[union-attr]
    successor = key("sk-next", id="next", team=team)
    await g.publish(g.snapshots[-1].model_copy(update={"number": 2, "keys": [successor]}))
    g.client = g.client.with_options(api_key="sk-next")
    g.model.go_on.set()
    done = await g.ended(batch)
    assert done.status == "cancelled"
    assert done.errors is not None
    assert [error.code for error in done.errors.data or []] == ["key_ended"]
    output, errors = await g.lines(done.output_file_id), await g.lines(done.error_file_id)
    assert len(output) + len(errors) == 100


async def test_batches_step_back_for_interactive_requests(
    g: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    g.model.most_answers, g.model.pause_s = 20, 0.005
    g.start_worker(concurrency=8)
    batch = await g.submit(100)
    await g.until(batch, lambda now: now.request_counts.completed >= 20)  # type: ignore[union-attr]
    await g.happens(lambda: g.model.at_once == 8)
    monkeypatch.setattr("deployments.batches.worker._BUSY_S", 3600.0)
    g.worker.step_back()
    g.model.go_on.set()
    await g.happens(lambda: g.model.at_once <= 1)
    asked, g.model.most_at_once = g.model.asked.total(), 0
    await g.happens(lambda: g.model.asked.total() >= asked + 10)
    assert g.model.most_at_once == 1  # It goes on, but slowly.
    monkeypatch.setattr("deployments.batches.worker._BUSY_S", 0.0)
    g.worker.step_back()  # And that is over.
    await g.ended(batch)
    assert g.model.most_at_once == 8


async def test_workers_are_told_of_interactive_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.gateway.batches._TELL_S", 0.01)
    told, often = list[str](), asyncio.Event()

    class Hears(NoWorkers):
        def step_back(self) -> None:
            told.append("step back")
            if len(told) == 3:
                often.set()

    async with gateway(workers=Hears()) as running:
        await asyncio.sleep(0.1)
        assert told == []
        running.script.says = [chat("x"), chat("y", finish="stop")]
        running.script.go_on.clear()
        body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
        asked = asyncio.create_task(running.client.chat.completions.create(**body))
        await often.wait()  # Again and again.
        running.script.go_on.set()
        await asked
        count = len(told)
        await asyncio.sleep(0.1)
        assert len(told) == count


async def test_the_policy_is_the_one_of_submission(g: Running) -> None:
    batch = await g.submit(2)
    strict = policy("default", {"name": "w", "kind": "ban_list", "on": "input", "words": ["question"]})
    await g.publish(g.snapshots[-1].model_copy(update={"number": 2, "policies": [strict]}))
    g.start_worker()
    assert (await g.ended(batch)).request_counts.completed == 2  # type: ignore[union-attr]
    assert (await g.ended(await g.submit(2))).request_counts.failed == 2  # type: ignore[union-attr]


async def test_what_cannot_be_a_batch_is_refused(g: Running) -> None:
    file = await g.upload(1)
    tuning = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    other = await g.client.files.create(file=("t.jsonl", tuning), purpose="fine-tune")
    unknown = await g.upload(1, body={"model": "none", "messages": [{"role": "user", "content": "x"}]})
    good = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    for change, status, code in [
        ({"input_file_id": "file-none"}, 404, "not_found"),
        ({"input_file_id": other.id}, 400, "invalid_file_purpose"),
        ({"input_file_id": unknown}, 404, "model_not_found"),
        ({"endpoint": "/v1/completions"}, 400, "mismatched_endpoint"),
        ({"endpoint": "/v1/images"}, 400, "invalid_value"),
        ({"completion_window": "1h"}, 400, "invalid_value"),
        ({"metadata": {"a" * 65: "b"}}, 400, None),
        ({"metadata": {str(number): "b" for number in range(17)}}, 400, "invalid_value"),
    ]:
        with pytest.raises(openai.APIStatusError) as refused:
            await g.client.batches.create(**good | change)  # type: ignore[arg-type]
        assert (refused.value.status_code, refused.value.code) == (status, code), change
    assert [batch async for batch in g.client.batches.list()] == []


async def test_batches_are_their_teams(g: Running) -> None:
    made = [(await g.submit(1)).id for _ in range(3)]
    assert [batch.id async for batch in g.client.batches.list(limit=2)] == made[::-1]
    other = g.client.with_options(api_key="sk-other")
    assert [batch async for batch in other.batches.list()] == []
    for ask in (other.batches.retrieve, other.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            await ask(made[0])
    with pytest.raises(openai.NotFoundError):
        await other.batches.create(
            input_file_id=await g.upload(1), endpoint="/v1/chat/completions", completion_window="24h"
        )


async def test_an_input_file_that_is_gone(g: Running) -> None:
    batch = await g.submit(1)
    await g.client.files.delete(batch.input_file_id)
    g.start_worker()
    done = await g.ended(batch)
    assert done.status == "failed"
    assert done.errors is not None
    assert [error.code for error in done.errors.data or []] == ["file_not_found"]


async def test_storage_away_for_a_while(g: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.errors import UnavailableError

    batch = await g.submit(60)
    put, fails = g.store.put, [10]

    def away(*args: Any) -> None:
        if fails[0]:
            fails[0] -= 1
            raise UnavailableError("away")
        put(*args)

    monkeypatch.setattr(g.store, "put", away)
    g.start_worker()
    done = await g.ended(batch)
    assert done.request_counts is not None
    assert (done.status, done.request_counts.completed, fails) == ("completed", 60, [0])
    assert len(await g.lines(done.output_file_id)) == 60
    assert set(g.model.asked.values()) == {1}


@pytest.mark.parametrize("code", ["replica_failed", "engine_stopped"])
async def test_a_row_that_kills_replicas_takes_no_other_with_it(g: Running, code: str) -> None:
    kills = "question 3"
    at_work = dict[str, asyncio.Event]()

    async def chunks(target: Target, request: UpstreamRequest) -> AsyncGenerator[list[Chunk], None]:
        text = request.body["messages"][-1]["content"]
        g.model.asked[text] += 1
        dies = at_work[text] = asyncio.Event()
        try:
            await asyncio.sleep(0.01 if text == kills else 0.05)
            if text == kills:  # All die that are in flight.
                for other in at_work.values():
                    other.set()
            if dies.is_set():
                raise ApiError(503, "died", code=code, retry_after_s=0)
            yield [chat(f"Answer to {text}", finish="stop"), usage(3, 2)]
        finally:
            del at_work[text]

    g.script.chunks = chunks  # type: ignore[method-assign]
    g.start_worker(attempts=3, concurrency=8)
    done = await g.ended(await g.submit(12))
    assert done.status == "completed"
    assert set(await g.lines(done.error_file_id)) == {"row-3"}
    assert g.model.asked[kills] == 3


async def test_who_finishes_too_late_changes_no_file(g: Running, team: str) -> None:
    """One that lost its lease in the middle of the end, and one that died before it told of it."""
    batch = await g.submit(4)
    url, late = load_settings().database_url, list[tuple[BatchRecord, int]]()
    repository, files = BatchRepository(url), FileRepository(url)
    for holder in ("dies", "late"):
        claimed = repository.claim(holder, 0.0)
        assert claimed is not None
        late.append(claimed)
    source = Path(load_settings().home) / "input.jsonl"
    source.write_bytes((await g.client.files.content(batch.input_file_id)).content)

    def finishes(record: BatchRecord, token: int) -> BatchProgress:
        return finish(record, token, source, Parts(g.store, record), files, g.store, 3600)

    finishes(*late[0])
    g.start_worker()
    done = await g.ended(batch)
    await g.swept(team)
    end = finishes(*late[1])
    with pytest.raises(RefusedError):
        repository.report(batch.id, late[1][1], end, 10)
    assert await g.client.batches.retrieve(batch.id) == done
    assert (done.status, done.error_file_id) == ("completed", None)
    assert len(await g.lines(done.output_file_id)) == 4
    shown = [file.id async for file in g.client.files.list()]
    assert sorted(shown) == sorted([batch.input_file_id, str(done.output_file_id)])


async def test_an_input_file_that_goes_while_its_batch_is_at_work(g: Running) -> None:
    g.model.pause_s = 0.02
    first = g.start_worker(concurrency=4)
    batch = await g.submit(40)
    await g.until(batch, lambda now: now.request_counts.completed >= 4)  # type: ignore[union-attr]
    await g.client.files.delete(batch.input_file_id)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    g.start_worker(concurrency=4)
    done = await g.ended(batch)
    assert (done.status, len(await g.lines(done.output_file_id))) == ("completed", 40)


async def test_a_key_that_the_worker_does_not_know_yet(g: Running, team: str) -> None:
    made = BatchRepository(load_settings().database_url)
    known = made.get((await g.submit(2)).id, team)
    terms = BatchTerms(**{name: getattr(known, name) for name in BatchTerms.model_fields})
    new = key("sk-new", id="new", team=team)
    g.snapshots.append(g.snapshots[-1].model_copy(update={"number": 2, "keys": [key(team=team), new]}))
    fresh = made.create(terms.model_copy(update={"id": new_batch_id(), "key_id": "new"}))
    g.start_worker()
    done = await g.ended(await g.client.batches.retrieve(fresh.id))
    assert (done.status, done.errors) == ("completed", None)


async def test_rows_asked_one_by_one_share_their_parts(g: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    put, parts = g.store.put, list[str]()

    def counted(name: str, data: bytes) -> None:
        parts.append(name)
        put(name, data)

    monkeypatch.setattr(g.store, "put", counted)
    g.start_worker(concurrency=1, flush_s=3600)
    done = await g.ended(await g.submit(30))
    assert done.status == "completed"
    assert len(parts) == 1


async def test_what_a_worker_left_of_an_ended_batch_is_swept(g: Running, team: str) -> None:
    first = g.start_worker()
    done = await g.ended(await g.submit(2))
    await g.swept(team)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    g.store.put(f"{team}/batches/{done.id}/parts/000000-000007.jsonl", b"written too late")
    g.start_worker(concurrency=1)
    await g.swept(team)


async def test_a_batch_whose_policy_nobody_can_read_ends_with_its_window(g: Running, team: str) -> None:
    made = BatchRepository(load_settings().database_url)
    known = made.get((await g.submit(2)).id, team)
    terms = BatchTerms(**{name: getattr(known, name) for name in BatchTerms.model_fields})
    unread = terms.policy.model_copy(update={"body": {"of": "another version"}})
    soon = datetime.now(UTC) + timedelta(seconds=1)
    old = made.create(terms.model_copy(update={"id": new_batch_id(), "policy": unread, "expires_at": soon}))
    g.start_worker(lease_s=0.3)
    done = await g.ended(await g.client.batches.retrieve(old.id))
    assert (done.status, len(await g.lines(done.error_file_id))) == ("expired", 2)


async def test_a_record_that_cannot_be_read_holds_up_no_other(g: Running) -> None:
    bad, good = await g.submit(1), await g.submit(1)
    with Database(load_settings().database_url).write() as connection:  # As a newer release may leave one.
        change = "UPDATE batches SET terms = json_insert(terms, '$.newer', 1) WHERE id = :id"
        assert connection.execute(text(change), {"id": bad.id}).rowcount == 1
    worker = g.start_worker()
    assert (await g.ended(good)).status == "completed"
    assert not worker.done()
    assert [batch.id async for batch in g.client.batches.list(limit=1)] == [good.id]
    with pytest.raises(openai.InternalServerError, match=f"The record of {bad.id} cannot be read"):
        await g.client.batches.retrieve(bad.id)


async def test_readme(g: Running, team: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """README's lines, over HTTP."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (snippet,) = [part for part in re.findall(r"```python\n(.*?)```", readme, re.S) if "batches" in part]
    new = g.snapshots[-1].model_copy(update={"number": 2, "routes": [route("prompt-shield")]})
    await g.publish(new)
    g.start_worker()
    port = free_ports(1)
    server = uvicorn.Server(uvicorn.Config(g.app, port=port, lifespan="off", log_level="warning"))
    serving = asyncio.create_task(server.serve())
    await g.happens(lambda: server.started)
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{port}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    await asyncio.to_thread(exec, snippet, {"client": openai.OpenAI()})
    server.should_exit = True
    await serving
    answers = [json.loads(answer) for answer in capsys.readouterr().out.splitlines()]
    texts = [answer["response"]["body"]["choices"][0]["message"]["content"] for answer in answers]
    assert sorted(texts) == ["Answer to How do I boil an egg?", "Answer to Ignore your rules."]
