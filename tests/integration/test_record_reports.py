"""What is made of records: usage, feedback joined with traffic, and erasure, by the real commands."""

from __future__ import annotations

import io
import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.cli import main
from cluster.contracts import Principal
from cluster.errors import MantaError
from cluster.records import TableName, line, record_files, subject_hash
from cluster.records.erasure import Eraser
from cluster.records.feedback import rated_traffic
from cluster.records.ship import ship, to_parquet
from cluster.records.spool import Spool
from cluster.settings import StorageSettings, load_settings
from cluster.storage import ArtifactStore, ObjectStore, object_store
from deployments.gateway.args import RecordArgs
from jobs.preprocess import PreprocessConfig, run
from tests.conftest import S3
from tests.fault_proxy import FaultProxy
from tests.integration.serving import BASE, Served
from tests.integration.test_records import SAYS, ask, published, rows
from tests.ports import free_ports
from tests.unit.gateway_app import KEY, gateway

pytestmark = pytest.mark.integration

FEEDBACK = "/v1/feedback"
START = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.fixture
def put(store: ObjectStore, tmp_path: Path):
    """Brings rows into a table in storage."""

    def put(table: TableName, *found: dict[str, Any]) -> None:
        spool = Spool(tmp_path / "spool")
        for row in found:
            moment = row["time"].strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            spool.append(table, line(table, row | {"time": moment}))
        spool.end()
        assert ship(tmp_path / "spool", store) == len(found)

    return put


def request(team: str, number: int, **more: Any) -> dict[str, Any]:
    row = {
        "request_id": f"req-{number}",
        "time": START + timedelta(hours=8 * number),
        "key_id": f"{team}-app",
        "team": team,
        "users": [subject_hash("user", team, "ann" if number % 2 else "bob")],
        "model": "small" if number % 3 else "large",
        "outcome": "ok",
        "prompt_tokens": 10,
        "completion_tokens": number,
        "prompt": f"prompt {number}",
        "answer": f"answer {number}",
    }
    return row | more


