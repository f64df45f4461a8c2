"""The worker of fine-tuning jobs: what it does when others cancel, die, change or lose what it needs."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import openai
import pytest
from sqlalchemy import text

from cluster import snapshots
from cluster.budget_ledger import BudgetLedger
from cluster.contracts import KeyLimits, Price
from cluster.contracts.tuning import TuningStatus, TuningTerms
from cluster.database import Database
from cluster.errors import RefusedError
from cluster.job.config import parse_config
from cluster.settings import load_settings
from cluster.storage import ObjectStore
from cluster.tuning import TuningRepository, changed, new_tuning_id
from deployments.tuning import worker
from deployments.tuning.trainings import Base, base_of, retire_words, words
from jobs.retire import RetireConfig
from tests.integration.test_record_reports import manta
from tests.integration.tuning import QUICK, SQLITE, Running, tuning
from tests.unit.gateway_app import key, route

pytestmark = pytest.mark.integration


g = tuning


@SQLITE
async def test_a_record_that_cannot_be_read_holds_up_no_other(
    g: Running, team: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = await g.submit(), await g.submit()  # As a newer release may leave one behind.
    newer(bad.id, "terms")
    worker = g.start_worker()
    await g.reaches(good, "running")
    assert not worker.done()
    jobs = g.client.fine_tuning.jobs
    assert [job.id for job in (await jobs.list(limit=1)).data] == [good.id]
    assert [job.id async for job in jobs.list(limit=1)] == [good.id]
    assert f"The record of {bad.id} cannot be read: it is damaged, or a newer Manta wrote it." in caplog.text
    for asked in (jobs.retrieve(bad.id), jobs.cancel(bad.id)):
        with pytest.raises(
            openai.InternalServerError, match=f"The record of {bad.id} cannot be read"
        ) as told:
            await asked
        assert (told.value.status_code, told.value.code) == (503, "unreadable_record")
    # An event of a newer release is one line that is missing, in the order of all.
    with Database(load_settings().database_url).write() as connection:
        change = (
            "UPDATE fine_tuning_events SET content = '{}' WHERE job = :id AND content LIKE '%Validating%'"
        )
        assert connection.execute(text(change), {"id": good.id}).rowcount == 1
    assert [event.message async for event in jobs.list_events(good.id, limit=1)] == [
        "Fine-tuning job started",
        "Files validated, moving job to queued state",
        f"Created fine-tuning job: {good.id}",
    ]


@SQLITE
async def test_a_tuned_model_whose_record_cannot_be_read_is_not_deleted(g: Running, team: str) -> None:
    g.start_worker()
    record = await g.tuned()
    newer(record.id, "progress")
    with pytest.raises(openai.InternalServerError, match=f"The record of {record.id} cannot be read"):
        await g.client.models.delete(record.tuned_name)
    assert TuningRepository(load_settings().database_url).tuned_from([g.model]) == []


def newer(job_id: str, column: str) -> None:
    """Give a record a field that a newer release may have."""
    with Database(load_settings().database_url).write() as connection:
        change = f"UPDATE fine_tuning_jobs SET {column} = json_insert({column}, '$.newer', 1) WHERE id = :id"
        assert connection.execute(text(change), {"id": job_id}).rowcount == 1


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
    await g.settled()
    assert [record.id for record in g.cluster.retired] == [job.id]


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


async def test_a_training_counts_on_the_budget_of_its_key(g: Running, team: str, capsys: Any) -> None:
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
    assert re.search(
        r"may cost 0.891, and its key has less left of its budget of 1 for", failed.error.message
    )
    third = await g.reaches(await g.submit(training_file=file), "running")
    assert uses()[0] == (0, 2 * held)
    await g.client.fine_tuning.jobs.cancel(third.id)
    await g.happens(lambda: uses() == [(0, held), (0, held)])

    g.cluster.succeeds(next(order for order in g.cluster.orders if order.record.id == first.id))
    await g.reaches(first, "succeeded")
    cost = Decimal("0.032")
    await g.happens(lambda: uses() == [(cost, 0), (cost, 0)])
    assert "Training on 320 tokens cost 0.032" in await g.told(first)
    # So much stands in the account, beside requests; what was cancelled or failed costs nothing.
    line = {"trainings": 1, "trained_tokens": 320, "cost": 0.032, "requests": 0, "prompt_tokens": 0}
    reports = {
        by: manta(capsys, "usage", "--team", team, "--by", by, "--json") for by in ("key", "model", "day")
    }
    today = f"{datetime.fromtimestamp(first.created_at, UTC):%Y-%m-%d}"
    for by, group in (("key", mine.id), ("model", g.model), ("day", today)):
        (report,) = reports[by]
        assert report[by] == group
        assert line.items() <= report.items()
    words = ("usage", "--team", team, "--json")
    assert manta(capsys, *words, "--key", mine.id) == reports["key"]
    tomorrow = f"{datetime.now(UTC) + timedelta(days=1):%Y-%m-%d}"
    for others in (("--key", "another"), ("--since", tomorrow), ("--until", "2026-01-01")):
        assert manta(capsys, *words, *others) == []
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
    # Its version and its adapter are there: nobody could ever delete them.
    await g.settled()
    (retired,) = g.cluster.retired
    config = parse_config(RetireConfig, retire_words(retired), {}, "retire")
    assert (config.name, config.version, config.why) == (job.id, "all", f"{job.id} is failed")


@SQLITE
async def test_what_a_cancelled_training_still_makes_is_taken_back(g: Running) -> None:
    g.start_worker()
    g.cluster.obeys = False
    job = await g.reaches(await g.submit(), "running")
    (order,) = g.cluster.orders
    await g.client.fine_tuning.jobs.cancel(job.id)
    await g.happens(lambda: len(g.cluster.stopped) > 1)
    # Whoever goes on waits, too, until nothing more can come of it.
    g.workers[0].cancel()
    await asyncio.gather(g.workers[0], return_exceptions=True)
    before = len(g.cluster.stopped)
    g.start_worker()
    await g.happens(lambda: len(g.cluster.stopped) > before + 1)
    assert g.cluster.retired == []
    g.cluster.succeeds(order)
    await g.settled()
    assert [record.id for record in g.cluster.retired] == [job.id]


@SQLITE
async def test_what_made_nothing_leaves_nothing_to_take_back(g: Running) -> None:
    g.start_worker()
    job = await g.reaches(await g.submit(), "running")
    await g.client.fine_tuning.jobs.cancel(job.id)
    await g.settled()
    assert g.cluster.retired == []


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


def test_what_was_tuned_is_found_by_its_base(
    database_url: str, team: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = TuningRepository(database_url)

    def tuned(model: str) -> str:
        job_id = new_tuning_id()
        fields = {"id": job_id, "team": team, "key_id": "k", "model": model, "training_file": "f", "seed": 1}
        record = jobs.create(TuningTerms(**fields, created_at=datetime.now(UTC)))
        found = jobs.claim("one", 60.0)
        assert found is not None
        jobs.report(job_id, found[1], changed(record, status=TuningStatus.SUCCEEDED), 60.0)
        jobs.settle(job_id, found[1])
        return job_id

    def found(*models: str) -> list[str]:
        return [record.id for record in jobs.tuned_from(models)]

    first, other = tuned("a"), tuned("b")
    with Database(database_url).write() as connection:
        connection.execute(text("UPDATE fine_tuning_jobs SET terms = '{}' WHERE model = 'b'"))
    assert found("a") == [first]
    assert caplog.text == "", "what was tuned from another model is not even read"
    assert found("a", "b") == [first]
    assert other in caplog.text
    # A table from before SQL knew of models: what stands there is found as well.
    with Database(database_url).write() as connection:
        connection.execute(text("DROP INDEX fine_tuning_jobs_by_model"))
        connection.execute(text("ALTER TABLE fine_tuning_jobs DROP COLUMN model"))
    jobs = TuningRepository(database_url)
    second = tuned("a")
    assert found("a") == [first, second]
