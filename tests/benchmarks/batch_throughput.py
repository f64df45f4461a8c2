"""Batch inference against plain vLLM and bare Ray Data LLM: the same prompts, model, engine settings, tokens.

    python -m tests.benchmarks.batch_throughput [--model demo|tiny|SOURCE] [--only dedicated|warm] [--quick]

Dedicated engines, in interleaved rounds whose order turns: ``vllm.LLM.generate`` in a process of its own,
which stands still (SIGSTOP) while it is not its turn; bare ``ray.data.llm``, whose answers go into one
Parquet file in S3; ``jobs.batch_inference`` with a policy of one guard that finds nothing; and the same with
the default policy. Whoever starts an engine is measured without that: from when it took its first row, the
first one's arrival less its own seconds, for both batches to the end of their files' proof. So the guards of
answers count; those of prompts do not, for they have seen all rows before the engine starts. "With start" is
the whole run, with reading, the guards of prompts and the manifest.

A deployed model: the job's command, as users run it, on 1,000 short rows; ``first_row_s`` of its summary is
the time from when the job has joined the cluster, before it looks for model and engine, to its first answer.

Ray and the S3 server are the benchmark's own. Medians of the rounds. The last line is JSON:
``over_vllm_generate`` and ``over_ray_data_llm`` (of the batch without guards), ``guarded_over_plain``,
``warm_first_row_s``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.local import platform

ENGINE = {"max_model_len": 1024, "dtype": "bfloat16", "enforce_eager": True, "max_num_seqs": 64}
BATCH_SIZE, WARM_ROWS, WARM_TOKENS = 32, 1000, 4
#: Logical CPUs: those of the engine, the guards' two stages, Ray Data's own and the reading task.
LOGICAL_CPUS = 4
VLLM, BARE, PLAIN, GUARDED = "vllm.LLM.generate", "ray.data.llm", "batch, one guard", "batch, default policy"
_FREE = {
    "name": "free",
    "version": 1,
    "guards": [{"name": "length", "kind": "length", "on": "both", "max_characters": 10_000_000}],
}
_SUBJECTS = ("tides", "glaciers", "bridges", "bees", "comets", "bread", "violins", "maps", "volcanoes", "ink")
_ASKS = (
    "Explain how {} come to be",
    "Write a short story about {}",
    "List five facts about {}",
    "Argue against {}",
)
#: Seconds without and with the engine's start.
Seconds = tuple[float, float]


def prompts(rows: int) -> list[str]:
    """Prompts of different lengths that no guard stops."""
    made = []
    for number in range(rows):
        text = _ASKS[number % len(_ASKS)].format(_SUBJECTS[number % len(_SUBJECTS)])
        made.append(f"{text}, variation {number}." + " Take your time and be precise." * (number % 7))
    return made


def chats(rows: int) -> list[list[dict[str, str]]]:
    """The same as messages."""
    return [[{"role": "user", "content": text}] for text in prompts(rows)]


def write_rows(path: Path, rows: int, max_tokens: int) -> Path:
    """The same in OpenAI's batch format."""
    with path.open("w") as out:
        for number, messages in enumerate(chats(rows)):
            body = {"messages": messages, "max_tokens": max_tokens, "ignore_eos": True}
            line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
            out.write(json.dumps(line) + "\n")
    return path


