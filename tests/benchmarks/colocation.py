"""Interactive requests while a batch fills the same engine: their time to the first token, with and without.

    python -m tests.benchmarks.colocation [--model demo|tiny|SOURCE] [--requests 320] [--rate 2] [--quick]

One vLLM behind the gateway. Rounds alternate: short streamed chats at a rate alone, then beside a batch
of ``/v1/batches`` that is at work, after it has stepped back (chats of the first ``--settle`` seconds are not
counted). The batch's tokens a second are taken twice, while nobody chats and while somebody does. Each side's
quantiles are over all rounds. The last line is JSON: ``ttft_p95_with_over_without``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.gateway_throughput import deploy_vllm
from tests.benchmarks.load import KEY, Door, route, start_gateway, stream
from tests.benchmarks.local import platform

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import Batch

_CHAT = {"messages": [{"role": "user", "content": "What is a tide?"}], "max_tokens": 16, "temperature": 0}
#: More than any round answers: the batch is cancelled when the round is over.
_ROWS = 5000


async def chats(door: Door, seconds: float, rate: float) -> list[float]:
    """Seconds to the first token of chats that begin at that rate, whatever becomes of those before."""
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one(number: int) -> float:
            await asyncio.sleep(number / rate)
            return (await stream(session, door, _CHAT)).first_s

        return list(await asyncio.gather(*(one(number) for number in range(round(seconds * rate)))))


def begin(client: OpenAI, tokens: int) -> Batch:
    """A batch that is at work."""
    body = {"model": "bench", "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    lines = [
        {
            "custom_id": str(number),
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": body | {"messages": [{"role": "user", "content": f"Tell me of the number {number}."}]},
        }
        for number in range(_ROWS)
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("rows.jsonl", content), purpose="batch")
    made = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    while answered(client, made) < 1:
        time.sleep(0.2)
    return made


def answered(client: OpenAI, batch: Batch) -> int:
    """How many of its rows are. Raises SystemExit if it is not at work."""
    now = client.batches.retrieve(batch.id)
    if now.status not in ("validating", "in_progress") or (now.request_counts and now.request_counts.failed):
        raise SystemExit(f"The batch is {now.status} with {now.request_counts}: no figure.")
    return now.request_counts.completed if now.request_counts else 0


def end(client: OpenAI, batch: Batch) -> None:
    """Cancel it, and wait until it is over."""
    client.batches.cancel(batch.id)
    while client.batches.retrieve(batch.id).status not in ("cancelled", "completed"):
        time.sleep(0.2)


def measure(url: str, options: argparse.Namespace) -> float:
    """All rounds; prints the table, returns the ratio."""
    from openai import OpenAI

    client, door = OpenAI(base_url=url, api_key=KEY), Door(url, "bench")
    seconds = options.requests / options.rounds / options.rate
    first: dict[str, list[float]] = {"without": [], "with": []}
    rates: dict[str, list[float]] = {"without": [], "with": []}
    asyncio.run(chats(door, options.settle, options.rate))
    for _ in range(options.rounds):
        first["without"] += asyncio.run(chats(door, seconds, options.rate))
        batch = begin(client, options.tokens)
        for name in rates:
            if name == "with":
                asyncio.run(chats(door, options.settle, options.rate))
            before, start = answered(client, batch), time.perf_counter()
            if name == "with":
                first["with"] += asyncio.run(chats(door, seconds, options.rate))
            else:
                time.sleep(options.settle)
            rows = answered(client, batch) - before
            rates[name].append(rows * options.tokens / (time.perf_counter() - start))
        end(client, batch)
    print(f"\n{len(first['with'])} chats each at {options.rate:g} a second, {options.rounds} rounds")
    print(f"{'chats':<16}{'p50 ms':>9}{'p95 ms':>9}")
    for name, values in first.items():
        print(
            f"{name + ' batch':<16}{1e3 * _quantile(values, 0.5):>9.0f}{1e3 * _quantile(values, 0.95):>9.0f}"
        )
    for name, values in rates.items():
        print(f"the batch {name} chats: {sum(values) / len(values):.0f} tokens a second")
    return _quantile(first["with"], 0.95) / _quantile(first["without"], 0.95)


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


def main() -> None:
    """Measure, print the table, end with the JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo", help="demo, tiny, or any model source.")
    parser.add_argument("--requests", type=int, default=320, help="Chats on each side, of all rounds.")
    parser.add_argument("--rate", type=float, default=2.0, help="Chats a second.")
    parser.add_argument("--tokens", type=int, default=32, help="Of each of the batch's answers.")
    parser.add_argument(
        "--settle", type=float, default=10.0, help="Seconds until the batch has stepped back."
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="Fewer chats, a tiny model.")
    options = parser.parse_args()
    if options.quick:
        options.model, options.requests, options.rounds, options.settle = "tiny", 40, 2, 4.0
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    with platform(num_cpus=4), tempfile.TemporaryDirectory(prefix="bench-model-") as folder:
        from ray import serve

        try:
            url = start_gateway([route("bench", "bench")])
            source: Any = options.model
            if source == "tiny":
                from tests.tiny_model import make_tiny_llama

                source = make_tiny_llama(Path(folder) / "tiny")
            deploy_vllm(str(source))
            ratio = measure(url, options)
        finally:
            serve.shutdown()
    print(json.dumps({"ttft_p95_with_over_without": round(ratio, 2)}))


if __name__ == "__main__":
    main()
