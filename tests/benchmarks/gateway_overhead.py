"""What the gateway adds to an empty pass-through on the same Serve, and how it stands beside LiteLLM's proxy.

    python -m tests.benchmarks.gateway_overhead [--requests 10000] [--litellm VENV] [--haproxy] [--quick]

The pass-through is a FastAPI deployment that hands a body on to the model's handle and the answer back: no
key, no limit, no look at either. Both stand before the same paced engine, behind the same Serve proxy, or
with ``--haproxy`` behind the HAProxy that Ray brings (``RAY_SERVE_ENABLE_HA_PROXY=1``).

- ``p50_ms``, ``p99_ms``: of the gateway less that of the pass-through, at ``--rate`` requests a second, in
  turns of 250. The gateway has a key with limits and its usual observers, and a policy that only counts the
  prompt's characters: guards have a benchmark of their own. The table has the default policy too.
- ``ttft_ms_over_empty``: median time to a stream's first word, less that through the pass-through; with the
  same policy, which holds nothing. The table has the default one too, which holds the word that it is at.
- ``rps_per_core_over_litellm``: requests a CPU second, gateway and proxy together, over that of LiteLLM's
  proxy, of rounds in turn; both in front of the same OpenAI-compatible server, both with a key. LiteLLM has
  the master key only: its limits need a database.
- ``ready_s_over_empty``, ``rss_mb_over_empty``: of the gateway's deployment, from ``serve.run`` to its first
  healthy replica, and what is resident after the requests, less that of the pass-through.
"""

# No postponed annotations here: FastAPI reads them.

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from cluster.contracts import Route, Target
from cluster.settings import load_settings
from tests.benchmarks.load import (
    KEY,
    Door,
    cpu_seconds,
    paced_server,
    processes,
    program,
    route,
    start_gateway,
    stream,
)
from tests.benchmarks.local import platform
from tests.ports import free_ports

_TURN = 250
_TEXT = "Please tell me what is written about the harbour, and who has built its long grey wall. " * 3
_ASK: dict[str, Any] = {"messages": [{"role": "user", "content": _TEXT}], "max_tokens": 4}
_LITELLM = "litellm[proxy]>=1.100,!=1.82.7,!=1.82.8"


def passthrough() -> Any:
    """The deployment that everything is compared with."""
    from fastapi import FastAPI
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse

    app = FastAPI()

    @serve.deployment(name="empty", max_ongoing_requests=2048, ray_actor_options={"num_cpus": 0.1})
    @serve.ingress(app)
    class Empty:
        def __init__(self) -> None:
            self._model: Any = None

        @app.post("/v1/chat/completions")
        async def chat(self, request: Request) -> Response:
            body = await request.json()
            if self._model is None:
                handle = await asyncio.to_thread(serve.get_deployment_handle, "model", "paced")
                self._model = handle.options(stream=True, method_name="stream")
            answer = self._model.remote({"request_id": "r", "endpoint": "chat", "body": body})
            if body.get("stream"):
                return StreamingResponse(answer, media_type="text/event-stream")
            parts = b"".join([part async for part in answer]).split(b"\n\n")
            chunks = [json.loads(part[6:]) for part in parts if part and part != b"data: [DONE]"]
            deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
            message = {"role": "assistant", "content": "".join(delta.get("content", "") for delta in deltas)}
            return JSONResponse(chunks[0] | {"choices": [{"index": 0, "message": message}]})

    return Empty.bind()


async def at_rate(session: Any, door: Door, count: int, rate: float) -> list[float]:
    """So many whole answers, begun at that rate whatever becomes of them; seconds of each."""

    async def one(number: int) -> float:
        await asyncio.sleep(number / rate)
        start = time.perf_counter()
        headers = {"authorization": f"Bearer {door.key}"}
        body = _ASK | {"model": door.model}
        async with session.post(f"{door.url}/chat/completions", json=body, headers=headers) as answer:
            text = await answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{answer.status}: {text[:300]!r}")
        return time.perf_counter() - start

    return list(await asyncio.gather(*map(one, range(count))))