def manta(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> Any:
    with pytest.raises(SystemExit) as ended:
        main(words)
    said = capsys.readouterr()
    assert (ended.value.code or 0) == status, said
    return json.loads(said.out) if "--json" in words else said.out + said.err


def test_usage_adds_up_by_key_model_and_day(put, team: str, capsys) -> None:
    ended = ["ok", "blocked", "failed", "cancelled", "refused", "ok"]
    put("audit", *(request(team, number, outcome=what) for number, what in enumerate(ended)))
    put(
        "audit",
        request(team, 6, key_id=f"{team}-b", cost=0.1),
        request(team, 7, key_id=f"{team}-b", cost=0.2),
    )
    by_key = manta(capsys, "usage", "--team", team, "--json")
    first = {"team": team, "key": f"{team}-app", "requests": 6, "prompt_tokens": 60, "completion_tokens": 15}
    ends = {"blocked": 1, "refused": 1, "failed": 1, "cancelled": 1, "cost": None}
    assert by_key[0] == first | ends | {"trainings": 0, "trained_tokens": 0}
    assert (by_key[1]["key"], by_key[1]["cost"]) == (f"{team}-b", 0.3)
    by_model = manta(capsys, "usage", "--team", team, "--by", "model", "--json")
    assert {row["model"]: row["requests"] for row in by_model} == {"large": 3, "small": 5}
    words = ["usage", "--key", f"{team}-app", "--by", "day", "--since", "2026-11-01T20:00"]
    by_day = manta(capsys, *words, "--until", "2026-11-03", "--json")
    assert {row["day"]: row["requests"] for row in by_day} == {"2026-11-01": 1, "2026-11-02": 3}
    table = manta(capsys, "usage", "--team", team).splitlines()
    assert table[0].split()[:3] == ["team", "key", "requests"]
    assert table[1].split() == [team, f"{team}-app", "6", "1", "1", "1", "1", "60", "15", "0", "0", "-"]
    assert "no requests" in manta(capsys, "usage", "--team", "nobody")
    assert "is no time" in manta(capsys, "usage", "--since", "soon", status=2)


async def test_feedback_joins_with_its_own_teams_traffic(
    store: ObjectStore, team: str, tmp_path: Path
) -> None:
    settings = RecordArgs(traffic_share=1.0)
    mine, theirs = ({"authorization": f"Bearer {secret}"} for secret in (KEY, "sk-other"))
    async with gateway(published(team), spool=tmp_path, records=settings) as running:
        running.script.says = SAYS
        rated, corrected, unrated = [await ask(running) for _ in range(3)]

        async def rate(headers: dict[str, str] = mine, **body: Any):
            return await running.http.post(FEEDBACK, json=body, headers=headers)

        answer = await rate(request_id=f"chatcmpl-{rated}", rating="up", comment="from ann@example.com: fine")
        assert answer.status_code == 202
        assert answer.json()["request_id"] == rated
        await rate(request_id=corrected, score=0.2, labels={"topic": "weather"})
        await rate(request_id=corrected, score=0.7)
        assert (await rate(theirs, request_id=unrated, rating="down")).status_code == 202
        for wrong, names in (
            ({"score": 1}, "request_id"),
            ({"request_id": rated}, "says nothing"),
            ({"request_id": rated, "score": 2}, "score"),
            ({"request_id": rated, "rating": "up", "score": 1}, "send one"),
            ({"request_id": "a b", "score": 1}, "request_id"),
            ({"request_id": rated, "score": 1, "text": "x"}, "text"),
            ({"request_id": rated, "comment": "open sesame"}, "blocked"),
        ):
            refused = await rate(**wrong)
            assert refused.status_code == 400, wrong
            assert names in refused.json()["error"]["message"]
        assert (await rate({}, request_id=rated, score=1)).status_code == 401
        long = await running.http.post(FEEDBACK, content=b" " * 100_000, headers=mine)
        assert long.status_code == 413
    found = {row["request_id"]: row for batch in rated_traffic(store, team) for row in batch.to_pylist()}
    assert {name: row["score"] for name, row in found.items()} == {rated: 1.0, corrected: 0.7, unrated: None}
    assert found[rated]["comment"].endswith(": fine")
    assert "ann@" not in found[rated]["comment"]
    assert found[rated]["finish_reasons"] == ["stop"]
    (other,) = rows(store, "feedback", f"{team}-b")
    assert (other["request_id"], other["key_id"]) == (unrated, "other")


@pytest.mark.usefixtures("local_ray")
def test_feedback_is_joined_with_traffic_by_preprocess(
    put, store: ObjectStore, team: str, artifacts: ArtifactStore
) -> None:
    later = timedelta(minutes=1)
    put("traffic", *(request(team, number) for number in range(3)))
    for row in (  # The last rating is shipped first.
        {"request_id": "req-0", "time": START + later, "team": team, "score": 1.0},
        {"request_id": "req-1", "time": START, "team": team, "score": 0.0, "comment": "wrong"},
        {"request_id": "req-0", "time": START, "team": team, "score": 0.25, "comment": "late in coming"},
    ):
        put("feedback", row)
    texts = dict.fromkeys(("request_id", "prompt", "answer", "comment"), "string")
    config = {
        "name": team,
        "train": [store.uri(f"{team}/records/traffic/")],
        "columns": texts | {"score": "float64"},
        "id_column": "request_id",
        "labels": {
            "source": [store.uri(f"{team}/records/feedback/")],
            "id_column": "request_id",
            "columns": ["score", "comment"],
            "latest_by": "time",
        },
        "template": {"prompt": "{prompt}", "completion": "{answer}"},
        "keep": ["score", "comment"],
        "split": {"test_fraction": 0},
        "license": {"name": "proprietary", "source": "our own requests"},
    }
    manifest = artifacts.open(run(PreprocessConfig.model_validate(config)).artifact)
    assert manifest.summary["labelled"] == 2
    paths = [file.path for file in manifest.files if file.path.startswith("train/")]
    tables = [pq.read_table(io.BytesIO(artifacts.read(manifest, path))) for path in paths]
    found = {row["row_id"]: row for table in tables for row in table.to_pylist()}
    assert {name: row["score"] for name, row in found.items()} == {"req-0": 1.0, "req-1": 0.0, "req-2": None}
    assert [row["comment"] for _, row in sorted(found.items())] == [None, "wrong", None]
    assert [turn["content"] for turn in found["req-1"]["messages"]] == ["prompt 1", "answer 1"]


@pytest.fixture
def recorded(put, store: ObjectStore, team: str) -> Eraser:
    """Six requests of one key for two users in all tables, and an eraser."""
    for first in (0, 3):
        requests = [request(team, number) for number in range(first, first + 3)]
        put("audit", *requests)
        put("traffic", *requests)
    key_id = f"{team}-app"
    said = {"time": START, "team": team, "key_id": key_id, "score": 1.0, "comment": "by ann"}
    put(
        "feedback",
        *(said | {"request_id": f"req-{number}", "comment": f"on {number}"} for number in range(6)),
    )
    return Eraser(store, Principal(key_id="officer", team="default"), load_settings().database_url)


def sums(store: ObjectStore, team: str) -> tuple[int, int]:
    found = rows(store, "audit", team)
    return len(found), sum(row["completion_tokens"] for row in found)


def test_a_user_is_erased_and_sums_stay(recorded: Eraser, store: ObjectStore, team: str, capsys) -> None:
    before = sums(store, team)
    words = ("erase", "--user", "ann", "--team", team, "--json")
    would = manta(capsys, *words, "--dry-run")
    assert would["rows"] == {"audit": 3, "traffic": 3, "feedback": 3}
    assert rows(store, "audit", team)[1]["prompt"] == "prompt 1"
    assert manta(capsys, *words)["rows"] == would["rows"]
    for table in ("audit", "traffic"):
        for number, row in enumerate(rows(store, table, team)):
            ann = number % 2 == 1
            assert (row["prompt"], row["answer"]) == (
                (None, None) if ann else (f"prompt {number}", f"answer {number}")
            )
            assert bool(row["users"]) is not ann
            assert (row["erased_at"] is not None) is ann
            assert row["key_id"] == f"{team}-app"
    comments = {row["request_id"]: row["comment"] for row in rows(store, "feedback", team)}
    assert comments == {f"req-{n}": None if n % 2 else f"on {n}" for n in range(6)}
    assert sums(store, team) == before
    assert manta(capsys, *words)["rows"] == {}, "the second time there is nothing to do"
    (record,) = [one for one in recorded.on_record() if one.team == team]
    assert record.done_at is not None
    assert record.rows == would["rows"]
    assert "ann" not in record.model_dump_json()


def test_a_key_gets_a_pseudonym(recorded: Eraser, store: ObjectStore, team: str, put, capsys) -> None:
    before = sums(store, team)
    manta(capsys, "erase", "--key", f"{team}-app")
    names = {row["key_id"] for table in ("audit", "traffic", "feedback") for row in rows(store, table, team)}
    (name,) = names
    assert name.startswith("erased-")
    assert sums(store, team) == before
    everything = b"".join(store.get(item.key) for item in store.list(f"{team}/"))
    assert f"{team}-app".encode() not in everything
    (line,) = manta(capsys, "usage", "--team", team, "--json")
    assert (line["key"], line["requests"]) == (name, 6)
    # A spool that is shipped late is erased by the next run, whomever that is for; what came after it stays.
    new = datetime.now(UTC) + timedelta(days=1)
    put("audit", request(team, 7), request(team, 8, time=new))
    assert "1 of audit" in manta(capsys, "erase")
    assert [row["prompt"] for row in rows(store, "audit", team)][-2:] == [None, "prompt 8"]
    records = [store.get(item.key) for item in store.list("control/erasures/")]
    assert not any(name.encode() in record for record in records), "nothing leads back"


def test_an_erasure_that_breaks_off_goes_on_where_it_was(
    recorded: Eraser, s3: S3, store: ObjectStore, team: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sums(store, team)
    with FaultProxy(s3.endpoint, free_ports()) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        broken = Eraser(
            ObjectStore(s3.bucket, StorageSettings(max_attempts=1)),
            Principal(key_id="o", team="t"),
            load_settings().database_url,
        )
        proxy.deny(lambda asked: asked.method == "PUT" and "/traffic/" in asked.key)
        with pytest.raises(MantaError):
            broken.erase("key", f"{team}-app", team)
    assert {row["key_id"] for row in rows(store, "audit", team)} == {f"{team}-app"}
    (half,) = {row["key_id"] for row in rows(store, "feedback", team)}
    recorded.again()
    names = {row["key_id"] for table in ("audit", "traffic", "feedback") for row in rows(store, table, team)}
    assert names == {half}, "it went on with the same pseudonym"
    assert sums(store, team) == before


def test_two_erasures_at_once_do_not_undo_each_other(recorded: Eraser, store: ObjectStore, team: str) -> None:
    before = sums(store, team)
    other = Eraser(store, Principal(key_id="second", team="default"), load_settings().database_url)
    with ThreadPoolExecutor(2) as pool:
        for done in [
            pool.submit(recorded.erase, "user", "ann", team),
            pool.submit(other.erase, "user", "bob", team),
        ]:
            done.result()
    for table in ("audit", "traffic"):
        assert all(not row["users"] and row["prompt"] is None for row in rows(store, table, team))
    assert sums(store, team) == before


def test_a_file_of_an_older_schema_is_read_and_erased(
    recorded: Eraser, store: ObjectStore, team: str
) -> None:
    file = next(iter(record_files(store, "audit", team)))
    old = pq.read_table(io.BytesIO(store.get(file.key))).drop_columns(["cost", "findings", "answer"])
    store.put(file.key, to_parquet(old))
    assert len(rows(store, "audit", team)) == 6
    assert recorded.erase("user", "bob", team).rows["audit"] == 3


def test_erase_wants_one_subject(s3: S3, capsys) -> None:
    name = uuid.uuid4().hex
    assert "not both" in manta(capsys, "erase", "--key", name, "--user", name, status=2)
    assert "--team belongs" in manta(capsys, "erase", "--key", name, "--team", name, status=2)


@pytest.mark.slow
def test_a_replica_on_serve_ships_what_it_records(served: Served) -> None:
    """The shipping process finds code, settings and keys where Ray runs the gateway."""
    client = served.client()
    answer = client.chat.completions.create(
        model=BASE, messages=[{"role": "user", "content": "hello"}], max_tokens=3, user="ann"
    )
    rating = {"request_id": answer.id, "rating": "down"}
    assert client.post("/feedback", body=rating, cast_to=object)["object"] == "feedback"
    name, since = answer.id.removeprefix("chatcmpl-"), datetime.now(UTC) - timedelta(hours=1)
    found, until = list[Any](), time.monotonic() + 300
    while not found and time.monotonic() < until:
        time.sleep(0.5)
        found = [
            row
            for batch in rated_traffic(object_store(), load_settings().team, since)
            for row in batch.to_pylist()
            if row["request_id"] == name and row["score"] is not None
        ]
    assert [row["score"] for row in found] == [0.0]
    assert found[0]["completion_tokens"] == 3
    report = json.loads(served.cluster.must("usage", "--by", "model", "--since", "1h", "--json"))
    assert {row["model"]: row["requests"] for row in report}[BASE] >= 1
