"""Batch inference against plain vLLM: the same prompts, model, engine settings and tokens.

    python -m tests.benchmarks.batch_throughput [--engine warm|dedicated] [--model demo|tiny|SOURCE] [--quick]

Plain is ``vllm.LLM.generate`` in a process of its own, measured after a warm-up; then the same engine runs
behind ``jobs.batch_inference``, guards, storage and manifest included, on a Ray and an S3 server of its own.
Medians of the rounds. A dedicated batch starts its engine: its rate is taken without that, and the rate with
the start is in the table. The last line is JSON: ``over_vllm_generate`` is our rows a second
over plain vLLM's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.local import platform

ENGINE = {"max_model_len": 1024, "dtype": "bfloat16", "enforce_eager": True, "max_num_seqs": 64}
_SUBJECTS = ("tides", "glaciers", "bridges", "bees", "comets", "bread", "violins", "maps", "volcanoes", "ink")
_ASKS = (
    "Explain how {} come to be",
    "Write a short story about {}",
    "List five facts about {}",
    "Argue against {}",
)


def prompts(rows: int) -> list[str]:
    """Prompts of different lengths that no guard stops."""
    made = []
    for number in range(rows):
        text = _ASKS[number % len(_ASKS)].format(_SUBJECTS[number % len(_SUBJECTS)])
        made.append(f"{text}, variation {number}." + " Take your time and be precise." * (number % 7))
    return made


def plain(model: str, rows: int, max_tokens: int, rounds: int) -> list[float]:
    """Seconds of each round of ``LLM.generate``; run in a process of its own."""
    words = [sys.executable, "-m", "tests.benchmarks.batch_throughput", "--plain", model]
    words += ["--rows", str(rows), "--max-tokens", str(max_tokens), "--rounds", str(rounds)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return list(json.loads(done.stdout.strip().splitlines()[-1]))


def _plain_here(model: str, rows: int, max_tokens: int, rounds: int) -> list[float]:
    import time

    from vllm import LLM, SamplingParams

    engine = LLM(model=model, **ENGINE)
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    chats = [[{"role": "user", "content": text}] for text in prompts(rows)]
    tokenizer = engine.get_tokenizer()
    texts = [
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats
    ]
    engine.generate(texts[:8], sampling, use_tqdm=False)
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        engine.generate(texts, sampling, use_tqdm=False)
        seconds.append(time.perf_counter() - started)
    return seconds


def batch(
    engine: str, model: str, folder: Path, rows: int, max_tokens: int, **settings: Any
) -> dict[str, Any]:
    """One batch; its summary."""
    from jobs.batch_inference import BatchInferenceConfig, run

    name = f"bench-{uuid.uuid4().hex[:8]}"
    path = folder / f"{name}.jsonl"
    with path.open("w") as out:
        for number, text in enumerate(prompts(rows)):
            body = {
                "messages": [{"role": "user", "content": text}],
                "max_tokens": max_tokens,
                "ignore_eos": True,
            }
            line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
            out.write(json.dumps(line) + "\n")
    config = {"name": name, "source": {"path": str(path)}, "engine": engine, "model": model, **settings}
    summary = run(BatchInferenceConfig.model_validate(config)).summary
    if summary["succeeded"] != rows:
        raise SystemExit(f"{rows - summary['succeeded']} of {rows} rows were not answered: no figure.")
    return summary


def deploy(address: str) -> str:
    """The model application with the same engine, and a route to it; returns the public name."""
    from ray import serve

    from cluster import snapshots
    from cluster.contracts import Route, Target
    from deployments.model import DEPLOYMENT, ModelApplicationArgs, build

    llm_config = {
        "model_loading_config": {"model_id": "bench"},
        "accelerator_config": {"kind": "cpu"},
        "engine_kwargs": ENGINE,
        "deployment_config": {"num_replicas": 1, "max_ongoing_requests": 512},
    }
    serve.run(
        build(ModelApplicationArgs(model=address, llm_config=llm_config)), name="bench", route_prefix=None
    )
    target = Target(application="bench", deployment=DEPLOYMENT, model="bench")
    route = Route(model="bench", targets=[target], created_at=datetime.now(UTC))
    snapshots.publish(lambda s: s.model_copy(update={"routes": [route]}), by="benchmark")
    return "bench"


def ours(
    engine: str, source: str, options: argparse.Namespace, folder: Path
) -> tuple[list[float], list[float]]:
    """Rows a second of each round, without and with the engine's start."""
    rows, rounds = options.rows, options.rounds
    if engine == "warm":
        from ray import serve

        model = deploy(source)
        batch("warm", model, folder, 8, options.max_tokens)
        summaries = [
            batch("warm", model, folder, rows, options.max_tokens, concurrency=options.concurrency)
            for _ in range(rounds)
        ]
        serve.shutdown()
        rates = [summary["rows_per_s"] for summary in summaries]
        return rates, rates
    dedicated = {"engine_kwargs": ENGINE, "batch_size": 32}
    found = [
        batch("dedicated", source, folder, rows, options.max_tokens, dedicated=dedicated)
        for _ in range(rounds)
    ]
    steady = [rows / (summary["seconds"] - summary["start_s"]) for summary in found]
    return steady, [summary["rows_per_s"] for summary in found]


def main() -> None:
    """Measure, print a table, and end with the JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=("warm", "dedicated"), default="warm")
    parser.add_argument("--model", default="demo", help="demo, tiny, or any model source")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--concurrency", type=int, default=96)
    parser.add_argument("--quick", action="store_true", help="fewer rows, one round")
    parser.add_argument("--plain", metavar="DIR", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rows = options.rows or (96 if options.quick else 256)
    options.rounds = options.rounds or (1 if options.quick else 3)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    if options.plain:
        print(json.dumps(_plain_here(options.plain, options.rows, options.max_tokens, options.rounds)))
        return
    with platform(num_cpus=4), tempfile.TemporaryDirectory(prefix="bench-in-") as inputs:
        from cluster.models import ensure_model, local_copy

        source = options.model
        if source == "tiny":
            from tests.tiny_model import make_tiny_llama

            source = str(make_tiny_llama(Path(inputs) / "tiny"))
        model = ensure_model(source)
        measured = plain(str(local_copy(model)), options.rows, options.max_tokens, options.rounds)
        vllm = [options.rows / seconds for seconds in measured]
        steady, whole = ours(options.engine, str(model.ref), options, Path(inputs))
    print(
        f"\n{options.rows} rows of {options.max_tokens} tokens, median of {options.rounds}; rows/s (tokens/s)"
    )
    for name, rates in (
        ("vllm.LLM.generate", vllm),
        (f"batch_inference, {options.engine}", steady),
        ("  with the engine's start", whole),
    ):
        rate = statistics.median(rates)
        print(f"{name:<32}{rate:8.2f} ({rate * options.max_tokens:,.0f})   of {[round(r, 2) for r in rates]}")
    ratio = statistics.median(steady) / statistics.median(vllm)
    print(json.dumps({"over_vllm_generate": round(ratio, 3)}))


if __name__ == "__main__":
    main()
