"""What the guards cost: CPU on a prompt, waiting for several at once, and what a stream holds back.

    python -m tests.benchmarks.guard_cost [--quick]

The prompt is a chat request of about 230 tokens: pieces of the Python reference that are met for the first
time, and one piece of prose again and again. Each guard of the default policy is also measured alone (all
share one reading of the text, so the parts add up to more than the whole). Waiting guards are five that
answer after different times, as those in another process do; the baseline is the slowest of them alone.

A stream is the same prose in pieces of a token's size. Held is what has come and not left: in characters
after each piece, and for each character in pieces until it leaves, told in milliseconds at a stated pace.

Asserts nothing; the last line is one JSON object.
"""

import argparse
import asyncio
import json
import re
import statistics
import time
from collections.abc import Sequence
from pydoc_data.topics import topics
from typing import Any

from cluster.contracts import Finding, Segment
from tests.benchmarks.guard_quality import PROMPT
from validation.guards import GuardContext, GuardEngine, default_policy, judge_request, parse_policy

CONTEXT = GuardContext()
#: Seconds that the five waiting guards take.
WAITS = (0.10, 0.12, 0.15, 0.18, 0.20)
#: About a token, as models cut English.
PIECE = re.compile(r" ?\w{1,7}|\s|[^\w\s]+")
#: Milliseconds between tokens: a small model on a CPU, and on an accelerator.
PACES = (25, 5)


def prose(count: int) -> list[str]:
    """Different pieces of the Python reference, each as long as :data:`PROMPT`."""
    text = "\n\n".join(topics[name] for name in sorted(topics))
    size = len(PROMPT)
    return [text[start : start + size] for start in range(0, len(text) - size, size)][:count]


def body(prompt: str) -> dict[str, Any]:
    """A chat request."""
    system = {"role": "system", "content": "You are a helpful assistant. Answer briefly."}
    return {"messages": [system, {"role": "user", "content": prompt}], "max_tokens": 100}


async def cpu_ms(engine: GuardEngine, prompts: Sequence[str]) -> list[float]:
    """CPU milliseconds to judge a request with each of the prompts."""
    await judge_request(engine, body("Hello there."), CONTEXT)
    taken = []
    for prompt in prompts:
        start = time.process_time()
        await judge_request(engine, body(prompt), CONTEXT)
        taken.append((time.process_time() - start) * 1e3)
    return taken


async def print_cpu(count: int) -> float:
    """The table by guard; the mean of the default policy on new prompts."""
    policy = default_policy()
    new, again = prose(count), [PROMPT] * count
    print(
        "CPU ms of a request of 230 tokens".ljust(36) + "".join(f"{c:>10}" for c in ("new", "p99", "again"))
    )
    mean = 0.0
    for name in ("default policy", *(guard.name for guard in policy.guards)):
        guards = [guard for guard in policy.guards if name in ("default policy", guard.name)]
        engine = GuardEngine(policy.model_copy(update={"guards": tuple(guards)}))
        first = await cpu_ms(engine, new)
        figures = statistics.mean(first), sorted(first)[int(0.99 * len(first))]
        repeated = statistics.mean(await cpu_ms(engine, again))
        print(f"  {name}".ljust(36) + "".join(f"{figure:10.2f}" for figure in (*figures, repeated)))
        mean = mean or figures[0]
    return mean


class Waiting:
    """Guards in another process, as far as this one feels them."""

    async def check(self, guard: str, policy_digest: str, segment: Segment) -> list[Finding]:
        """See :class:`validation.guards.RemoteGuards`."""
        await asyncio.sleep(WAITS[int(guard[-1])])
        return []


def waiting_engine(numbers: Sequence[int]) -> GuardEngine:
    """Packaged guards that take as long as :data:`WAITS` says."""
    spec = {"kind": "guardrails", "on": "input", "validator": "a.b:C", "unit": "text"}
    guards = [spec | {"name": f"far-{number}"} for number in numbers]
    return GuardEngine(parse_policy({"name": "waiting", "version": 1, "guards": guards}), Waiting())


async def parallel_over_slowest(rounds: int) -> float:
    """Seconds for five waiting guards over seconds for the slowest alone; medians, taken in turns."""
    engines = waiting_engine(range(len(WAITS))), waiting_engine([len(WAITS) - 1])
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for engine, seconds in zip(engines, taken, strict=True):
            start = time.monotonic()
            await judge_request(engine, body(PROMPT), CONTEXT)
            seconds.append(time.monotonic() - start)
    five, slowest = map(statistics.median, taken)
    print(
        f"\nfive guards that wait {WAITS[0]:g} to {WAITS[-1]:g} s: {five:.3f} s, the slowest {slowest:.3f} s"
    )
    return five / slowest


async def print_held(texts: Sequence[str]) -> None:
    """What a stream holds back under the default policy."""
    engine = GuardEngine(default_policy())
    held: list[int] = []
    late: list[int] = []
    first: list[int] = []
    cpu = pieces_in_all = 0.0
    for text in texts:
        stream = engine.stream(CONTEXT)
        came: list[int] = []  # For each character, the piece that it came with.
        gone = 0
        pieces = PIECE.findall(text)
        start = time.process_time()
        for number, piece in enumerate(pieces):
            came.extend([number] * len(piece))
            left = gone + len(await stream.feed(piece))
            late.extend(number - since for since in came[gone:left])
            if gone == 0 < left:
                first.append(number)
            gone = left
            held.append(len(came) - gone)
        cpu += time.process_time() - start
        pieces_in_all += len(pieces)
    held.sort()
    late.sort()
    print("\nheld back by a stream".ljust(37) + "".join(f"{c:>10}" for c in ("mean", "p50", "p99", "most")))
    _row("characters, after each piece", held)
    for pace in PACES:
        _row(f"ms of a character, at {pace} ms a token", [pieces * pace for pieces in late])
    _row("tokens before the first", sorted(first))
    print(f"  CPU: {cpu / pieces_in_all * 1e6:.0f} microseconds a token")


def _row(name: str, values: Sequence[int]) -> None:
    columns = statistics.mean(values), *(values[int(share * (len(values) - 1))] for share in (0.5, 0.99, 1))
    print(f"  {name}".ljust(36) + "".join(f"{column:10.1f}" for column in columns))


async def measure(quick: bool) -> dict[str, float]:
    """Print the tables; the figures of the last line."""
    default_cpu_ms = await print_cpu(60 if quick else 400)
    ratio = await parallel_over_slowest(3 if quick else 15)
    # What redactions change has other lengths, so only texts without findings tell how long one is held.
    engine = GuardEngine(default_policy())
    texts = prose(80 if quick else 600)
    verdicts = [await engine.judge(Segment(text=text, direction="output"), CONTEXT) for text in texts]
    await print_held([text for text, verdict in zip(texts, verdicts, strict=True) if not verdict.findings])
    return {"default_cpu_ms": round(default_cpu_ms, 2), "parallel_over_slowest": round(ratio, 3)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer texts and rounds")
    print(json.dumps(asyncio.run(measure(parser.parse_args().quick))))


if __name__ == "__main__":
    main()