async def latencies(doors: dict[str, Door], requests: int, rate: float) -> dict[str, tuple[float, float]]:
    """Median and 99th percentile of each, in milliseconds."""
    import aiohttp

    seconds: dict[str, list[float]] = {name: [] for name in doors}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        for door in doors.values():
            await at_rate(session, door, 50, rate)
        for _ in range(max(1, requests // _TURN)):
            for name, door in doors.items():
                seconds[name] += await at_rate(session, door, min(_TURN, requests), rate)
    return {name: (1e3 * statistics.median(s), 1e3 * _percentile(s, 0.99)) for name, s in seconds.items()}


async def first_words(doors: dict[str, Door], rounds: int) -> dict[str, float]:
    """Median milliseconds to the first word of a stream, one at a time and in turn."""
    import aiohttp

    firsts: dict[str, list[float]] = {name: [] for name in doors}
    async with aiohttp.ClientSession() as session:
        for _ in range(rounds):
            for name, door in doors.items():
                firsts[name].append((await stream(session, door, _ASK | {"max_tokens": 8})).first_s)
    return {name: 1e3 * statistics.median(values) for name, values in firsts.items()}


async def per_core(door: Door, metered: list[Any], seconds: float, clients: int = 16) -> tuple[float, float]:
    """Requests a CPU second of the metered processes, and requests a second, of clients that never pause."""
    import aiohttp

    done, until = 0, time.perf_counter() + seconds

    async def client(session: Any) -> None:
        nonlocal done
        while time.perf_counter() < until:
            await at_rate(session, door, 1, 1.0)
            done += 1

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await at_rate(session, door, 20, 50)
        before, until = cpu_seconds(metered), time.perf_counter() + seconds
        await asyncio.gather(*(client(session) for _ in range(clients)))
        return done / (cpu_seconds(metered) - before), done / seconds


@contextmanager
def litellm(environment: Path, upstream: Door) -> Iterator[tuple[Door, list[Any]]]:
    """LiteLLM's proxy before that server; its door and its processes. The environment is made if need be."""
    python = environment / "bin" / "python"
    if not python.exists():
        print(f"making an environment for LiteLLM in {environment}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", _LITELLM], check=True)
    target = {"model": "openai/paced", "api_base": upstream.url, "api_key": "none"}
    config = {
        "model_list": [{"model_name": "paced", "litellm_params": target}],
        "general_settings": {"master_key": KEY},
        "litellm_settings": {"telemetry": False},
    }
    port = free_ports()
    with tempfile.TemporaryDirectory(prefix="litellm-") as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        env = clean | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "HOME": folder}
        words = [str(environment / "bin" / "litellm"), "--config", str(file), "--host", "127.0.0.1"]
        words += ["--port", str(port), "--num_workers", "1", "--telemetry", "False"]
        with program(*words, url=f"http://127.0.0.1:{port}/health/liveliness", env=env) as process:
            door = Door(f"http://127.0.0.1:{port}/v1", "paced")
            yield door, [process, *process.children(recursive=True)]


def ready_seconds(rounds: int) -> dict[str, float]:
    """Median seconds from ``serve.run`` to the deployment's first healthy replica, in turn."""
    from ray import serve

    from deployments.gateway import GatewayArgs, build

    seconds: dict[str, list[float]] = {"gateway": [], "empty": []}
    for _ in range(rounds):
        for name, make in (("gateway", lambda: build(GatewayArgs())), ("empty", passthrough)):
            start = time.perf_counter()
            # The whole application, the gateway's with the batches' worker, may take longer than its door.
            whole = threading.Thread(
                target=serve.run, args=(make(),), kwargs={"name": f"{name}-2", "route_prefix": f"/{name}-2"}
            )
            whole.start()
            while not _healthy(f"{name}-2", name):
                if not whole.is_alive() and not _healthy(f"{name}-2", name):
                    raise SystemExit(f"{name} does not start: no figure.")
                time.sleep(0.05)
            seconds[name].append(time.perf_counter() - start)
            whole.join()
            serve.delete(f"{name}-2")
    return {name: statistics.median(values) for name, values in seconds.items()}


def _healthy(application: str, deployment: str) -> bool:
    from ray import serve

    found = serve.status().applications.get(application)
    state = found.deployments.get(deployment) if found else None
    return state is not None and state.status == "HEALTHY"


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