@contextmanager
def plain_vllm(model: Path, rows: int, max_tokens: int) -> Iterator[Callable[[], Seconds]]:
    """``LLM.generate`` in a process of its own, which does nothing between two calls."""
    words = [sys.executable, "-m", "tests.benchmarks.batch_throughput", "--plain", str(model)]
    words += ["--rows", str(rows), "--max-tokens", str(max_tokens)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, text=True, start_new_session=True, **pipes) as process:  # type: ignore[call-overload]

        def answer() -> str:
            # vLLM's own lines come between.
            while line := process.stdout.readline():
                if line.startswith("plain: "):
                    return str(line.removeprefix("plain: ").strip())
            raise SystemExit("Plain vLLM ended before it answered: no figure.")

        def generate() -> Seconds:
            os.killpg(process.pid, signal.SIGCONT)
            process.stdin.write("go\n")
            process.stdin.flush()
            seconds = float(answer())
            os.killpg(process.pid, signal.SIGSTOP)
            return seconds, seconds

        try:
            answer()
            os.killpg(process.pid, signal.SIGSTOP)
            yield generate
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def _plain_here(model: str, rows: int, max_tokens: int) -> None:
    """Generate once for each line of standard input."""
    from vllm import LLM, SamplingParams

    engine = LLM(model=model, **ENGINE)  # type: ignore[arg-type]
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    tokenizer: Any = engine.get_tokenizer()
    texts = [
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        for chat in chats(rows)
    ]
    engine.generate(texts[:8], sampling, use_tqdm=False)
    print("plain: ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        engine.generate(texts, sampling, use_tqdm=False)
        print(f"plain: {time.perf_counter() - started}", flush=True)


def bare(weights: str, rows: int, max_tokens: int) -> Seconds:
    """Ray Data LLM as its documentation has it, with the batch's engine settings, stages and block size."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    from cluster.storage import object_store
    from jobs.batch.dedicated import CPU_VARIABLES

    ray.data.DataContext.get_current().enable_progress_bars = False
    parameters = {"temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True}
    processor = build_processor(
        vLLMEngineProcessorConfig(
            model_source=weights,
            engine_kwargs=dict(ENGINE),  # Ray Data puts keys of its own into what it is given.
            concurrency=1,
            batch_size=BATCH_SIZE,
            placement_group_config={"bundles": [{"CPU": 1}]},
            runtime_env={"env_vars": CPU_VARIABLES},
            chat_template_stage={"enabled": True, "num_cpus": 0.25},
            tokenize_stage={"enabled": True, "num_cpus": 0.25},
            detokenize_stage={"enabled": False},
        ),
        preprocess=lambda row: {"messages": json.loads(row["chat"]), "sampling_params": parameters},
        postprocess=lambda row: {
            key: row[key] for key in ("generated_text", "num_generated_tokens", "time_taken_llm")
        },
    )
    asked = ray.data.from_items([{"chat": json.dumps(chat)} for chat in chats(rows)])
    asked = asked.repartition(target_num_rows_per_block=BATCH_SIZE)
    began, start_s, made = time.perf_counter(), None, list[Any]()
    for block in processor(asked).iter_batches(batch_size=None, batch_format="pyarrow"):
        if start_s is None:
            start_s = time.perf_counter() - began - block.column("time_taken_llm")[0].as_py()
        made.append(block)
    table, sink, store = pa.concat_tables(made), pa.BufferOutputStream(), object_store()
    pq.write_table(table, sink, compression="zstd")
    store.put(f"bare/{uuid.uuid4().hex}.parquet", sink.getvalue().to_pybytes())
    whole = time.perf_counter() - began
    if table.num_rows != rows or set(table.column("num_generated_tokens").to_pylist()) != {max_tokens}:
        raise SystemExit("Ray Data LLM did not answer every row in full: no figure.")
    assert start_s is not None
    return whole - start_s, whole


def dedicated(weights: str, path: Path, rows: int, policy: Path | None) -> Seconds:
    """The job, with everything that it does from the first row to the manifest."""
    from jobs.batch_inference import BatchInferenceConfig, run

    config = {
        "name": f"bench-{uuid.uuid4().hex[:8]}",
        "source": {"path": str(path)},
        "engine": "dedicated",
        "model": weights,
        "policy": str(policy) if policy else None,
        "dedicated": {"engine_kwargs": ENGINE, "batch_size": BATCH_SIZE},
    }
    began = time.perf_counter()
    summary = run(BatchInferenceConfig.model_validate(config)).summary
    whole = time.perf_counter() - began
    if summary["succeeded"] != rows:
        raise SystemExit(f"{rows - summary['succeeded']} of {rows} rows were not answered: no figure.")
    print(f"  after the last answer: {summary['seconds'] - summary['answered_s']:.2f} s", flush=True)
    return summary["seconds"] - summary["start_s"], whole


def compare_dedicated(model: Any, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """All four in turn; prints the table, returns the ratios of the medians."""
    from cluster.models import local_copy
    from cluster.storage import ArtifactStore, object_store

    rows, max_tokens = options.rows, options.max_tokens
    path, policy = write_rows(folder / "rows.jsonl", rows, max_tokens), folder / "free.yaml"
    policy.write_text(json.dumps(_FREE))
    weights = ArtifactStore(object_store()).uri(model)
    found: dict[str, list[Seconds]] = {name: [] for name in (VLLM, BARE, PLAIN, GUARDED)}
    with plain_vllm(local_copy(model), rows, max_tokens) as generate:
        subjects: dict[str, Callable[[], Seconds]] = {
            VLLM: generate,
            BARE: lambda: bare(weights, rows, max_tokens),
            PLAIN: lambda: dedicated(str(model.ref), path, rows, policy),
            GUARDED: lambda: dedicated(str(model.ref), path, rows, None),
        }
        for number in range(options.rounds):
            turned = [*subjects][number % 4 :] + [*subjects][: number % 4]
            for name in turned:
                found[name].append(subjects[name]())
                print(f"round {number + 1}, {name}: {rows / found[name][-1][0]:.2f} rows/s", flush=True)
    print(f"\n{rows} rows of {max_tokens} tokens, medians of {options.rounds} interleaved rounds")
    print(f"{'':<26}{'rows/s':>9}{'tokens/s':>10}{'with start':>12}   each round")
    rates = {}
    for name, seconds in found.items():
        steady, whole = ([rows / value for value in values] for values in zip(*seconds, strict=True))
        rates[name] = statistics.median(steady)
        print(
            f"{name:<26}{rates[name]:>9.2f}{rates[name] * max_tokens:>10.0f}{statistics.median(whole):>12.2f}"
            f"   {[round(rate, 2) for rate in steady]}"
        )
    return {
        "over_vllm_generate": round(rates[PLAIN] / rates[VLLM], 3),
        "over_ray_data_llm": round(rates[PLAIN] / rates[BARE], 3),
        "guarded_over_plain": round(rates[GUARDED] / rates[PLAIN], 3),
    }


def deploy(address: str) -> str:
    """The model application with the same engine, and a route to it; returns the public name."""
    from ray import serve

    from cluster import snapshots
    from cluster.contracts import Route, Target
    from deployments.model import DEPLOYMENT, ModelApplicationArgs, build

    llm_config = {
        "model_loading_config": {"model_id": "bench"},
        "accelerator_config": {"kind": "cpu"},
        "engine_kwargs": dict(ENGINE),
        "deployment_config": {"num_replicas": 1, "max_ongoing_requests": 512},
    }
    serve.run(
        build(ModelApplicationArgs(model=address, llm_config=llm_config)), name="bench", route_prefix=None
    )
    target = Target(application="bench", deployment=DEPLOYMENT, model="bench")
    route = Route(model="bench", targets=[target], created_at=datetime.now(UTC))
    snapshots.publish(lambda s: s.model_copy(update={"routes": [route]}), by="benchmark")
    return "bench"


def warm_first_row(model: Any, options: argparse.Namespace, folder: Path) -> float:
    """Median of seconds to the first answer of the job's command; a first, small run is not counted."""
    import ray
    from ray import serve

    name = deploy(str(model.ref))
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    firsts, wholes = list[float](), list[float]()
    for number in range(options.rounds + 1):
        path = write_rows(folder / f"warm-{number}.jsonl", WARM_ROWS if number else 8, WARM_TOKENS)
        words = [sys.executable, "-m", "jobs.batch_inference", "--name", f"warm-{number}", "--json"]
        words += ["--source.path", str(path), "--model", name, "--concurrency", str(options.concurrency)]
        done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        summary = json.loads(done.stdout.strip().splitlines()[-1])["summary"]
        if summary["engine"] != "warm" or summary["succeeded"] != summary["rows"]:
            raise SystemExit("The deployed model did not answer every row: no figure.")
        if number:
            firsts.append(summary["first_row_s"])
            wholes.append(summary["rows_per_s"])
    serve.shutdown()
    print(
        f"\n{WARM_ROWS} rows of {WARM_TOKENS} tokens to a deployed model: first answer after"
        f" {statistics.median(firsts):.2f} s of {[round(first, 2) for first in firsts]},"
        f" {statistics.median(wholes):.1f} rows/s"
    )
    return round(statistics.median(firsts), 2)


def main() -> None:
    """Measure, print the tables, and end with the JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("dedicated", "warm"))
    parser.add_argument("--model", default="demo", help="demo, tiny, or any model source")
    parser.add_argument("--rows", type=int, help="of the dedicated engines; 512, or 96 with --quick")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, help="3, or 1 with --quick")
    parser.add_argument("--concurrency", type=int, default=32, help="of the batch to the deployed model")
    parser.add_argument("--quick", action="store_true", help="fewer rows, one round")
    parser.add_argument("--plain", metavar="DIR", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rows = options.rows or (96 if options.quick else 512)
    options.rounds = options.rounds or (1 if options.quick else 3)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    if options.plain:
        _plain_here(options.plain, options.rows, options.max_tokens)
        return
    figures: dict[str, float] = {}
    with platform(num_cpus=LOGICAL_CPUS), tempfile.TemporaryDirectory(prefix="bench-in-") as inputs:
        from cluster.models import ensure_model

        source = options.model
        if source == "tiny":
            from tests.tiny_model import make_tiny_llama

            source = str(make_tiny_llama(Path(inputs) / "tiny"))
        model = ensure_model(source)
        if options.only != "warm":
            figures |= compare_dedicated(model, options, Path(inputs))
        if options.only != "dedicated":
            figures["warm_first_row_s"] = warm_first_row(model, options, Path(inputs))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
