"""The worker of fine-tuning jobs: what it does when others cancel, die, change or lose what it needs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import text

from cluster import snapshots
from cluster.budget_ledger import BudgetLedger
from cluster.contracts import KeyLimits, Price
from cluster.contracts.tuning import TuningStatus
from cluster.database import Database
from cluster.errors import RefusedError
from cluster.settings import load_settings
from cluster.storage import ObjectStore
from cluster.tuning import TuningRepository, changed
from deployments.tuning import worker
from deployments.tuning.trainings import Base, base_of, words
from tests.conftest import S3
from tests.integration.tuning import QUICK, SQLITE, Running, tuning_gateway
from tests.unit.gateway_app import key, route

pytestmark = pytest.mark.integration


@pytest.fixture
async def g(
    s3: S3,
    store: ObjectStore,
    team: str,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Running]:
    async with tuning_gateway(store, team, database_url, tmp_path, monkeypatch) as running:
        yield running


@SQLITE
async def test_a_record_that_cannot_be_read_holds_up_no_other(g: Running) -> None:
    bad, good = await g.submit(), await g.submit()  # As a newer release may leave one behind.
    with Database(load_settings().database_url).write() as connection:
        change = "UPDATE fine_tuning_jobs SET terms = '{}' WHERE id = :id"
        connection.execute(text(change), {"id": bad.id})
    worker = g.start_worker()
    await g.reaches(good, "running")
    assert not worker.done()


@SQLITE
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


@SQLITE
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


@SQLITE
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


@SQLITE
async def test_a_cancel_in_the_last_moment_takes_the_route_away(
    g: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def published() -> set[str]:
        found = snapshots.newest(store=g.store)
        return {made.model for made in (found.routes if found else [])}

    cancelled, publish = asyncio.Event(), worker.publish
    loop = asyncio.get_running_loop()

    def publish_and_wait(*args: Any) -> None:
        publish(*args)
        asyncio.run_coroutine_threadsafe(cancelled.wait(), loop).result()

    monkeypatch.setattr(worker, "publish", publish_and_wait)
    g.start_worker()
    job = await g.reaches(await g.submit(), "running")
    (order,) = g.cluster.orders
    g.cluster.succeeds(order)
    await g.happens(lambda: order.record.tuned_name in published())
    assert (await g.client.fine_tuning.jobs.cancel(job.id)).status == "cancelled"
    cancelled.set()
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
    assert words(lost, QUICK) == words(again, QUICK)  # The same, so that it resumes.
    g.cluster.succeeds(again)
    await g.reaches(job, "succeeded")


@SQLITE
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


@SQLITE
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


async def test_a_training_counts_on_the_budget_of_its_key(g: Running, team: str) -> None:
    price = Price(
        input_per_million_tokens=Decimal(1),
        output_per_million_tokens=Decimal(1),
        training_per_million_tokens=Decimal(100),
    )
    limits = KeyLimits(budget_day=Decimal(1), budget_month=Decimal(10))
    mine = key(id=f"payer-{team}", team=team, limits=limits)
    published = {"number": 2, "keys": [mine], "routes": [route(g.model, price=price)]}
    await g.publish(g.snapshots[-1].model_copy(update=published))
    ledger = BudgetLedger(load_settings().database_url)

    def uses() -> list[tuple[Decimal, Decimal]]:
        return [(use.spent, use.reserved) for use in ledger.use(mine.id, limits)]

    g.start_worker(jobs_at_once=2)
    file = await g.upload()  # Ten times 79 bytes: 198 tokens an epoch.
    first = await g.submit(training_file=file, hyperparameters={"n_epochs": 10})
    first = await g.reaches(first, "running")
    held = Decimal("0.198")
    assert uses() == [(0, held), (0, held)]
    second = await g.submit(training_file=file, hyperparameters={"n_epochs": 45})
    failed = await g.reaches(second, "failed")
    assert failed.error is not None
    assert failed.error.code == "insufficient_quota"
    assert re.search(r"may cost 0.891, and key .* has less left of its budget of 1 for", failed.error.message)
    third = await g.reaches(await g.submit(training_file=file), "running")
    assert uses()[0] == (0, 2 * held)
    await g.client.fine_tuning.jobs.cancel(third.id)
    await g.happens(lambda: uses() == [(0, held), (0, held)])

    g.cluster.succeeds(next(order for order in g.cluster.orders if order.record.id == first.id))
    await g.reaches(first, "succeeded")
    cost = Decimal("0.032")
    await g.happens(lambda: uses() == [(cost, 0), (cost, 0)])
    assert "Training on 320 tokens cost 0.032" in await g.told(first)
    # Said again, by whoever sees to its deletion, it counts once.
    await g.client.models.delete(
        TuningRepository(load_settings().database_url).get(first.id, team).tuned_name
    )
    await g.happens(lambda: g.cluster.retired)
    await g.settled()
    assert uses() == [(cost, 0), (cost, 0)]


@SQLITE
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
    taken = jobs.claim("two", 3600.0)
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
