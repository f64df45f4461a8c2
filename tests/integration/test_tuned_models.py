"""Tuned models after their job: deleted by their team, and back when their base is."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from cluster import snapshots
from cluster.contracts import ModelRef, Route
from cluster.contracts.tuning import TuningRecord, TuningStatus
from cluster.errors import RefusedError
from cluster.job.config import parse_config
from cluster.settings import load_settings
from cluster.tuning import TuningRepository
from deployments.plan import MODEL, Plan, with_routes
from deployments.rollout import publish_routes
from deployments.tuning.publishing import publish, withdraw
from deployments.tuning.trainings import retire_words
from jobs.retire import RetireConfig
from tests.integration.test_published_routes import Rolling
from tests.integration.tuning import BASE, SQLITE, Running, tuning
from tests.unit.gateway_app import chat, key, usage

pytestmark = [pytest.mark.integration, SQLITE]


g = tuning


def repository() -> TuningRepository:
    return TuningRepository(load_settings().database_url)


def routes(g: Running) -> dict[str, Route]:
    """What is published of this test's models."""
    newest = snapshots.newest(store=g.store)
    assert newest is not None
    return {found.model: found for found in newest.routes if g.model in (found.model, found.base)}


def ask(g: Running, model: str) -> Any:
    return g.client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}])


async def test_a_team_deletes_what_it_tuned(g: Running, team: str) -> None:
    g.start_worker()
    record = await g.tuned(suffix="x")
    name = record.tuned_name
    found = await g.client.models.retrieve(name)
    assert (found.id, found.owned_by) == (name, team)

    others = g.client.with_options(api_key="sk-other")
    for client, model in (
        (others, name),
        (g.client, name.replace(":x:", ":y:")),
        (g.client, f"ft:{g.model}:{team}:x:{'0' * 12}"),
        (g.client, "ft:nothing"),
    ):
        with pytest.raises(openai.NotFoundError):
            await client.models.delete(model)
    with pytest.raises(openai.PermissionDeniedError, match="was not tuned"):
        await g.client.models.delete(g.model)
    keys = [key(team=team, models=["another"]), key("sk-other", id="other", team=f"{team}-other")]
    both = g.snapshots[-1]
    await g.publish(both.model_copy(update={"number": both.number + 1, "keys": keys}))
    with pytest.raises(openai.NotFoundError):
        await g.client.models.delete(name)
    await g.publish(both.model_copy(update={"number": both.number + 2}))
    assert name in routes(g)

    deleted = await g.client.models.delete(name)
    assert deleted.to_dict() == {"id": name, "object": "model", "deleted": True}
    assert set(routes(g)) == {g.model}
    # A gateway that has not heard of it yet answers who is there.
    g.script.says = [chat("Hi", finish="stop"), usage(1, 1)]
    await ask(g, name)
    await g.happens(lambda: g.cluster.retired)
    await g.settled()
    (retired,) = g.cluster.retired
    config = parse_config(RetireConfig, retire_words(retired), {}, "retire")
    assert (config.name, config.version, config.why) == (record.id, "all", f"{name} was deleted")

    await g.follow()
    for asked in (g.client.models.retrieve(name), ask(g, name)):
        with pytest.raises(openai.NotFoundError, match=f"{name}` is not served now: it was deleted"):
            await asked
    assert (await g.client.models.delete(name)).deleted  # As often as one likes.
    await g.settled()
    assert len(g.cluster.retired) == 1
    job = await g.client.fine_tuning.jobs.retrieve(record.id)
    assert (job.status, job.fine_tuned_model) == ("succeeded", name)
    assert (await g.told(job))[-1] == f"The model {name} was deleted"


