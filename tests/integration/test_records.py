"""Records of requests: from the gateway's application over the spool to Parquet in the real S3 server."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pyarrow as pa
import pytest

from cluster.records import TABLES, UNKNOWN_TEAM, line, record_files, subject_hash
from cluster.records.reading import read
from cluster.records.ship import ship
from cluster.storage import ObjectStore
from deployments.gateway.args import RecordArgs
from deployments.gateway.errors import ApiError
from deployments.gateway.sink import RecordSink
from tests.conftest import S3
from tests.fault_proxy import FaultProxy
from tests.integration.conftest import ROOT
from tests.ports import free_ports
from tests.unit.gateway_app import KEY, Fixture, chat, gateway, key, policy, route, snapshot, usage

pytestmark = pytest.mark.integration

HELLO = [{"role": "user", "content": "hello"}]
MAIL = [{"role": "user", "content": "write to ann@example.com"}]
PII = {"name": "pii", "kind": "pii", "on": "both", "action": "redact"}
BANNED = {"name": "banned", "kind": "ban_list", "on": "both", "action": "block", "words": ["sesame"]}
SAYS = [chat("Good "), chat("day", finish="stop"), usage(5, 2)]


def published(team: str, **policy_fields: Any):
    document = policy("strict", PII, BANNED)
    if policy_fields:
        from validation.guards import parse_policy

        document = parse_policy(document.body | policy_fields).document()
    return snapshot(
        keys=[key(team=team, policy="strict"), key("sk-other", id="other", team=f"{team}-b")],
        routes=[route(policy="strict")],
        policies=[document],
    )


def rows(store: ObjectStore, table: str, team: str) -> list[dict[str, Any]]:
    names = [column.name for column in TABLES[table].columns]
    found = [row for part in read(store, table, names, team=team) for row in part.to_pylist()]
    return sorted(found, key=lambda row: row["time"])


def spooled(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*"))


async def ask(running: Fixture, messages=HELLO, **fields: Any) -> str:
    fields = {"model": "m", "messages": messages} | fields
    answer = await running.client.chat.completions.with_raw_response.create(**fields)
    if fields.get("stream"):
        async for _ in answer.parse():
            pass
    return answer.headers["x-request-id"]


async def test_every_request_is_in_the_audit_whatever_became_of_it(
    store: ObjectStore, team: str, tmp_path: Path
) -> None:
    async with gateway(published(team), spool=tmp_path) as running:
        running.script.says = SAYS
        first = await ask(running, MAIL, user="ann", safety_identifier="ann-1")
        await ask(running, stream=True)
        with pytest.raises(openai.BadRequestError):
            await ask(running, [{"role": "user", "content": "open sesame"}])
        with pytest.raises(openai.NotFoundError):
            await ask(running, model="none")
        running.script.says = [chat("open sesame now", finish="stop")]
        await ask(running)
        running.script.says = [ApiError(502, "The model broke.", kind="server_error", code="broken")]
        with pytest.raises(openai.InternalServerError):
            await ask(running)
        running.script.says, running.script.pause_s = SAYS, 30.0
        running.script.begun.clear()
        leaves = asyncio.create_task(ask(running))
        await running.script.begun.wait()
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        running.client.api_key = "sk-wrong"
        with pytest.raises(openai.AuthenticationError):
            await ask(running)
    found = rows(store, "audit", team)
    outcomes = ["ok", "ok", "blocked", "refused", "blocked", "failed", "cancelled"]
    assert [row["outcome"] for row in found] == outcomes
    assert [row["status"] for row in found] == [200, 200, 400, 404, 200, 502, 499]
    assert [row["error_code"] for row in found if row["error_code"]] == [
        *("content_filter", "model_not_found", "broken")
    ]
    row = found[0]
    assert row["request_id"] == first
    assert (row["key_id"], row["team"], row["tenant"]) == ("tester", team, "default")
    assert row["users"] == [subject_hash("user", team, name) for name in ("ann-1", "ann")]
    assert (row["endpoint"], row["model"], row["target_model"]) == ("chat", "m", "engine-m")
    assert (row["prompt_tokens"], row["completion_tokens"]) == (5, 2)
    assert row["policy"] == "strict"
    assert len(row["policy_digest"]) == 64
    (finding,) = row["findings"]
    assert (finding["guard"], finding["label"], finding["action"]) == ("pii", "EMAIL_ADDRESS", "redact")
    assert (finding["direction"], finding["path"]) == ("input", "messages[0].content")
    assert 0 < row["time_to_first_token_s"] <= row["duration_s"]
    assert all(row["prompt"] is None and row["answer"] is None for row in found)
    assert found[3]["model"] == "none"
    # Nobody's: kept apart from every team.
    nobodys = [row for row in rows(store, "audit", UNKNOWN_TEAM) if row["status"] == 401]
    assert nobodys[-1]["outcome"] == "refused"
    assert spooled(tmp_path) == [], "the spool is empty again"


async def test_texts_are_recorded_only_judged_and_only_if_the_policy_says_so(
    store: ObjectStore, team: str, tmp_path: Path
) -> None:
    settings = RecordArgs(traffic_share=1.0, max_text_characters=200)
    first = published(team, record_text="redacted")
    async with gateway(first, spool=tmp_path, records=settings) as running:
        running.script.says = [chat("ask bob@example.com "), chat("now", finish="stop"), usage(5, 2)]
        await ask(running, MAIL)
        await ask(running, MAIL, stream=True)
        await ask(running, [{"role": "user", "content": "x" * 1000}])
    for table in ("audit", "traffic"):
        whole, streamed, cut = rows(store, table, team)
        for row in (whole, streamed):
            assert "ann@" not in row["prompt"]
            assert "write to" in row["prompt"]
            assert "bob@" not in row["answer"]
            assert "now" in row["answer"]
        assert len(cut["prompt"]) == 200
    assert whole["finish_reasons"] == streamed["finish_reasons"] == ["stop"]
    assert whole["answer_characters"] == streamed["answer_characters"] > len("ask now")
    assert 0.5 < whole["prompt_letters"] < 1
    assert whole["messages"] == 1


async def test_traffic_is_a_sample_and_has_features_without_texts(
    store: ObjectStore, team: str, tmp_path: Path
) -> None:
    settings = RecordArgs(traffic_share=0.3, audit=False)
    async with gateway(published(team), spool=tmp_path, records=settings) as running:
        running.script.says = SAYS
        for _ in range(60):
            await ask(running)
    found = rows(store, "traffic", team)
    assert 2 < len(found) < 45
    assert {row["prompt_characters"] for row in found} == {len("hello")}
    assert {row["answer_characters"] for row in found} == {len("Good day")}
    assert all(row["prompt"] is None and row["answer"] is None for row in found)
    assert rows(store, "audit", team) == []


async def test_every_dialect_is_on_record_and_can_be_rated(
    store: ObjectStore, team: str, tmp_path: Path
) -> None:
    responses = {"model": "m", "input": "hello", "safety_identifier": "ann", "stream": True}
    messages = {"model": "m", "max_tokens": 9, "messages": HELLO, "metadata": {"user_id": "ann"}}
    completions = {"model": "m", "prompt": "hello", "user": "ann"}
    headers = {"authorization": f"Bearer {KEY}"}
    async with gateway(published(team, record_text="redacted"), spool=tmp_path) as running:
        for path, body in (("responses", responses), ("messages", messages), ("completions", completions)):
            if path == "completions":
                running.script.says = [
                    {"choices": [{"index": 0, "text": "Good day", "finish_reason": "stop"}]}
                ]
            else:
                running.script.says = SAYS
            answer = await running.http.post(f"/v1/{path}", json=body, headers=headers)
            assert answer.status_code == 200, answer.text
            name = re.search(r'"id": ?"((resp_|msg_|cmpl-)[^"]+)"', answer.text)
            assert name is not None, answer.text
            rating = {"request_id": name[1], "rating": "up"}
            assert (await running.http.post("/v1/feedback", json=rating, headers=headers)).status_code == 202
    found = rows(store, "audit", team)
    assert [row["endpoint"] for row in found] == ["responses", "messages", "completions"]
    assert all(row["users"] == [subject_hash("user", team, "ann")] for row in found)
    assert all("hello" in row["prompt"] and "Good day" in row["answer"] for row in found)
    rated = [row["request_id"] for row in rows(store, "feedback", team)]
    assert rated == [row["request_id"] for row in found]


@pytest.fixture
def proxy(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """What the shipping process takes for storage."""
    with FaultProxy(s3.endpoint, free_ports()) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


async def test_storage_away_is_not_felt_and_the_audit_catches_up(
    proxy: FaultProxy, store: ObjectStore, team: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.be_busy(3600)
    settings = RecordArgs(file_s=0.2, retry_s=0.5)
    async with gateway(published(team), spool=tmp_path, records=settings) as running:
        running.script.says = SAYS
        for _ in range(20):
            await ask(running)
        await until(lambda: "Records wait on disk" in caplog.text)
        for _ in range(20):
            await ask(running)
        assert rows(store, "audit", team) == []
        proxy.be_busy(0)
        await until(lambda: len(rows(store, "audit", team)) == 40)
        assert running.sink.dropped == {}
    assert len({row["request_id"] for row in rows(store, "audit", team)}) == 40


async def until(good) -> None:
    async with asyncio.timeout(300):
        while not await asyncio.to_thread(good):  # noqa: ASYNC110 - nobody tells.
            await asyncio.sleep(0.1)


_WRITER = """
import sys
import time
from pathlib import Path
from cluster.records import line
from deployments.gateway.args import RecordArgs
from deployments.gateway.sink import RecordSink
sink = RecordSink(RecordArgs(file_rows=20, retry_s=60), Path(sys.argv[1]))
sink.start()
for number in range(10**9):
    while sink.waiting_bytes:  # What is on disk must outlive this process; the rest may be lost.
        time.sleep(0.002)
    print(number - 1, flush=True)
    row = {"request_id": f"r{number}", "time": "2026-11-22T10:00:00.000000Z", "team": sys.argv[2]}
    assert sink.put("audit", line("audit", row))
