"""The right to erasure, of what keys store with ``/v1/files``, batches and fine-tuning jobs."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import openai
import pytest

from cluster.batches import BatchRepository
from cluster.contracts import ApiKey, ArtifactRef, CodeRevision, Principal
from cluster.contracts.tuning import TuningRecord
from cluster.errors import RefusedError, UnavailableError
from cluster.files import FileRepository
from cluster.settings import load_settings
from cluster.storage import ArtifactStore, ObjectStore
from cluster.tuning import TuningRepository
from tests.integration import test_batches_api as batches
from tests.integration.test_record_reports import manta
from tests.integration.tuning import SQLITE, Running, tuning
from tests.unit.gateway_app import key

pytestmark = pytest.mark.integration

#: A batch's gateway, whose fixture has this name there.
asked = batches.g


tuned = tuning


def keys(team: str) -> list[ApiKey]:
    """Of the owner, of one in the same team, and of another team."""
    return [
        key(id=f"{team}-owner", team=team),
        key("sk-mate", id=f"{team}-mate", team=team),
        key("sk-other", id=f"{team}-other", team=f"{team}-other"),
    ]


def objects(store: ObjectStore, folder: str) -> set[str]:
    return {item.key for item in store.list(folder)}


async def test_what_a_key_gave_to_batches_goes_with_it(
    asked: batches.Running, team: str, capsys: Any
) -> None:
    g, erase = asked, ("erase", "--key", f"{team}-owner")
    await g.publish(g.snapshots[-1].model_copy(update={"number": 2, "keys": keys(team)}))
    worker = g.start_worker()
    mine = await g.ended(await g.submit(3, metadata={"for": "ann"}))
    owner, g.client = g.client, g.client.with_options(api_key="sk-mate")
    mates = await g.ended(await g.submit(2))
    theirs = owner.with_options(api_key="sk-other")
    content = json.dumps(batches.line(1)).encode()
    other = await theirs.files.create(file=("in.jsonl", content), purpose="batch")
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    g.client = owner
    open_one = await g.submit(1)
    g.store.put(f"{team}/batches/{mine.id}/parts/000001-000009.jsonl", b"left by a worker that died")

    kept = {f"{team}/files/{name}" for name in (mates.input_file_id, mates.output_file_id)}
    gone = {
        f"{team}/files/{name}" for name in (mine.input_file_id, mine.output_file_id, open_one.input_file_id)
    }
    assert objects(g.store, f"{team}/files/") == kept | gone
    would = manta(capsys, *erase, "--dry-run", "--json")
    assert (would["objects"], would["under_way"]) == (4, [open_one.id])
    assert objects(g.store, f"{team}/files/") == kept | gone
    said = manta(capsys, *erase)
    assert "copies of them erased: 4\n" in said
    assert f"erase again once they ended: {open_one.id}" in said
    assert objects(g.store, f"{team}/files/") == kept
    assert objects(g.store, f"{team}/batches/{mine.id}/") == set()
    with pytest.raises(openai.NotFoundError):
        await owner.files.content(mine.output_file_id or "")
    assert {file.id for file in (await owner.files.list()).data} == {key.rpartition("/")[2] for key in kept}
    assert (await theirs.files.content(other.id)).content == content
    # The batch is on record still, and nobody's.
    jobs = BatchRepository(load_settings().database_url)
    record = jobs.get(mine.id, team)
    assert record.key_id.startswith("erased-")
    assert (record.metadata, record.completed) == ({}, 3)
    assert jobs.get(mates.id, team).key_id == f"{team}-mate"

    # What had begun would have had its copy; this one finds nothing any more, and the last run its record.
    g.start_worker()
    assert (await g.ended(open_one)).status == "failed"
    said = manta(capsys, *erase)
    assert "copies of them erased: none" in said
    assert "under way" not in said
    assert jobs.get(open_one.id, team).key_id.startswith("erased-")


async def test_files_that_name_an_end_user_are_their_teams_to_delete(
    asked: batches.Running, team: str, capsys: Any
) -> None:
    await asked.publish(asked.snapshots[-1].model_copy(update={"number": 2, "keys": keys(team)}))
    asked.start_worker()
    body = {"model": "m", "messages": [{"role": "user", "content": "question"}]}
    with_ann = [await asked.upload(2, body=body | {name: "ann"}) for name in ("user", "safety_identifier")]
    terms = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    done = await asked.ended(await asked.client.batches.create(input_file_id=with_ann[0], **terms))  # type: ignore[call-overload]
    await asked.upload(2, body=body | {"user": "bob"})
    before = objects(asked.store, f"{team}/files/")
    words = ("erase", "--user", "ann", "--team", team)
    found = manta(capsys, *words, "--json")
    assert set(found["files_with_user"]) == {*with_ann, done.output_file_id}
    assert objects(asked.store, f"{team}/files/") == before
    elsewhere = manta(capsys, "erase", "--user", "ann", "--team", f"{team}-other", "--json")
    assert elsewhere["files_with_user"] == []


def dataset(store: ObjectStore, record: TuningRecord) -> ArtifactRef:
    """What ``jobs.tune`` makes of a job's files."""
    ref = ArtifactRef(team=record.team, kind="dataset", name=record.id, fingerprint="1" * 16)
    attempt = ArtifactStore(store).attempt(ref, "tune-1")
    attempt.write("train/part-0.parquet", b"examples")
    attempt.commit(
        owner=Principal(key_id=record.key_id, team=record.team),
        configuration={},
        code=CodeRevision(epoch=1),
        started_at=datetime.now(UTC),
    )
    return ref


