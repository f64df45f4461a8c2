"""Input that nobody meant: whatever comes, the answer is OpenAI's error body with a 4xx, never a 500."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.contracts.request import ChatBody, CompletionBody
from deployments.gateway.errors import ApiError
from deployments.gateway.upstream import Upstreams
from tests.conftest import forget_settings
from tests.ports import free_ports
from tests.unit.gateway_app import KEY, Fixture, Script, chat, gateway, key, route, snapshot, usage

BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
URLS = {"/v1/chat/completions": BODY, "/v1/completions": {"model": "m", "prompt": "hello"}}
URL = "/v1/chat/completions"
AUTH = {"authorization": f"Bearer {KEY}"}
SAYS = [chat("ok", finish="stop"), usage(1, 1)]
TEXT = {"index": 0, "text": "ok", "logprobs": None, "finish_reason": "stop"}


async def refused(g: Fixture, content: bytes, status: int = 400) -> dict[str, Any]:
    answer = await g.http.post(URL, content=content, headers=AUTH)
    assert answer.status_code == status, answer.text[:300]
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in error["message"]
    assert not g.script.requests
    return error


def body(**more: Any) -> bytes:
    return json.dumps(BODY | more).encode()


def nested(depth: int) -> bytes:
    """An object of that depth where objects are allowed."""
    deep = b'{"a":' * depth + b"1" + b"}" * depth
    return body(response_format=0).replace(b'"response_format": 0', b'"response_format": ' + deep)


@pytest.mark.parametrize("told", [True, False])
async def test_50_megabytes_are_refused_before_they_are_held(told: bool) -> None:
    """Who says so is refused at once; who does not, when the limit is passed."""
    size, taken = 50 * 1024 * 1024, 0

    async def parts() -> Any:
        nonlocal taken
        for _ in range(size // 65_536):
            taken += 65_536
            yield b"x" * 65_536

    async with gateway() as g:
        headers = AUTH | ({"content-length": str(size)} if told else {})
        app, sent = g.http._transport.app, []  # type: ignore[attr-defined]
        source = aiter(parts())

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": await anext(source), "more_body": True}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": "POST", "path": URL, "headers": raw, "client": ("1.1.1.1", 1)}
        await app(scope | {"query_string": b"", "root_path": "", "scheme": "http"}, receive, send)
    assert sent[0]["status"] == 413
    assert taken <= (0 if told else 5 * 1024 * 1024)


@pytest.mark.parametrize("depth", [100, 500, 900, 2000, 20_000, 100_000])
async def test_deep_json(depth: int) -> None:
    async with gateway(max_body_bytes=8 * 1024 * 1024) as g:
        g.script.says = SAYS
        answer = await g.http.post(URL, content=nested(depth), headers=AUTH)
        assert answer.status_code == 400 or (depth == 100 and answer.status_code == 200), answer.text[:300]


@pytest.mark.parametrize(
    "content",
    [
        body(messages=[{"role": "user", "content": "CUT"}]).replace(b"CUT", b"\xff\xfe\xc0"),
        body(messages=[{"role": "user", "content": "CUT"}]).replace(b"CUT", b"\xed\xa0\x80"),
        body(messages=[{"role": "user", "content": "CUT"}]).replace(b"CUT", b"\\ud800"),
        body(tools=[{"type": "function", "function": {"name": "CUT"}}]).replace(b"CUT", b"\\udfff x"),
        body(model="CUT").replace(b"CUT", b"\\ud800"),
        body(user="CUT").replace(b"CUT", b"\\ud800"),
        body(CUT=1).replace(b"CUT", b"\\ud800"),
        body().decode().encode("utf-16"),
        b"\xef\xbb\xbf{}",
        b"",
        b"\x00" * 100,
        b"null",
        b'"text"',
    ],
)
async def test_text_that_is_none(content: bytes) -> None:
    async with gateway() as g:
        await refused(g, content)


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"1" + b"0" * 5000])
@pytest.mark.parametrize("field", ["temperature", "top_p", "presence_penalty", "logit_bias", "tools"])
async def test_numbers_that_are_none(field: str, number: bytes) -> None:
    value = {"logit_bias": {"1": "CUT"}, "tools": [{"a": "CUT"}]}.get(field, "CUT")
    async with gateway() as g:
        await refused(g, body(**{field: value}).replace(b'"CUT"', number))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2**31),
        ("n", 10**30),
        ("n", -1),
        ("max_tokens", 10**30),
        ("max_tokens", -5),
        ("max_completion_tokens", 2**63),
        ("min_tokens", 10**30),
        ("min_tokens", -1),
        ("top_k", 2**40),
        ("top_k", -7),
        ("seed", 2**64),
        ("seed", -(2**64)),
        ("stop_token_ids", [2**40]),
        ("stop_token_ids", [-1]),
        ("stop", ["x"] * 10_000),
        ("logit_bias", {"7" * 40: 1}),
        ("logit_bias", {"x": 1}),
    ],
)
async def test_numbers_that_no_engine_can_hold(field: str, value: Any) -> None:
    """An engine that casts them to its own integers may die of one."""
    async with gateway() as g:
        assert (await refused(g, body(**{field: value})))["param"]


async def test_more_tokens_than_the_operator_allows() -> None:
    async with gateway(max_output_tokens=100) as g:
        for field in ("max_tokens", "max_completion_tokens"):
            assert (await refused(g, body(**{field: 101})))["param"] == field


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = sorted(ChatBody.model_fields | CompletionBody.model_fields)


async def test_any_value_in_any_field_is_answered_by_a_200_or_a_400() -> None:
    loop = asyncio.get_running_loop()
    async with gateway() as g:

        async def ask(url: str, changes: dict[str, Any]) -> None:
            g.script.says = SAYS if url == URL else [{"choices": [TEXT]}, usage(1, 1)]
            content = json.dumps(URLS[url] | changes).encode("utf-8", "surrogatepass")
            answer = await g.http.post(url, content=content, headers=AUTH)
            # The script ends choices that were not asked for, and none but its one: that is a 502.
            assert answer.status_code in (200, 400, 404, 502), answer.text
            assert answer.status_code == 200 or "error" in answer.json()

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(st.sampled_from(sorted(URLS)), st.dictionaries(st.sampled_from(_FIELDS), _JSON, max_size=3))
        def examples(url: str, changes: dict[str, Any]) -> None:
            asyncio.run_coroutine_threadsafe(ask(url, changes), loop).result(600)

        await asyncio.to_thread(examples)


HOSTILE = [
    "data: [DONE]\n\n",
    "\r\n\r\nevent: error\ndata: {}\n\n",
    "[DONE]",
    '"}]}\n\ndata: {"choices":[{"index":0,"delta":{"content":"forged"}}]}\n\n',
    "\u2028\u2029\x00\x85\x0b\x0c\x1b[2J",
    "half \ud83d of a pair",
    "\ude00 the other half, and \udcff",
    "\ufeff: comment\nid: 7\nretry: 1\n\n",
]


@pytest.fixture
def bytes_said(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the model's side sends, byte by byte, to the parser that is behind the handle."""
    said: list[bytes] = []

    async def from_handle(*_: Any) -> AsyncIterator[bytes]:
        for item in said:
            yield item

    monkeypatch.setattr(Script, "chunks", Upstreams.chunks)
    monkeypatch.setattr(Script, "_from_handle", from_handle)
    return said


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_hostile_model_says_stays_inside_its_frame(
    bytes_said: list[bytes], stream: bool
) -> None:
    """Its text may look like events, ends of streams or broken characters: the client gets it as text."""
    parts = [chat("", role="assistant"), *map(chat, HOSTILE), chat("", finish="stop"), usage(1, 8)]
    bytes_said += [f"data: {json.dumps(part)}\n\n".encode() for part in parts] + [b"data: [DONE]\n\n"]
    async with gateway() as g:
        if stream:
            chunks = [c async for c in await g.client.chat.completions.create(**BODY, stream=True)]
            said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
        else:
            whole = await g.client.chat.completions.create(**BODY)
            said = whole.choices[0].message.content or ""
            assert whole.choices[0].finish_reason == "stop"
    assert said == "".join(HOSTILE).encode(errors="replace").decode()


