"""``/v1/files`` with the official client, on real storage and SQL."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from cluster.contracts.files import FileRecord
from cluster.errors import NotFoundError
from cluster.files import FileRepository, new_file_id
from cluster.settings import load_settings
from cluster.storage import ObjectStore
from tests.conftest import S3, forget_settings
from tests.ports import free_ports
from tests.unit.gateway_app import Fixture, gateway, key, snapshot

pytestmark = pytest.mark.integration


@pytest.fixture
async def g(s3: S3, team: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fixture]:
    monkeypatch.setenv("MANTA_HOME", str(tmp_path))
    forget_settings()
    keys = [key(team=team), key("sk-other", id="other", team=f"{team}-other")]
    async with gateway(snapshot(keys=keys), max_file_lines=100, max_stored_bytes=100_000) as running:
        yield running
    forget_settings()


def line(number: int, **more: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": f"Question {number}"}]}
    return {
        "custom_id": f"row-{number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": body,
    } | more


def jsonl(*lines: Any) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in lines)


async def upload(g: Fixture, content: bytes, purpose: str = "batch", **more: Any) -> Any:
    return await g.client.files.create(file=("rows.jsonl", content), purpose=purpose, **more)  # type: ignore[arg-type]


async def test_the_life_of_a_file(g: Fixture, team: str, store: ObjectStore) -> None:
    content = jsonl(*(line(number) for number in range(3)))
    made = await upload(g, content, expires_after={"anchor": "created_at", "seconds": 3600})
    assert (made.object, made.purpose, made.filename) == ("file", "batch", "rows.jsonl")
    assert (made.bytes, made.status) == (len(content), "processed")
    assert made.expires_at == made.created_at + 3600
    assert await g.client.files.retrieve(made.id) == made
    assert (await g.client.files.content(made.id)).content == content
    assert store.get(f"{team}/files/{made.id}") == content
    record = FileRepository(load_settings().database_url).get(made.id, team)
    assert (record.lines, record.sha256) == (3, hashlib.sha256(content).hexdigest())
    gone = await g.client.files.delete(made.id)
    assert gone.deleted
    with pytest.raises(openai.NotFoundError):
        await g.client.files.retrieve(made.id)
    assert not store.exists(f"{team}/files/{made.id}")


async def test_listing_goes_on_where_it_ended(g: Fixture) -> None:
    made = [(await upload(g, jsonl(line(number)))).id for number in range(5)]
    training = jsonl({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    tuning = await upload(g, training, "fine-tune")
    assert [file.id async for file in g.client.files.list(limit=2)] == [tuning.id, *reversed(made)]
    assert [file.id async for file in g.client.files.list(limit=2, order="asc", purpose="batch")] == made
    page = await g.client.files.list(limit=2, order="asc")
    assert ([file.id for file in page.data], page.has_more) == (made[:2], True)


async def test_no_team_sees_anothers(g: Fixture) -> None:
    made = await upload(g, jsonl(line(1)))
    other = g.client.with_options(api_key="sk-other")
    assert [file async for file in other.files.list()] == []
    for ask in (other.files.retrieve, other.files.delete, other.files.content):
        with pytest.raises(openai.NotFoundError) as refused:
            await ask(made.id)
        assert refused.value.code == "not_found"
    assert await g.client.files.retrieve(made.id) == made


def without(number: int, *path: str) -> dict[str, Any]:
    item = line(number)
    inner = item
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    return item


@pytest.mark.parametrize(
    ("content", "message", "code"),
    [
        (b"", "The file is empty", "empty_file"),
        (b"\n\n", "The file is empty", "empty_file"),
        (jsonl(line(1)) + b"{", "Line 2: it is no JSON object", "invalid_json_line"),
        (jsonl(line(1)) + b"\n" + jsonl(line(2)), "Line 2: it is empty", "invalid_json_line"),
        (jsonl(line(1)) + b"\xff\xfe", "Line 2: it is no JSON object in UTF-8", "invalid_json_line"),
        (jsonl(line(1), [1]), "Line 2: it is no JSON object", "invalid_json_line"),
        (jsonl(line(1), line(2), line(1)), "Line 3: its custom_id is that of line 1", "duplicate_custom_id"),
        (jsonl(without(1, "custom_id")), "Line 1: Missing required parameter: 'custom_id'", "missing"),
        (
            jsonl(without(1, "body", "messages")),
            "Line 1: Missing required parameter: 'body.messages'",
            "missing",
        ),
        (jsonl(line(1, method="GET")), "Line 1: Invalid value for 'method'", "invalid_value"),
        (jsonl(line(1, url="/v1/images")), "Line 1: '/v1/images' is no endpoint", "invalid_url"),
        (
            jsonl(line(1), line(2, url="/v1/completions", body={"model": "m", "prompt": "x"})),
            "Line 2: its url is",
            "mismatched_url",
        ),
        (
            jsonl(line(1), line(2, body=line(2)["body"] | {"model": "n"})),
            "Line 2: its model is 'n'",
            "mismatched_model",
        ),
        (
            jsonl(line(1, body=line(1)["body"] | {"stream": True})),
            "Line 1: a batch does not",
            "invalid_value",
        ),
        (jsonl(line(1, body=line(1)["body"] | {"model": "m\0"})), "Line 1: its model is no", "invalid_value"),
        (jsonl(line(1, colour="red")), "Line 1: Unrecognized request argument", "unknown_parameter"),
        (jsonl(*map(line, range(101))), "Line 101: a file may have at most 100 lines", "too_many_lines"),
        (b'{"a": "' + b"x" * 5_000_000 + b'"}', "Line 1: it is longer than", "line_too_long"),
        (b"[" * 200_000, "Line 1: it is no JSON object", "invalid_json_line"),
    ],
)
async def test_a_bad_line_is_named(g: Fixture, content: bytes, message: str, code: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await upload(g, content)
    assert message in refused.value.message
    assert str(refused.value.code).startswith(code)
    assert [file async for file in g.client.files.list()] == []


SAYS = {"role": "assistant", "content": "b"}
ASKS = {"role": "user", "content": "a"}
PREFERS = {"input": {"messages": [ASKS]}, "preferred_output": [SAYS], "non_preferred_output": [SAYS]}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"messages": [ASKS]}], "Line 1: it has no assistant message"),
        ([{"messages": [ASKS, SAYS | {"weight": 0}]}], "Line 1: it has no assistant message"),
        ([{"messages": [ASKS, SAYS]}, PREFERS], "Line 2: messages and preferences do not go together"),
        ([PREFERS | {"preferred_output": []}], "Line 1: Invalid value for 'preferred_output'"),
        ([{"prompt": "a", "completion": "b"}], "Line 1: "),
        ([{"messages": [ASKS, SAYS]}, PREFERS | {"input": 1}], "Line 2: "),
    ],
)
async def test_a_bad_example_is_named(g: Fixture, lines: list[Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        await upload(g, jsonl(*lines), "fine-tune")


async def test_preferences_are_taken(g: Fixture) -> None:
    assert (await upload(g, jsonl(PREFERS, PREFERS), "fine-tune")).purpose == "fine-tune"


async def test_forms_that_are_none(g: Fixture, team: str, store: ObjectStore) -> None:
    url, head = "/v1/files", {"authorization": "Bearer sk-test"}
    whole = httpx.Request("POST", "http://g/", files={"file": jsonl(line(1))}, data={"purpose": "batch"})
    body, kind = whole.read(), whole.headers["content-type"]
    cases: list[tuple[bytes, str, str]] = [
        (body[:-40], kind, "ended before the file did"),
        (body[:90], kind, "ended before the file did"),
        (body, "application/json", "multipart/form-data"),
        (b"", "multipart/form-data", "cannot be read"),
    ]
    for content, content_type, message in cases:
        answer = await g.http.post(url, content=content, headers=head | {"content-type": content_type})
        assert answer.status_code == 400, message
        assert message in answer.json()["error"]["message"]
    for data, param in [
        ({}, "purpose"),
        ({"purpose": "vision"}, "purpose"),
        ({"purpose": "batch", "x": "1"}, "x"),
    ]:
        answer = await g.http.post(url, files={"file": jsonl(line(1))}, data=data, headers=head)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    answer = await g.http.post(url, files={"other": b"x"}, data={"purpose": "batch"}, headers=head)
    assert answer.status_code == 400
    assert not list(store.list(f"{team}/files/"))


async def test_quotas(g: Fixture, team: str, store: ObjectStore) -> None:
    long = line(1) | {"custom_id": "x" * 500}
    lines = [long | {"custom_id": f"{number:0500}"} for number in range(70)]
    first = await upload(g, jsonl(*lines))
    await upload(g, jsonl(line(0)))
    with pytest.raises(openai.PermissionDeniedError) as refused:
        await upload(g, jsonl(*lines, *(long | {"custom_id": f"{number:0400}"} for number in range(25))))
    assert refused.value.code == "quota_exceeded"
    await g.client.files.delete(first.id)
    await upload(g, jsonl(line(1)))
    kept = [file async for file in g.client.files.list()]
    assert len(list(store.list(f"{team}/files/"))) == len(kept)


async def test_too_large_is_refused_while_it_comes(s3: S3, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("MANTA_HOME", str(tmp_path))
    forget_settings()
    async with gateway(max_file_bytes=1000) as running:
        with pytest.raises(openai.APIStatusError) as refused:
            await running.client.files.create(file=io.BytesIO(b"x" * 200_000), purpose="batch")
        assert (refused.value.status_code, refused.value.code) == (413, "file_too_large")
    forget_settings()


async def test_what_has_expired_or_never_came_is_swept(g: Fixture, team: str, store: ObjectStore) -> None:
    made = await upload(g, jsonl(line(1)))
    stays = await upload(g, jsonl(line(2)))
    repository = FileRepository(load_settings().database_url)
    sample, now = repository.get(stays.id, team), datetime.now(UTC)

    def put(**more: Any) -> FileRecord:
        record = sample.model_copy(update={"id": new_file_id()} | more)
        repository.announce(record)
        store.put(record.key, b"x")
        return record

    over = put(expires_at=now - timedelta(seconds=1))
    repository.confirm(over.id)
    coming = put()  # As a process leaves it that is killed while it stores.
    for hidden in (over, coming):
        with pytest.raises(openai.NotFoundError):
            await g.client.files.retrieve(hidden.id)
    assert repository.sweep(store) == 1
    left = {f"{team}/files/{name}" for name in (made.id, stays.id, coming.id)}
    assert {item.key for item in store.list(f"{team}/files/")} == left
    assert repository.sweep(store, now + timedelta(days=1, minutes=1)) == 1
    with pytest.raises(NotFoundError):
        repository.confirm(coming.id)  # Too late.
    assert {item.key for item in store.list(f"{team}/files/")} == left - {coming.key}


async def test_storage_that_is_away_leaves_nothing(g: Fixture, team: str, monkeypatch: Any) -> None:
    from cluster.storage import object_store

    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)}")
    monkeypatch.setenv("MANTA_STORAGE__MAX_ATTEMPTS", "1")
    forget_settings()
    object_store.cache_clear()
    with pytest.raises(openai.InternalServerError) as refused:
        await upload(g, jsonl(line(1)))
    assert (refused.value.status_code, refused.value.response.headers["retry-after"]) == (503, "5")
    assert [file async for file in g.client.files.list()] == []
    object_store.cache_clear()


async def test_an_upload_that_falls_silent_gives_its_place_back(
    s3: S3, tmp_path: Path, monkeypatch: Any
) -> None:
    async def falls_silent() -> AsyncIterator[bytes]:
        yield b"--x\r\n"
        await asyncio.Event().wait()

    monkeypatch.setenv("MANTA_HOME", str(tmp_path))
    forget_settings()
    async with gateway(body_timeout_s=0.2, max_uploads=1) as running:
        kind = "multipart/form-data; boundary=x"
        headers = {"authorization": "Bearer sk-test", "content-type": kind}
        for _ in range(2):
            answer = await running.http.post("/v1/files", content=falls_silent(), headers=headers)
            assert (answer.status_code, answer.json()["error"]["param"]) == (408, "file")
    forget_settings()


async def test_what_is_null_in_a_body_is_absent(g: Fixture) -> None:
    said = line(1)["body"] | {"stream": None, "n": None}
    assert (await upload(g, jsonl(line(1, body=said)))).status == "processed"