async def test_a_deletion_that_was_interrupted_is_brought_to_its_end(g: Running, team: str) -> None:
    g.start_worker()
    record = await g.tuned()
    await g.settled()
    g.cluster.away = True
    repository().delete_tuned(record.id, team)  # And there the gateway died.
    assert record.tuned_name in routes(g)
    await g.happens(lambda: record.tuned_name not in routes(g))
    assert g.cluster.retired == []
    g.workers[0].cancel()
    await asyncio.gather(g.workers[0], return_exceptions=True)
    g.cluster.away, g.cluster.retires = False, "FAILED"
    g.start_worker(attempts=2)
    await g.happens(lambda: len(g.cluster.retired) == 2)
    await g.settled()
    told = await g.told(await g.client.fine_tuning.jobs.retrieve(record.id))
    assert told[-1].endswith("could not be taken away: It is served as another.")


async def test_deletions_wait_for_no_training_and_go_one_after_the_other(
    g: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deployments.tuning import worker

    monkeypatch.setattr(worker, "_FOLLOWED", 2)
    g.start_worker()
    first, second = await g.tuned(), await g.tuned()
    await g.settled()
    training = await g.reaches(await g.submit(), "running")
    await g.reaches(await g.submit(), "queued")  # The worker is full of such.
    g.cluster.retires = "RUNNING"
    await g.client.models.delete(first.tuned_name)
    await g.happens(lambda: g.cluster.retired)
    await g.client.models.delete(second.tuned_name)
    await asyncio.sleep(1.0)
    assert [record.id for record in g.cluster.retired] == [first.id]
    g.cluster.retires = "SUCCEEDED"
    g.cluster.ends(f"retire-{first.id}-1", "SUCCEEDED")
    await g.happens(lambda: len(g.cluster.retired) == 2)
    assert (await g.client.fine_tuning.jobs.retrieve(training.id)).status == "running"


async def test_a_worker_that_lost_its_job_publishes_nothing(g: Running, team: str) -> None:
    made = await g.submit()
    jobs, model = repository(), ModelRef(name=made.id, version=1)
    found = jobs.claim("first", 3600.0)
    assert found is not None
    record, token = found
    record = record.model_copy(update={"application": "app"})

    def held() -> None:
        jobs.renew(record.id, token, 3600.0)

    publish(record, model, "d" * 64, g.store, held)
    assert record.tuned_name in routes(g)
    withdraw(record, g.store)

    def stalls() -> None:
        """It holds the job, and sleeps for so long that another takes it, cancelled, and settles it."""
        if not stalled:
            stalled.append(True)
            held()
            jobs.release(record.id, token)
            jobs.cancel(record.id, team)
            taken = jobs.claim("second", 3600.0)
            assert taken is not None
            withdraw(record, g.store)
            jobs.settle(record.id, taken[1])
        else:
            held()

    stalled = list[bool]()
    with pytest.raises(RefusedError, match="is another's now"):
        publish(record, model, "d" * 64, g.store, stalls)
    assert record.tuned_name not in routes(g)
    assert jobs.get(record.id, team).status is TuningStatus.CANCELLED


def deploy(
    base: Route, address: str = BASE.address, lora: dict[str, str] | None = None, **engine: Any
) -> list[str]:
    """`manta deploy` of the base as application ``app``; what it said."""
    llm = {"engine_kwargs": {"enable_lora": True, "max_lora_rank": 8} | engine, "lora_config": lora}
    config = {"name": "app", "import_path": MODEL, "args": {"model": address, "llm_config": llm}}
    plan = Plan({"applications": [config]}, routes=[base])
    said = list[str]()
    publish_routes(
        Rolling({"app": {"status": "RUNNING", "deployed_app_config": config}}), plan, 5, said.append
    )
    return said


def remove(g: Running) -> None:
    """`manta deploy --delete` of the base."""
    snapshots.publish(lambda now: with_routes(now, Plan({"applications": []}), ["app"]), "test", g.store)


def store_adapter(g: Running, record: TuningRecord, rank: int = 8) -> None:
    place = f"{BASE.adapters}{record.id}-v1/adapter_config.json"
    g.store.put(place, json.dumps({"r": rank}).encode())


async def test_tuned_models_come_back_with_their_base(g: Running) -> None:
    g.start_worker(jobs_at_once=4)
    record, deleted, lost, large = [await g.tuned(suffix=f"s{number}") for number in range(4)]
    for made, rank in ((record, 8), (deleted, 8), (large, 16)):
        store_adapter(g, made, rank)
    before = routes(g)
    assert len(before) == 5
    await g.client.models.delete(deleted.tuned_name)

    base = before[g.model]
    remove(g)
    assert routes(g) == {}
    await g.follow()
    with pytest.raises(openai.NotFoundError, match=f"its base model `{g.model}` is not"):
        await ask(g, record.tuned_name)

    # Other weights: another model's adapters stay away, whatever the base's name.
    said = deploy(base, "default/model/m/ffffffffffffffff")
    assert set(routes(g)) == {g.model}
    assert not any("again" in line for line in said)
    await g.follow()
    with pytest.raises(openai.NotFoundError, match="has other weights than those it was tuned from"):
        await ask(g, record.tuned_name)
    deploy(base, enable_lora=False)
    assert set(routes(g)) == {g.model}

    renewed = base.model_copy(update={"policy": "default", "owned_by": "others"})
    said = deploy(renewed)
    assert f"what was tuned from these weights is served again: {record.tuned_name}" in said
    now = routes(g)
    assert set(now) == {g.model, record.tuned_name}  # Of the others one is deleted, one lost, one too large.
    assert lost.tuned_name not in now
    back, was = now[record.tuned_name], before[record.tuned_name]
    assert back.targets == was.targets
    assert (back.team, back.base, back.owned_by) == (was.team, was.base, was.owned_by)
    assert not any("again" in line for line in deploy(renewed))
    await g.follow()
    g.script.says = [chat("Hi", finish="stop"), usage(1, 1)]
    await ask(g, record.tuned_name)
    assert g.script.targets[-1].model == f"engine-{g.model}:{record.id}-v1"
    # With room for its rank the large one is back as well.
    deploy(renewed, max_lora_rank=16)
    assert set(routes(g)) == {g.model, record.tuned_name, large.tuned_name}


async def test_an_engine_that_cannot_load_an_adapter_any_more_is_not_sent_there(g: Running) -> None:
    """The same weights under the same name, deployed otherwise: those routes would only fail."""
    g.start_worker()
    record = await g.tuned()
    store_adapter(g, record)
    base = routes(g)[g.model]
    elsewhere = {"dynamic_lora_loading_path": "s3://another-bucket/adapters"}
    for other in ({"enable_lora": False}, {"max_lora_rank": 4}, {"lora": elsewhere}):
        said = deploy(base, **other)
        assert any(record.tuned_name in line and "not served any more" in line for line in said), said
        assert set(routes(g)) == {g.model}
        deploy(base)
        assert set(routes(g)) == {g.model, record.tuned_name}


async def test_a_deletion_during_a_deployment_wins(g: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the deployment's look at SQL and what it publishes."""
    from deployments.tuning import returning

    g.start_worker()
    stays, record = await g.tuned(), await g.tuned()
    for made in (stays, record):
        store_adapter(g, made)
    base = routes(g)[g.model]
    remove(g)
    fits, looked = returning._fits, list[str]()

    def fits_and_is_deleted(made: TuningRecord, *args: Any) -> bool:
        found = fits(made, *args)
        looked.append(made.id)
        if len(looked) == 4:  # The first look is the one that tells what would go.
            withdraw(repository().delete_tuned(record.id, record.team), g.store)
        return found

    monkeypatch.setattr(returning, "_fits", fits_and_is_deleted)
    await asyncio.to_thread(deploy, base)
    assert set(routes(g)) == {g.model, stays.tuned_name}
    # It published again from what the deletion left, and asked for the other's adapter no third time.
    assert looked == [stays.id, record.id] * 2
