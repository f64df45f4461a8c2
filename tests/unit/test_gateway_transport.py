"""How bytes travel: gathering in the replica, cutting into events, and the second kind of upstream."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError, RayServeException

from cluster import sse
from cluster.contracts import Principal, Target, UpstreamError, UpstreamRequest
from deployments.gateway.errors import ApiError
from deployments.gateway.upstream import Upstreams
from deployments.gather import ITEMS_PER_S, LONGEST_S, Pace, gather


async def ticking(count: int, pause_s: float, closed: list[bool] | None = None) -> AsyncIterator[bytes]:
    try:
        for number in range(count):
            yield str(number).encode()
            await asyncio.sleep(pause_s)
    finally:
        if closed is not None:
            closed.append(True)


async def test_the_first_item_leaves_at_once_and_the_rest_is_gathered() -> None:
    more = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        yield b"first"
        await more.wait()
        for number in range(20):
            yield str(number).encode()

    stream = aiter(gather(source(), lambda: 0.05))
    assert await anext(stream) == b"first"  # While the source has nothing else to give.
    more.set()
    rest = [item async for item in stream]
    assert len(rest) < 20
    assert b"".join(rest) == b"".join(str(n).encode() for n in range(20))


async def test_a_slow_stream_is_not_delayed() -> None:
    seen = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        for number in range(5):
            yield str(number).encode()
            await seen.wait()  # Nothing more comes until this item has arrived.
            seen.clear()

    items = []
    async with asyncio.timeout(600):
        async for item in gather(source(), lambda: 0.05):
            items.append(item)
            seen.set()
    assert items == [str(n).encode() for n in range(5)]


@pytest.mark.parametrize("interval_s", [0.0, 0.02])
async def test_what_the_source_raises_comes_after_what_it_gave(interval_s: float) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"
        raise ValueError("broken")

    got: list[bytes] = []

    async def read() -> None:
        async for item in gather(failing(), lambda: interval_s):
            got.append(item)

    with pytest.raises(ValueError, match="broken"):
        await read()
    assert b"".join(got) == b"ab"


@pytest.mark.parametrize("interval_s", [0.0, 0.02])
async def test_closing_closes_the_source(interval_s: float) -> None:
    closed: list[bool] = []
    stream = gather(ticking(1000, 0.001, closed), lambda: interval_s)
    async for _ in stream:
        break
    await stream.aclose()
    assert closed == [True]


def test_many_streams_send_seldom_and_few_at_once() -> None:
    pace = Pace(0.02)
    with ExitStack() as streams:
        intervals = []
        for _ in range(500):
            interval_s = streams.enter_context(pace.stream())
            intervals.append(interval_s())
        assert intervals[0] == 0.02
        assert 32 / intervals[31] <= ITEMS_PER_S
        assert intervals == sorted(intervals)
        assert intervals[-1] == LONGEST_S
    with pace.stream() as interval_s:
        assert interval_s() == 0.02
    with Pace(0.0).stream() as interval_s:
        assert interval_s() == 0.0


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_events_are_found_wherever_the_bytes_are_cut(size: int) -> None:
    data = (
        b": comment\n\nevent: error\r\ndata: {}\r\n\r\n"
        + sse.encode({"a": "\u00e9\n\n"})
        + b"data: x\ndata: y\n\n"
        + sse.DONE
    )
    reader = sse.EventReader()
    events = [event for i in range(0, len(data), size) for event in reader.feed(data[i : i + size])]
    assert events == [("error", "{}"), ("", '{"a":"\u00e9\\n\\n"}'), ("", "x\ny"), ("", "[DONE]")]


def test_an_error_is_an_event_of_its_own() -> None:
    (event,) = sse.EventReader().feed(sse.encode_error(UpstreamError(status=404, message="No.")))
    assert event.name == "error"
    assert UpstreamError.model_validate_json(event.data).status == 404


class Server(BaseHTTPRequestHandler):
    """An OpenAI-compatible server elsewhere; ``seen`` holds what it got, ``answer`` what it says."""

    answer: ClassVar[tuple[int, bytes]] = (200, b"")
    seen: ClassVar[list[tuple[str, dict[str, str], dict[str, Any]]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.seen.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        status, content = self.answer
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def elsewhere() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Server.seen.clear()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


async def ask(
    url: str, variables: dict[str, str] | None = None, endpoint: Any = "chat"
) -> list[dict[str, Any]]:
    upstreams = Upstreams(600.0, variables or {})
    request = UpstreamRequest(
        request_id="r1",
        endpoint=endpoint,
        body={"model": "gpt", "messages": []} if endpoint == "chat" else {"model": "gpt", "input": "a"},
        principal=Principal(key_id="k", team="default"),
    )
    try:
        return [
            c async for chunks in upstreams.chunks(Target(base_url=url, model="gpt"), request) for c in chunks
        ]
    finally:
        await upstreams.close()


async def test_a_model_elsewhere(elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THEIR_KEY", "sk-theirs")
    Server.answer = (200, sse.encode({"choices": [1]}) + sse.encode({"choices": [2]}) + sse.DONE)
    assert await ask(elsewhere, {elsewhere: "THEIR_KEY"}) == [{"choices": [1]}, {"choices": [2]}]
    path, headers, body = Server.seen[0]
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == "Bearer sk-theirs"
    assert headers["x-request-id"] == "r1"
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}


async def test_an_encoder_elsewhere_is_asked_for_no_stream(elsewhere: str) -> None:
    made = {"object": "list", "data": [{"index": 0, "embedding": [0.5]}]}
    Server.answer = (200, json.dumps(made, indent=1).encode())
    assert await ask(elsewhere, endpoint="embeddings") == [made]
    path, _, body = Server.seen[0]
    assert (path, body) == ("/v1/embeddings", {"model": "gpt", "input": "a"})
    for answer in (b"<html>", b"[]"):
        Server.answer = (200, answer)
        with pytest.raises(ApiError) as failed:
            await ask(elsewhere, endpoint="embeddings")
        assert failed.value.status == 502


async def test_our_own_key_never_goes_elsewhere(elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-ours")
    Server.answer = (200, sse.DONE)
    await ask(elsewhere)
    assert "authorization" not in Server.seen[0][1]


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [
        ((400, b'{"error": {"message": "Bad n.", "param": "n"}}'), 400, "Bad n."),
        ((400, b'{"error": {"message": "Bad n.", "param": 1, "code": 400}}'), 400, "Bad n."),
        ((404, b"<html>"), 404, "does not take"),
        ((401, b'{"error": {"message": "sk-theirs is wrong"}}'), 502, "failed"),
        ((429, b""), 503, "overloaded"),
        ((500, b"Traceback"), 502, "failed"),
        ((200, b'data: {"error": {"message": "inside"}}\n\n'), 502, "failed"),
        ((200, b'event: error\ndata: {"error": {"message": "inside"}}\n\n'), 502, "failed"),
    ],
)
async def test_failures_elsewhere(
    elsewhere: str, answer: tuple[int, bytes], status: int, message: str
) -> None:
    Server.answer = answer
    with pytest.raises(ApiError) as failed:
        await ask(elsewhere)
    assert failed.value.status == status
    assert message in failed.value.message
    # Records and metrics take nothing else.
    assert all(isinstance(said, str | None) for said in (failed.value.code, failed.value.param))
    assert "sk-theirs" not in failed.value.message


async def test_nobody_there() -> None:
    with pytest.raises(ApiError) as failed:
        await ask("http://127.0.0.1:9/v1")
    assert failed.value.status == 502


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (ActorDiedError(), "replica_failed"),
        (RayServeException("inside"), "replica_failed"),
        (BackPressureError(1, 1), "overloaded"),
    ],
)
async def test_a_replica_that_dies_is_503(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, code: str
) -> None:
    class Handle:
        def options(self, **_: Any) -> Handle:
            return self

        def remote(self, _: Any) -> Handle:
            return self

        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield sse.encode({"choices": [1]})
            raise raised

        def cancel(self) -> None:
            pass

    async def handle(*_: Any) -> Handle:
        return Handle()

    monkeypatch.setattr(Upstreams, "_handle", handle)
    request = UpstreamRequest(
        request_id="r1", endpoint="chat", body={}, principal=Principal(key_id="k", team="default")
    )
    target = Target(application="app", deployment="model", model="m")
    source = Upstreams(600.0, {}).chunks(target, request)
    assert await anext(source) == [{"choices": [1]}]
    with pytest.raises(ApiError) as failed:
        await anext(source)
    assert (failed.value.status, failed.value.code, failed.value.retry_after_s) == (503, code, 1)
    assert "inside" not in failed.value.message


async def test_a_server_elsewhere_is_asked_by_all_requests_at_once() -> None:
    """Places are the gateway's to give out: no pool of connections may stand before a model as well."""
    together, everybody, here = 120, asyncio.Event(), 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal here
        await reader.readuntil(b"\r\n\r\n")
        here += 1
        if here == together:
            everybody.set()
        await everybody.wait()
        writer.write(
            b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + sse.encode({"choices": [1]}) + sse.DONE
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    target = Target(base_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", model="gpt")
    request = UpstreamRequest(
        request_id="r",
        endpoint="chat",
        body={"model": "gpt", "messages": []},
        principal=Principal(key_id="k", team="default"),
    )
    upstreams = Upstreams(600.0, {})

    async def one() -> list[Any]:
        return [chunks async for chunks in upstreams.chunks(target, request)]

    try:
        assert await asyncio.gather(*(one() for _ in range(together))) == [[[{"choices": [1]}]]] * together
    finally:
        everybody.set()
        await upstreams.close()
        server.close()
