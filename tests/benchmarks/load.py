"""What the gateway's benchmarks share: a gateway on Serve, timed streams, metered processes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx
import psutil

from cluster.contracts import ApiKey, KeyLimits, PolicyDocument, Route, Target
from tests.ports import free_ports

if TYPE_CHECKING:
    import aiohttp

KEY = "sk-benchmark"
#: High enough never to be met; so that there is something to count.
LIMITS = KeyLimits(requests_per_minute=10**8, tokens_per_minute=10**12, concurrent_requests=10**5)


@dataclass(frozen=True)
class Door:
    """An OpenAI-compatible URL and the name that its model has there."""

    url: str
    model: str
    key: str = KEY


def start_gateway(routes: Sequence[Route], policies: Sequence[PolicyDocument] = (), **args: Any) -> str:
    """Publish one key with limits, and these routes; deploy the gateway. Its URL, /v1 included."""
    from ray import serve

    from cluster import snapshots
    from deployments.gateway import GatewayArgs, build

    key = ApiKey(id="bench", sha256=hashlib.sha256(KEY.encode()).hexdigest(), team="default", limits=LIMITS)
    change = {"keys": [key], "routes": list(routes), "policies": list(policies)}
    snapshots.publish(lambda now: now.model_copy(update=change), by="benchmark")
    port = free_ports()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(GatewayArgs(max_concurrent_requests=2048, **args)), name="gateway", route_prefix="/")
    return f"http://127.0.0.1:{port}/v1"


def route(model: str, application: str, policy: str = "default", engine: str | None = None) -> Route:
    """A route to an application's deployment named ``model``."""
    target = Target(application=application, deployment="model", model=engine or model)
    return Route(model=model, targets=[target], policy=policy, created_at=datetime.now(UTC))


@contextmanager
def program(
    *words: str, url: str, env: dict[str, str] | None = None, wait_s: float = 300
) -> Iterator[psutil.Process]:
    """A server of its own process, from when it answers at ``url`` to the end of the block."""
    started = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    try:
        until = time.monotonic() + wait_s
        while True:
            if started.poll() is not None:
                raise SystemExit(f"{' '.join(words[:4])} ended with {started.returncode} before it answered.")
            try:
                if httpx.get(url, timeout=5).status_code < 500:
                    break
            except httpx.HTTPError:
                pass
            if time.monotonic() > until:
                raise SystemExit(f"{' '.join(words[:4])} did not answer within {wait_s:g} s.")
            time.sleep(0.2)
        yield psutil.Process(started.pid)
    finally:
        started.terminate()
        try:
            started.wait(30)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


@contextmanager
def paced_server(pace_ms: float) -> Iterator[Door]:
    """The paced engine's own HTTP server."""
    port = free_ports()
    words = (sys.executable, "-m", "tests.paced_engine", "--port", str(port), "--pace-ms", str(pace_ms))
    url = f"http://127.0.0.1:{port}/v1"
    with program(*words, url=f"{url}/models"):
        yield Door(url, "paced")


@dataclass(frozen=True)
class Streamed:
    """One stream: seconds to its first word and to its end, and the tokens that its usage tells."""

    first_s: float
    seconds: float
    tokens: int


async def stream(session: aiohttp.ClientSession, door: Door, body: dict[str, Any]) -> Streamed:
    """One streamed chat, read as it comes and looked at when it is over. Raises RuntimeError if it failed."""
    wanted = body | {"model": door.model, "stream": True, "stream_options": {"include_usage": True}}
    start, first, parts = time.perf_counter(), 0.0, []
    headers = {"authorization": f"Bearer {door.key}"}
    async with session.post(f"{door.url}/chat/completions", json=wanted, headers=headers) as answer:
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {(await answer.text())[:300]}")
        async for part in answer.content.iter_any():
            if not first and b'"content":"' in part.replace(b'"content":""', b"").replace(b": ", b":"):
                first = time.perf_counter() - start
            parts.append(part)
    seconds = time.perf_counter() - start
    events = [event[6:] for event in b"".join(parts).split(b"\n\n") if event.startswith(b"data: ")]
    if not events or events[-1] != b"[DONE]":
        raise RuntimeError(f"The stream broke off: {parts[-1:]!r}")
    usage = json.loads(events[-2])["usage"]
    return Streamed(first, seconds, usage["completion_tokens"])


async def streams(
    door: Door, count: int, body: dict[str, Any], spread_s: float = 0.0
) -> tuple[float, list[Streamed]]:
    """So many streams at once, begun ``spread_s`` seconds apart in all; tokens a second, and each of them."""
    import aiohttp

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(600)) as session:

        async def one(number: int) -> Streamed:
            await asyncio.sleep(number * spread_s / count)
            return await stream(session, door, body)

        start = time.perf_counter()
        results = await asyncio.gather(*(one(number) for number in range(count)))
        return sum(result.tokens for result in results) / (time.perf_counter() - start), results


def processes(*titles: str) -> list[psutil.Process]:
    """Ray's processes of this machine's newest cluster, by a part of their title."""
    mine = psutil.Process().children(recursive=True)
    return [p for p in mine if any(title in " ".join(p.cmdline()) for title in titles)]


def cpu_seconds(measured: Iterable[psutil.Process]) -> float:
    """CPU seconds of these processes so far, in all."""
    return sum(sum(process.cpu_times()[:2]) for process in measured)
