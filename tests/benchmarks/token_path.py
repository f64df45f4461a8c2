"""How tokens best travel from a model replica through the gateway to the client.

    python -m tests.benchmarks.token_path [--seconds 6] [--streams 1 8 32] [--json-only]

A stub replica emits server-sent events at a set pace, as an engine does: every 25 ms a stream (a small
model on a CPU), every 5 ms (an accelerator). They cross a Serve handle to a
gateway replica, Serve's HTTP proxy, and end in an HTTP client. Compared are: one item a token against
gathering in the replica for 5 to 50 ms; Ray's actor calls against Serve's gRPC for the handle; output
guards in the gateway against in the replica. For each: tokens/s that arrived, CPU milliseconds a
1,000 tokens of every server process together (replica, gateway, proxy) and of the replica alone, the time
to first token at the client, and the longest silence between tokens (95th percentile).

It asserts nothing; the last line is one JSON object.
"""

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any

import psutil

from deployments.gather import gather

WORDS = ["The ", "answer ", "is ", "written ", "in ", "plain ", "words", ", ", "and ", "no ", "more", ". "]


def _event(number: int) -> bytes:
    delta = {"index": 0, "delta": {"content": WORDS[number % len(WORDS)]}, "finish_reason": None}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [delta],
    }
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


class _Guarded:
    """Parses events, feeds their text to the default policy's stream, writes events again."""

    def __init__(self) -> None:
        from validation.guards import GuardContext, GuardEngine, default_policy

        self._stream = GuardEngine(default_policy()).stream(GuardContext())

    async def item(self, item: bytes) -> bytes:
        out = []
        for event in item.split(b"\n\n"):
            if not event:
                continue
            body = json.loads(event[6:])
            delta = body["choices"][0]["delta"]
            delta["content"] = await self._stream.feed(delta["content"])
            if delta["content"]:
                out.append(b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n")
        return b"".join(out)

    async def end(self) -> bytes:
        return b"data: " + json.dumps({"tail": await self._stream.flush()}).encode() + b"\n\n"


async def _guarded(source: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    guard = _Guarded()
    async for item in source:
        if changed := await guard.item(item):
            yield changed
    yield await guard.end()


def _applications() -> tuple[Any, Any]:
    from fastapi import FastAPI
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse

    @serve.deployment(max_ongoing_requests=200, ray_actor_options={"num_cpus": 0.1})
    class Replica:
        async def pid(self) -> int:
            return os.getpid()

        async def stream(self, request: dict[str, Any]) -> AsyncIterator[bytes]:
            async def engine() -> AsyncIterator[bytes]:
                start = time.perf_counter()
                for number in range(request["tokens"]):
                    yield _event(number)
                    due = start + (number + 1) * request["pace_ms"] / 1000
                    await asyncio.sleep(max(0.0, due - time.perf_counter()))

            source: AsyncIterator[bytes] = engine()
            if request["guard"] == "replica":
                source = _guarded(source)
            async for item in gather(source, lambda: request["gather_ms"] / 1000):
                yield item

    app = FastAPI()

    @serve.deployment(max_ongoing_requests=200, ray_actor_options={"num_cpus": 0.1})
    @serve.ingress(app)
    class Gateway:
        def __init__(self, replica: Any) -> None:
            self.replica = replica

        @app.get("/pids")
        async def pids(self) -> Response:
            return JSONResponse([os.getpid(), await self.replica.pid.remote()])

        @app.post("/stream")
        async def stream(self, request: Request) -> Response:
            body = await request.json()
            options = {"stream": True, "method_name": "stream"}
            if body["transport"] == "grpc":
                options |= {"_by_reference": False}
            source: AsyncIterator[bytes] = self.replica.options(**options).remote(body)
            if body["guard"] == "gateway":
                source = _guarded(source)
            return StreamingResponse(source, media_type="text/event-stream")

    return Gateway, Replica


async def _client(session: Any, url: str, body: dict[str, Any]) -> tuple[int, float, list[float]]:
    start = time.perf_counter()
    first, last, tokens, gaps = 0.0, start, 0, []
    async with session.post(f"{url}/stream", json=body) as response:
        response.raise_for_status()
        async for chunk, _ in response.content.iter_chunks():
            now = time.perf_counter()
            first = first or now - start
            gaps.append(now - last)
            last = now
            tokens += chunk.count(b"data: ")
    return tokens, first, gaps[1:]


def _cpu(pids: list[int]) -> list[float]:
    return [sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids]


def _proxy_pid() -> int:
    for process in psutil.process_iter(["cmdline"]):
        if "ray::ProxyActor" in " ".join(process.info["cmdline"] or []):
            return process.pid
    raise RuntimeError("no Serve proxy runs")


async def _measure(
    url: str, pids: list[int], streams: int, seconds: float, body: dict[str, Any]
) -> dict[str, Any]:
    import aiohttp

    pace_s = body["pace_ms"] / 1000
    tokens = int(seconds / pace_s)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
        await _client(session, url, body | {"tokens": 5})
        before, start = _cpu(pids), time.perf_counter()

        async def one(number: int) -> tuple[int, float, list[float]]:
            await asyncio.sleep(number * pace_s / streams)
            return await _client(session, url, body | {"tokens": tokens})

        results = await asyncio.gather(*(one(number) for number in range(streams)))
        elapsed = time.perf_counter() - start
        used = [after - was for after, was in zip(_cpu(pids), before, strict=True)]
    sent = streams * tokens
    gaps = sorted(gap for result in results for gap in result[2])
    return {
        "streams": streams,
        "tokens_per_s": round(sent / elapsed, 1),
        "offered_per_s": round(streams / pace_s, 1),
        "cpu_ms_per_1000": round(1e6 * sum(used) / sent, 1),
        "replica_cpu_ms_per_1000": round(1e6 * used[1] / sent, 1),
        "ttft_ms": round(1e3 * statistics.median(result[1] for result in results), 1),
        "gap_p95_ms": round(1e3 * gaps[int(0.95 * (len(gaps) - 1))], 1),
    }


def _free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


VARIANTS = [
    *({"pace_ms": 25, "gather_ms": ms, "guard": "none", "transport": "actor"} for ms in (0, 20, 50)),
    *({"pace_ms": 5, "gather_ms": ms, "guard": "none", "transport": "actor"} for ms in (0, 5, 10, 20, 50)),
    *({"pace_ms": 5, "gather_ms": ms, "guard": "none", "transport": "grpc"} for ms in (0, 20)),
    *(
        {"pace_ms": 5, "gather_ms": 20, "guard": where, "transport": "actor"}
        for where in ("gateway", "replica")
    ),
]


def main() -> None:
    """Run every variant at every number of streams and print a table and one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="Length of each stream.")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--guards", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()

    import httpx
    import ray
    from ray import serve

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    results = []
    try:
        port = _free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        gateway, replica = _applications()
        serve.run(gateway.bind(replica.bind()))
        url = f"http://127.0.0.1:{port}"
        pids = [*httpx.get(f"{url}/pids", timeout=60).json(), _proxy_pid()]
        for variant in VARIANTS:
            if variant["guard"] != "none" and not arguments.guards:
                continue
            for streams in arguments.streams:
                result = variant | asyncio.run(_measure(url, pids, streams, arguments.seconds, variant))
                print("  ".join(f"{key}={value}" for key, value in result.items()), flush=True)
                results.append(result)
    finally:
        serve.shutdown()
        ray.shutdown()
    print(json.dumps({"results": results}))


if __name__ == "__main__":
    main()
