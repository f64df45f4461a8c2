"""A proxy between jobs and the real S3 server, which fails where a test wants it.

One request a connection, relayed byte for byte: the Host header stays as the client signed it, so signatures
hold. Point AWS_ENDPOINT_URL at :attr:`FaultProxy.endpoint`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Self
from urllib.parse import unquote, urlsplit

#: When a trap springs: nothing of the request was forwarded; half of its body was; its answer came and is
#: kept from the client.
Stage = Literal["before", "midway", "after"]

_BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Slow down.</Message></Error>"
_DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>"
#: Between client and proxy only.
_HOP = ("connection:", "expect:", "keep-alive:")


@dataclass(frozen=True)
class Request:
    """One request as the client sent it."""

    method: str
    key: str
    query: str
    at: float
    head: bytes = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def writes(self) -> bool:
        """Whether it brings data of an object: a put, or a part of an upload, but no empty "directory"."""
        return self.method == "PUT" and not self.key.endswith("/") and self.key != ""


@dataclass
class Trap:
    """Acts once, at the ``nth`` request that fits."""

    fits: Callable[[Request], bool]
    stage: Stage
    act: Callable[[], None]
    nth: int = 1
    sprung: Request | None = None

    def springs(self, request: Request) -> bool:
        if self.sprung is not None or not self.fits(request):
            return False
        self.nth -= 1
        if self.nth == 0:
            self.sprung = request
        return self.nth == 0


class FaultProxy:
    """Runs in a thread of its own between ``with`` and its end.

    :param upstream: the S3 server, ``http://host:port``.
    :param port: a free port of this machine.
    """

    def __init__(self, upstream: str, port: int) -> None:
        parts = urlsplit(upstream)
        self._upstream, self._port = (parts.hostname, parts.port), port
        self.endpoint = f"http://127.0.0.1:{port}"
        self.requests: list[Request] = []
        #: How many requests were answered with 503.
        self.slowed = 0
        self._traps: list[Trap] = []
        self._busy_until = 0.0
        self._busy_for = 0
        self._denies: Callable[[Request], bool] = lambda request: False
        self._clients: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(timeout=300)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(timeout=300)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=300)

    # Faults

    def trap(self, trap: Trap) -> Trap:
        """Set a trap; it springs once, and the client's connection breaks then."""
        self._traps.append(trap)
        return trap

    def go_away(self, seconds: float) -> None:
        """Refuse connections for a while, from now, and break those that are open."""
        asyncio.run_coroutine_threadsafe(self._away(seconds), self._loop)

    def be_busy(self, seconds: float) -> None:
        """Answer 503 SlowDown to everything for a while, from now."""
        self._busy_until = time.monotonic() + seconds

    def slow_down(self, requests: int) -> None:
        """Answer 503 SlowDown to the next so many requests."""
        self._busy_for = requests

    def deny(self, fits: Callable[[Request], bool]) -> None:
        """Answer 403 AccessDenied to the requests that fit."""
        self._denies = fits

    # Inside

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, limit=2**20)

    async def _close(self) -> None:
        self._server.close()
        for client in list(self._clients):
            client.transport.abort()

    async def _end(self) -> None:
        await self._close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()  # An outage that would end later.

    async def _away(self, seconds: float) -> None:
        await self._close()
        await asyncio.sleep(seconds)
        await self._listen()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        try:
            await self._answer(await _read(reader, writer), writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, _Sprung):
            writer.transport.abort()
        finally:
            self._clients.discard(writer)
            writer.close()

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        self.requests.append(request)
        if self._busy_for or time.monotonic() < self._busy_until:
            self._busy_for = max(0, self._busy_for - 1)
            self.slowed += 1
            writer.write(_refusal(request, "503 Slow Down", _BUSY))
            return
        if self._denies(request):
            writer.write(_refusal(request, "403 Forbidden", _DENIED))
            return
        trap = next((trap for trap in self._traps if trap.springs(request)), None)
        if trap is not None and trap.stage == "before":
            trap.act()
            raise _Sprung
        up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        try:
            if trap is not None and trap.stage == "midway":
                up_writer.write(request.head + request.body[: len(request.body) // 2])
                await up_writer.drain()
                trap.act()
                raise _Sprung
            up_writer.write(request.head + request.body)
            answer = await up_reader.read()  # To its end: the server was told to close.
            if trap is not None:
                trap.act()
                raise _Sprung
            writer.write(answer)
        finally:
            up_writer.transport.abort()


class _Sprung(Exception):
    """The client gets no answer."""


def _refusal(request: Request, status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + (b"" if request.method == "HEAD" else body)


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
    """A whole request; its head is as it goes on to the server."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip("\r\n").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "expect" in headers:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = await _chunks(reader)
    kept = [line for line in lines if not line.lower().startswith(_HOP)]
    method, target, _ = first.split(" ")
    path = urlsplit(target)
    return Request(
        method=method,
        key=unquote(path.path).lstrip("/").partition("/")[2],
        query=path.query,
        at=time.monotonic(),
        head="\r\n".join([first, *kept, "Connection: close", "", ""]).encode("latin-1"),
        body=body,
    )


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    """A chunked body with its framing."""
    whole = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        whole += line + await reader.readexactly(size + 2)
        if size == 0:
            return whole