def _rss_mb(title: str) -> float:
    return sum(process.memory_info().rss for process in processes(title)) / 1e6


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Everything, on a Serve that runs the three applications."""
    from ray import serve

    from tests.paced_engine import PacedArgs, build
    from validation.guards import parse_policy

    counting = {"name": "length", "kind": "length", "on": "input", "max_characters": 10**6}
    light = parse_policy({"name": "light", "version": 1, "guards": [counting]}).document()
    with paced_server(0.0) as elsewhere:
        there = Target(base_url=elsewhere.url, model="paced")
        routes = [route("guarded", "paced"), route("light", "paced", "light")]
        routes.append(Route(**routes[1].model_dump() | {"model": "elsewhere", "targets": [there]}))
        url = start_gateway(routes, [light])
        serve.run(build(PacedArgs(pace_ms=5.0)), name="paced", route_prefix=None)
        serve.run(passthrough(), name="empty", route_prefix="/empty")
        doors = {
            "empty": Door(url.replace("/v1", "/empty/v1"), "paced"),
            "light": Door(url, "light"),
            "default policy": Door(url, "guarded"),
        }
        times = asyncio.run(latencies(doors, options.requests, options.rate))
        firsts = asyncio.run(first_words(doors, options.streams))
        rss = _rss_mb("ServeReplica:gateway:gateway") - _rss_mb("ServeReplica:empty:")
        ready = ready_seconds(options.rounds)
        serve.delete("empty")
        with litellm(options.litellm, elsewhere) as (door, metered):
            rates = []
            for _ in range(options.rounds):
                # HAProxy is another process after each change of what is deployed.
                own = processes("ServeReplica:gateway:", "ProxyActor", "HAProxyManager", "/haproxy")
                ours = asyncio.run(per_core(Door(url, "elsewhere"), own, options.seconds))
                rates.append((ours, asyncio.run(per_core(door, metered, options.seconds))))
    ratio = statistics.median(ours[0] / theirs[0] for ours, theirs in rates)
    print(f"\n{options.requests} requests each at {options.rate:g} a second; {options.streams} streams each")
    print(f"{'through':<16}{'p50 ms':>10}{'p99 ms':>10}{'first word ms':>15}")
    for name, (median, high) in times.items():
        print(f"{name:<16}{median:>10.1f}{high:>10.1f}{firsts[name]:>15.1f}")
    print(f"ready: gateway {ready['gateway']:.1f} s, empty {ready['empty']:.1f} s")
    print(f"\n{'requests a':<16}{'CPU second':>12}{'second':>10}")
    for number, name in enumerate(("gateway", "LiteLLM")):
        core, rate = (statistics.median(of[number][which] for of in rates) for which in (0, 1))
        print(f"{name:<16}{core:>12.0f}{rate:>10.0f}")
    return {
        "p50_ms": times["light"][0] - times["empty"][0],
        "p99_ms": times["light"][1] - times["empty"][1],
        "ttft_ms_over_empty": firsts["light"] - firsts["empty"],
        "rps_per_core_over_litellm": ratio,
        "ready_s_over_empty": ready["gateway"] - ready["empty"],
        "rss_mb_over_empty": rss,
    }


def main() -> None:
    """Measure, print the tables, end with the JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = load_settings().state_dir / "benchmarks" / "litellm"
    parser.add_argument("--requests", type=int, default=10_000, help="To each of the three.")
    parser.add_argument("--rate", type=float, default=50.0, help="Requests a second.")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=8.0, help="Of full load, to each proxy, a round.")
    parser.add_argument("--rounds", type=int, default=3, help="Starts, and full loads, of each.")
    parser.add_argument("--litellm", type=Path, default=usual, help="LiteLLM's environment, made if absent.")
    parser.add_argument("--haproxy", action="store_true", help="HAProxy in place of Serve's proxy.")
    parser.add_argument("--quick", action="store_true", help="Fewer of everything.")
    options = parser.parse_args()
    if options.quick:
        options.requests, options.streams, options.seconds, options.rounds = 500, 40, 5.0, 1
    with platform(num_cpus=4, haproxy=options.haproxy):
        from ray import serve

        try:
            figures = measure(options)
        finally:
            serve.shutdown()
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