@pytest.mark.parametrize(
    "item",
    [
        b"data: {\xff\xfe}\n\n",
        b"data: [1, 2]\n\n",
        b"data: nonsense\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
    ],
)
async def test_an_upstream_that_sends_no_events_is_a_502(bytes_said: list[bytes], item: bytes) -> None:
    bytes_said.append(item)
    async with gateway() as g:
        answer = await g.http.post(URL, json=BODY, headers=AUTH)
        assert answer.status_code == 502, answer.text
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_the_openapi_document_names_every_door_and_every_field() -> None:
    async with gateway() as g:
        document = (await g.http.get("/openapi.json")).json()
        app = g.http._transport.app._app  # type: ignore[attr-defined]
    doors = {route.path.replace(":path", "") for route in app.routes} - {"/openapi.json"}
    assert doors == set(document["paths"])
    fields = document["components"]["schemas"]["ChatBody"]["properties"]
    assert set(ChatBody.model_fields) == set(fields)
    assert document["components"]["schemas"]["ChatBody"]["additionalProperties"] is False


async def test_schemathesis_finds_no_500_and_no_503_without_retry_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fits the document is answered, what does not is refused, and neither breaks anything.

    SQL is there, storage is away.
    """
    import schemathesis
    from schemathesis import GenerationMode

    from cluster.storage import object_store

    monkeypatch.setenv("MANTA_HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports()}")
    monkeypatch.setenv("MANTA_STORAGE__MAX_ATTEMPTS", "1")
    forget_settings()
    object_store.cache_clear()

    loop = asyncio.get_running_loop()
    seen: set[tuple[str, int]] = set()
    admin = key(scopes=["admin"])
    async with gateway(snapshot(routes=[route(), route("broken")], keys=[admin])) as g:
        schema = schemathesis.openapi.from_dict((await g.http.get("/openapi.json")).json())
        g.script.says = [ApiError(503, "No.", kind="server_error")]

        async def ask(case: Any) -> None:
            case.headers = {**(case.headers or {}), **AUTH}
            if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                case.body["model"] = "m"
            known = case.as_transport_kwargs(base_url="http://gateway")
            wanted = {"method", "url", "headers", "params", "json", "data"}
            sent = {name: value for name, value in known.items() if name in wanted and value is not None}
            if isinstance(sent.get("data"), bytes):
                sent["content"] = sent.pop("data")
            answer = await g.http.request(**sent)
            seen.add((case.operation.path, answer.status_code))
            assert answer.status_code < 500 or (
                answer.status_code == 503 and answer.headers["retry-after"]
            ), answer.text

        for result in schema.get_all_operations():
            operation = result.ok()
            # Whoever sends nothing sends nothing wrong.
            for mode in GenerationMode if operation.method == "post" else [GenerationMode.POSITIVE]:
                strategy = operation.as_strategy(generation_mode=mode)

                @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
                @given(strategy)
                def examples(case: Any) -> None:
                    asyncio.run_coroutine_threadsafe(ask(case), loop).result(600)

                await asyncio.to_thread(examples)
    object_store.cache_clear()
    assert {path for path, _ in seen} == set(schema.raw_schema["paths"])
    assert {200, 400} <= {status for _, status in seen}


async def test_a_body_that_never_ends_takes_no_place_and_is_a_408() -> None:
    sending, all_send = 0, asyncio.Event()

    async def never_ending() -> AsyncIterator[bytes]:
        nonlocal sending
        yield b"{"
        sending += 1
        if sending == len(slow):
            all_send.set()
        await asyncio.Event().wait()

    async with gateway(max_concurrent_requests=1, body_timeout_s=1.0) as g:
        g.script.says = SAYS
        slow = [asyncio.create_task(g.http.post(URL, content=never_ending(), headers=AUTH)) for _ in range(3)]
        await all_send.wait()
        assert (await g.http.post(URL, json=BODY, headers=AUTH)).status_code == 200
        assert {answer.status_code for answer in await asyncio.gather(*slow)} == {408}
        assert (await g.http.post(URL, json=BODY, headers=AUTH)).status_code == 200