"""


def test_a_killed_replica_loses_nothing_that_it_had_spooled(
    store: ObjectStore, team: str, tmp_path: Path
) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    killed = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(tmp_path), team],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
    )
    assert killed.stdout is not None
    for said in killed.stdout:
        if int(said) >= 50:
            killed.send_signal(signal.SIGKILL)
            break
    on_disk = int((killed.stdout.read().split() or [said])[-1])
    killed.wait()
    # The next replica on this machine brings it home.
    settings = RecordArgs(stop_timeout_s=600)
    sink = RecordSink(settings, tmp_path)
    sink.start()
    sink.stop()
    found = [row["request_id"] for row in rows(store, "audit", team)]
    assert len(found) == len(set(found))
    lost = {f"r{number}" for number in range(on_disk + 1)} - set(found)
    assert not lost
    assert len(list(record_files(store, "audit", team))) >= 3


def test_a_segment_that_is_shipped_again_doubles_nothing(
    store: ObjectStore, team: str, tmp_path: Path
) -> None:
    from cluster.records.spool import Spool

    spool = Spool(tmp_path)
    spool.append("audit", b"".join(audit_line(team, number) for number in range(10)))
    spool.append("audit", b'{"request_id": 5}\n')
    spool.append("audit", b'{"request_id": "cut o')
    spool.close("audit")
    (segment,) = tmp_path.glob("*/*.jsonl")
    content = segment.read_bytes()
    assert ship(tmp_path, store) == 10
    segment.write_bytes(content)  # As if it had been killed before it could delete it.
    assert ship(tmp_path, store) == 10
    assert len(rows(store, "audit", team)) == 10
    (rejected,) = tmp_path.glob("*.rejected")
    assert rejected.read_bytes() == b'{"request_id": 5}\n'
    spool.end()


def test_every_line_that_is_no_record_is_kept(
    store: ObjectStore, team: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster.records import ship as shipping
    from cluster.records.spool import Spool

    monkeypatch.setattr(shipping, "_BLOCK", 1)  # A line each.
    spool = Spool(tmp_path)
    spool.append("audit", b'{"request_id": 5}\n' + audit_line(team, 1) + b'{"request_id": 6}\n')
    spool.end()
    assert ship(tmp_path, store) == 1
    kept = {file.read_bytes() for file in tmp_path.glob("*.rejected")}
    assert kept == {b'{"request_id": 5}\n', b'{"request_id": 6}\n'}


def audit_line(team: str, number: int) -> bytes:
    row = {"request_id": f"r{number}", "time": f"2026-11-22T10:00:{number % 60:02}.000001Z", "team": team}
    return line("audit", row | {"status": 200, "outcome": "ok"})


async def test_a_disk_that_hangs_holds_up_no_request_and_fills_no_memory(team: str, tmp_path: Path) -> None:
    settings = RecordArgs(queue_max_bytes=100_000)
    async with gateway(published(team), spool=tmp_path, records=settings) as running:
        folder = spooled(tmp_path)[0].parent
        os.mkfifo(folder / "audit.open")  # Whoever opens it to write waits for a reader.
        running.script.says = SAYS
        await ask(running)
        tracemalloc.start()
        for number in range(10_000):
            running.sink.put("audit", audit_line(team, number))
        grown = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        await ask(running)
        assert running.sink.waiting_bytes <= 100_000
        assert running.sink.dropped["audit"] > 9_000
        assert grown < 500_000
        reader = os.open(folder / "audit.open", os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(reader, True)
        await asyncio.to_thread(os.read, reader, 1000)
        os.close(reader)
        (folder / "audit.open").unlink()


def test_a_full_spool_drops_and_counts(s3: S3, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = RecordArgs(file_rows=100, spool_max_bytes=20_000, retry_s=60, stop_timeout_s=0)
    sink = RecordSink(settings, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        patch.setenv("MANTA_STORAGE__MAX_ATTEMPTS", "1")
        sink.start()
        put = 0
        while not sink.dropped:
            put += sink.put("traffic", line("traffic", {"request_id": "r", "team": "a"}))
            time.sleep(0.0001)
        sink.stop()
    until = time.monotonic() + 300  # It was not waited for, and is at its end soon.
    while "were dropped" not in caplog.text:
        assert time.monotonic() < until
        time.sleep(0.05)
    spooled = sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("*/*.jsonl"))
    assert spooled == put


def test_a_line_is_utf8_whatever_it_says() -> None:
    assert line("audit", {"model": "\ud83d\n\u2028", "cost": None}) == (
        b'{"schema_version":1,"model":"?\\n\xe2\x80\xa8"}\n'
    )


def test_the_schema_says_what_every_column_is() -> None:
    for table in TABLES.values():
        schema = table.arrow()
        assert schema.names == [column.name for column in table.columns]
        assert all(column.description.endswith(".") for column in table.columns)
        assert schema.metadata[b"manta.schema_version"] == b"1"
        assert isinstance(schema, pa.Schema)
