"""Tokens a second through the whole gateway, beside the same engine's own OpenAI server.

    python -m tests.benchmarks.gateway_throughput [--quick] [--only stub|vllm] [--rounds 7]

The gateway runs with a key that has limits and with the default guard policy; a token goes from the model
replica over Serve's handle to the gateway, through the output guards, and by Serve's proxy to the client. The
baseline is the engine's own server, spoken to directly. Rounds are interleaved, and which of the two goes
first alternates; the figure is the ratio of the medians. Beside it stand the times to the first word, and the
CPU milliseconds a 1,000 tokens of each process on the way.

Two engines: a stub that emits a token every ``--pace-ms`` milliseconds on each stream (50 tokens a second
and stream as it stands, as a model on a busy accelerator does), which shows what the way costs when the
engine does not compete for the processor; and real vLLM on a small model, on the same cores as all else.

The last line is JSON: ``over_stub`` and ``over_vllm``, by the number of streams.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.load import (
    Door,
    cpu_seconds,
    paced_server,
    processes,
    program,
    route,
    start_gateway,
    streams,
)
from tests.benchmarks.local import platform
from tests.ports import free_ports

ENGINE = {"max_model_len": 1024, "dtype": "bfloat16", "enforce_eager": True, "max_num_seqs": 32}
#: The stub's streams begin evenly over this time. In a burst all wait for the last one's way through Serve,
#: which the time to the first word tells, and the rate only for short streams.
_SPREAD_S = 0.5
_ASK = {"messages": [{"role": "user", "content": "Write a long story about the sea and those who sail it."}]}


def compare(
    direct: Door, gateway: Door, body: dict[str, Any], options: argparse.Namespace, spread_s: float
) -> dict[str, float]:
    """Interleaved rounds at every number of streams; prints a row for each, returns the ratios."""
    ratios = {}
    metered = [processes(title) for title in ("ProxyActor", "ServeReplica:gateway", "ServeReplica:paced")]
    for count in options.streams:
        rates: dict[str, list[float]] = {"direct": [], "gateway": []}
        firsts: dict[str, list[float]] = {"direct": [], "gateway": []}
        cpu, tokens = [0.0] * len(metered), 0
        for number in range(options.rounds):
            for name in ("direct", "gateway") if number % 2 else ("gateway", "direct"):
                before = [cpu_seconds(group) for group in metered]
                door = direct if name == "direct" else gateway
                rate, results = asyncio.run(streams(door, count, body, spread_s))
                if name == "gateway":
                    used = [cpu_seconds(group) - was for group, was in zip(metered, before, strict=True)]
                    cpu = [sum(pair) for pair in zip(cpu, used, strict=True)]
                    tokens += sum(result.tokens for result in results)
                rates[name].append(rate)
                firsts[name] += [result.first_s for result in results]
        medians = {name: statistics.median(values) for name, values in rates.items()}
        ratios[str(count)] = medians["gateway"] / medians["direct"]
        first = {name: 1000 * statistics.median(values) for name, values in firsts.items()}
        each = "".join(f"{1e6 * seconds / tokens:>9.0f}" for seconds in cpu)
        print(
            f"{count:>8}{medians['direct']:>12.1f}{medians['gateway']:>12.1f}{ratios[str(count)]:>8.3f}"
            f"{first['direct']:>11.0f}{first['gateway']:>12.0f}{each}",
            flush=True,
        )
    return ratios


def _head(what: str) -> None:
    print(f"\n{what}")
    print(
        f"{'streams':>8}{'direct t/s':>12}{'gateway t/s':>12}{'ratio':>8}{'first ms':>11}{'gateway ms':>12}"
        f"{'proxy':>9}{'gateway':>9}{'replica':>9}",
        flush=True,
    )


def over_stub(gateway_url: str, options: argparse.Namespace) -> dict[str, float]:
    """The stub behind both doors."""
    pace_ms = options.pace_ms
    body = _ASK | {"max_tokens": int(1000 * options.seconds / pace_ms)}
    _head(f"paced stub engine, a token every {pace_ms:g} ms and stream; medians of {options.rounds}")
    with paced_server(pace_ms) as direct:
        gateway = Door(gateway_url, "paced")
        asyncio.run(streams(gateway, 2, body | {"max_tokens": 8}))
        return compare(direct, gateway, body, options, _SPREAD_S)


def over_vllm(gateway_url: str, weights: Path, options: argparse.Namespace) -> dict[str, float]:
    """Real vLLM behind both doors, an engine each; the one that nobody asks idles."""
    port = free_ports()
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(weights)]
    words += ["--served-model-name", "bench", "--host", "127.0.0.1", "--port", str(port)]
    words += ["--max-model-len", str(ENGINE["max_model_len"]), "--max-num-seqs", str(ENGINE["max_num_seqs"])]
    words += ["--dtype", "bfloat16", "--enforce-eager"]
    direct = Door(f"http://127.0.0.1:{port}/v1", "bench")
    body = _ASK | {"max_tokens": options.tokens, "temperature": 0, "ignore_eos": True}
    with program(*words, url=f"{direct.url}/models", wait_s=600):
        for door in (direct, Door(gateway_url, "bench")):
            asyncio.run(streams(door, 8, body | {"max_tokens": 16}))
        _head(f"vLLM, {options.tokens} tokens a stream, on shared cores; medians of {options.rounds}")
        return compare(direct, Door(gateway_url, "bench"), body, options, 0.0)


def deploy_vllm(source: str) -> Path:
    """The model application; the directory of its weights."""
    from ray import serve

    from cluster.models import ensure_model, local_copy
    from deployments.model import ModelApplicationArgs, build

    model = ensure_model(source)
    llm_config = {
        "model_loading_config": {"model_id": "bench"},
        "accelerator_config": {"kind": "cpu"},
        "engine_kwargs": ENGINE,
        "deployment_config": {
            "num_replicas": 1,
            "max_ongoing_requests": 512,
            "ray_actor_options": {"num_cpus": 0},
        },
    }
    serve.run(
        build(ModelApplicationArgs(model=str(model.ref), llm_config=llm_config)),
        name="bench",
        route_prefix=None,
    )
    return Path(local_copy(model))


def main() -> None:
    """Measure, print the tables, end with the JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("stub", "vllm"), help="One engine, to save time.")
    parser.add_argument("--pace-ms", type=float, default=20.0, help="The stub's milliseconds a token.")
    parser.add_argument("--seconds", type=float, default=6.0, help="Length of the stub's streams.")
    parser.add_argument("--tokens", type=int, default=64, help="Length of vLLM's streams.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--model", default="demo", help="For vLLM: demo, tiny, or any model source.")
    parser.add_argument("--quick", action="store_true", help="Two rounds, a tiny model.")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.model = 2, 2.0, "tiny"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    result: dict[str, dict[str, float]] = {}
    with platform(num_cpus=4), tempfile.TemporaryDirectory(prefix="bench-model-") as folder:
        from ray import serve

        from tests.paced_engine import PacedArgs, build

        try:
            url = start_gateway([route("paced", "paced"), route("bench", "bench")])
            if options.only != "vllm":
                serve.run(build(PacedArgs(pace_ms=options.pace_ms)), name="paced", route_prefix=None)
                result["over_stub"] = over_stub(url, options)
                serve.delete("paced")
            if options.only != "stub":
                source = options.model
                if source == "tiny":
                    from tests.tiny_model import make_tiny_llama

                    source = str(make_tiny_llama(Path(folder) / "tiny"))
                weights = deploy_vllm(source)
                result["over_vllm"] = over_vllm(url, weights, options)
        finally:
            serve.shutdown()
    print(json.dumps({name: {n: round(r, 3) for n, r in ratios.items()} for name, ratios in result.items()}))


if __name__ == "__main__":
    main()