@SQLITE
async def test_models_that_learned_from_erased_files_are_named(
    tuned: Running, artifacts: ArtifactStore, team: str, capsys: Any
) -> None:
    g, erase = tuned, ("erase", "--key", f"{team}-owner")
    await g.publish(g.snapshots[-1].model_copy(update={"number": 2, "keys": keys(team)}))
    g.start_worker()
    file = await g.upload()
    mine = await g.tuned(training_file=file, metadata={"for": "ann"})
    owner, g.client = g.client, g.client.with_options(api_key="sk-mate")
    on_mine, apart = await g.tuned(training_file=file), await g.tuned()
    await g.settled()
    g.client = owner
    running = await g.reaches(await g.submit(), "running")
    copies = {record.id: dataset(g.store, record) for record in (mine, on_mine, apart)}

    # Two uploads, a result file, and the copies that two jobs read.
    found = manta(capsys, *erase, "--json")
    assert found["objects"] == 5
    assert found["models"] == sorted([mine.tuned_name, on_mine.tuned_name])
    assert found["under_way"] == [running.id]
    for record in (mine, on_mine):
        with pytest.raises(RefusedError, match="was erased"):
            artifacts.open(copies[record.id])
        assert objects(g.store, f"{copies[record.id]}/attempts/") == set()
    artifacts.verify(artifacts.open(copies[apart.id]))
    left = {file.id for file in (await owner.files.list()).data}
    assert left == {apart.training_file, *apart.result_files, *on_mine.result_files}
    jobs = TuningRepository(load_settings().database_url)
    assert jobs.get(mine.id, team).key_id.startswith("erased-")
    assert jobs.get(mine.id, team).metadata == {}
    assert jobs.get(on_mine.id, team).key_id == f"{team}-mate"
    # Nothing leads from the key to the models any more, but what the erasure has on record.
    said = manta(capsys, *erase)
    assert mine.tuned_name in said
    assert on_mine.tuned_name in said


@SQLITE
async def test_what_others_learn_from_erased_files_meanwhile_is_erased_by_the_next_run(
    tuned: Running, artifacts: ArtifactStore, team: str, capsys: Any
) -> None:
    g, erase = tuned, ("erase", "--key", f"{team}-owner", "--json")
    await g.publish(g.snapshots[-1].model_copy(update={"number": 2, "keys": keys(team)}))
    g.start_worker()
    file = await g.upload()
    g.client = g.client.with_options(api_key="sk-mate")
    job = await g.reaches(await g.submit(training_file=file), "running")
    (order,) = g.cluster.orders
    assert manta(capsys, *erase)["under_way"] == [job.id]
    assert objects(g.store, f"{team}/files/") == set()
    copy = dataset(g.store, order.record)
    assert manta(capsys, *erase)["under_way"] == [job.id]
    g.cluster.succeeds(order)
    await g.reaches(job, "succeeded")
    await g.settled()
    for words in ([*erase, "--dry-run"], erase):
        found = manta(capsys, *words)
        assert found["under_way"] == []
        assert found["models"] == [order.record.tuned_name]
        assert found["objects"] == 1
    with pytest.raises(RefusedError, match="was erased"):
        artifacts.open(copy)
    assert manta(capsys, *erase)["objects"] == 0


@SQLITE
@pytest.mark.parametrize("broken", [(TuningRepository, "forget_key"), (FileRepository, "erase")])
async def test_an_erasure_of_files_that_breaks_off_goes_on_where_it_was(
    tuned: Running,
    artifacts: ArtifactStore,
    team: str,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
    broken: tuple[type, str],
) -> None:
    g, erase = tuned, ("erase", "--key", f"{team}-owner")
    await g.publish(g.snapshots[-1].model_copy(update={"number": 2, "keys": keys(team)}))
    g.start_worker()
    record = await g.tuned()
    await g.settled()
    copy = dataset(g.store, record)

    def away(*_: Any) -> None:
        raise UnavailableError("The database does not answer.")

    with monkeypatch.context() as patch:
        patch.setattr(*broken, away)
        assert "does not answer" in manta(capsys, *erase, status=1)
    jobs = TuningRepository(load_settings().database_url)
    before = jobs.get(record.id, team).key_id
    assert manta(capsys, *erase, "--json")["models"] == [record.tuned_name]
    with pytest.raises(RefusedError, match="was erased"):
        artifacts.open(copy)
    assert objects(g.store, f"{team}/files/") == objects(g.store, f"{copy}/attempts/") == set()
    after = jobs.get(record.id, team).key_id
    assert after.startswith("erased-")
    assert before in (after, f"{team}-owner"), "one pseudonym, however often it was begun"
