"""Ask base and tuned model the same held-out rows, and score both.

    ray job submit --address http://127.0.0.1:8265 --runtime-env runtime_env.yaml --working-dir . -- \
        python -m jobs.evaluate --config jobs/configs/demo/evaluate.yaml

For tasks whose right answer is one word out of a few. The artifact (kind ``evaluation``) holds
``scorecard.json`` (validation.models.Scorecard) and ``predictions.parquet`` (one line a row: what each model
answered and whether that is right). Both models share one start of a vLLM engine; answers are greedy.
"""

from __future__ import annotations

import io
import random
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from cluster.contracts import ArtifactInput, Manifest
from cluster.errors import RefusedError
from cluster.job import JobConfig, JobResult, JobRun, command, start_run
from cluster.job.preflight import preflight
from cluster.settings import load_settings
from cluster.storage import ArtifactStore, object_store
from jobs.inputs import find_artifact
from jobs.rows import Row, read_rows
from jobs.session import connect
from validation.models import Example, Scorecard, check_labels, compare, read_label, score

if TYPE_CHECKING:
    from collections.abc import Sequence

CODE_EPOCH = 1
MODELS = ("base", "tuned")
#: Rows of one call to the engine: enough to fill its batch, few enough for progress to be seen.
_ROWS_PER_CALL = 64


class EvaluateConfig(JobConfig):
    """A checkpoint, held-out rows, and what counts as an answer."""

    #: The inputs' digests stand for checkpoint and dataset.
    runtime_fields: ClassVar[frozenset[str]] = frozenset({"checkpoint", "dataset", "num_cpus", "num_gpus"})

    checkpoint: str = Field(description="A checkpoint artifact's address, or latest:<name>.")
    dataset: str | None = Field(
        None, description="A dataset artifact's address, or latest:<name>; the one trained on if absent."
    )
    split: str = Field("test", description="Held-out split; never the one trained on.")
    labels: list[str] = Field(min_length=2, description="The right answers that there are, one word each.")
    max_rows: int = Field(400, ge=1, description="Rows to ask, drawn by seed; all if there are fewer.")
    seed: int = Field(7, ge=0, description="Of the draw.")
    max_tokens: int = Field(4, ge=1, description="Most tokens of an answer.")
    examples: int = Field(12, ge=0, description="Rows to show in the scorecard.")
    engine_kwargs: dict[str, Any] = Field(default_factory=dict, description="vLLM's engine arguments.")
    num_cpus: float = Field(1.0, ge=0, description="Logical CPUs of the engine.")
    num_gpus: float = Field(0.0, ge=0, description="GPUs of the engine; 0 runs it on the CPU.")

    @field_validator("labels")
    @classmethod
    def _readable(cls, labels: list[str]) -> list[str]:
        return check_labels(labels)


def run(config: EvaluateConfig) -> JobResult:
    """Evaluate, or find it done.

    Raises NotFoundError for an unknown checkpoint or dataset, RefusedError for rows that were trained on or
    whose right answer is no label, or for more resources than the cluster has.
    """
    store = object_store()
    store.check()
    artifacts, team = ArtifactStore(store), load_settings().team
    checkpoint = find_artifact(artifacts, team, "checkpoint", config.checkpoint)
    base = artifacts.open(checkpoint.summary["base_model"])
    trained_on = checkpoint.summary["dataset"]
    dataset = find_artifact(artifacts, team, "dataset", config.dataset or trained_on)
    if str(dataset.ref) == trained_on and config.split == checkpoint.configuration.get("split"):
        raise RefusedError(
            f"{checkpoint.ref} was trained on split {config.split!r} of {dataset.ref}: name another."
        )
    inputs = [ArtifactInput(address=str(m.ref), digest=m.data_digest) for m in (checkpoint, base, dataset)]
    with start_run("evaluate", "evaluation", config, inputs=inputs, code_epoch=CODE_EPOCH) as job:
        if job.done:
            return job.result(job.done)
        everything = read_rows(artifacts, dataset, config.split, reader="evaluation")
        rows = draw(everything, config.max_rows, config.seed)
        expected = [_expected(row, config.labels) for row in rows]
        job.progress(f"{len(rows)} of {len(everything)} held-out rows of {dataset.ref}, split {config.split}")
        answers, engine_start_s = _ask(job, config, base, checkpoint, rows)
        card = _scorecard(config, dataset, rows, expected, answers)
        job.attempt.write("scorecard.json", card.model_dump_json(indent=1).encode())
        job.attempt.write("predictions.parquet", _predictions(config, rows, expected, answers))
        summary = _summary(card, checkpoint, base, dataset) | {"engine_start_s": round(engine_start_s, 1)}
        job.log_metrics({key: value for key, value in summary.items() if isinstance(value, int | float)})
        counts = {"rows": len(rows), "available": len(everything)}
        return job.result(job.commit(counts=counts, summary=summary))


def draw(rows: Sequence[Row], max_rows: int, seed: int) -> list[Row]:
    """At most ``max_rows`` rows, equal for equal seeds, in the order in which they stand."""
    if len(rows) <= max_rows:
        return list(rows)
    chosen = random.Random(seed).sample(range(len(rows)), max_rows)  # noqa: S311 - not for secrets
    return [rows[index] for index in sorted(chosen)]


def _expected(row: Row, labels: list[str]) -> str:
    """The right label of a row: its last message. Raises RefusedError if that is none."""
    last = row.messages[-1]
    label = read_label(last["content"], labels) if last["role"] == "assistant" else None
    if label is None:
        raise RefusedError(
            f"Row {row.row_id} does not end with an answer among {', '.join(labels)}: set labels, or name"
            " another dataset."
        )
    return label


def _ask(
    job: JobRun, config: EvaluateConfig, base: Manifest, checkpoint: Manifest, rows: list[Row]
) -> tuple[dict[str, list[str]], float]:
    """Both models' answers, in the order of the rows, and the seconds that the engine took to start."""
    connect()
    import ray

    from jobs.evaluation.engine import Engine

    resources = {"CPU": config.num_cpus} | ({"GPU": config.num_gpus} if config.num_gpus else {})
    preflight([resources], asker="Evaluation", remedy="lower num_cpus or num_gpus")
    job.progress(f"starting one vLLM engine for {base.ref} and its adapter")
    actor = ray.remote(Engine).options(num_cpus=config.num_cpus, num_gpus=config.num_gpus)
    engine = actor.remote(base, checkpoint, config.engine_kwargs, on_cpu=not config.num_gpus)
    try:
        started = ray.get(engine.start_seconds.remote())
        job.progress(f"engine ready after {started:.1f} s")
        answers = {name: _answers(job, config, engine, name, rows) for name in MODELS}
    finally:
        ray.kill(engine)
    return answers, started


def _answers(job: JobRun, config: EvaluateConfig, engine: Any, name: str, rows: list[Row]) -> list[str]:
    import ray

    answers: list[str] = []
    for first in range(0, len(rows), _ROWS_PER_CALL):
        asked = [row.messages[:-1] for row in rows[first : first + _ROWS_PER_CALL]]
        answers += ray.get(engine.answer.remote(asked, tuned=name == "tuned", max_tokens=config.max_tokens))
        job.progress(f"{name}: {len(answers)}/{len(rows)} rows answered")
    return answers


def _scorecard(
    config: EvaluateConfig,
    dataset: Manifest,
    rows: list[Row],
    expected: list[str],
    answers: dict[str, list[str]],
) -> Scorecard:
    shown = draw(rows, config.examples, config.seed)
    examples = [
        Example(
            row_id=row.row_id,
            prompt=_prompt(row),
            expected=expected[index],
            base=answers["base"][index],
            tuned=answers["tuned"][index],
        )
        for index, row in enumerate(rows)
        if row in shown
    ]
    return Scorecard(
        task=dataset.ref.name,
        rows=len(rows),
        labels=config.labels,
        models={name: score(answers[name], expected, config.labels) for name in MODELS},
        comparison=compare(answers, expected, config.labels),
        examples=examples,
    )


def _predictions(
    config: EvaluateConfig, rows: list[Row], expected: list[str], answers: dict[str, list[str]]
) -> bytes:
    """row_id, prompt, expected, and for each model its answer, the label read from it, and whether right."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {
        "row_id": [row.row_id for row in rows],
        "prompt": [_prompt(row) for row in rows],
        "expected": expected,
    }
    for name in MODELS:
        read = [read_label(answer, config.labels) for answer in answers[name]]
        columns[name] = answers[name]
        columns[f"{name}_label"] = pa.array(read, pa.string())
        columns[f"{name}_correct"] = [got == wanted for got, wanted in zip(read, expected, strict=True)]
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return sink.getvalue()


def _prompt(row: Row) -> str:
    """What the user asked last."""
    return next((m["content"] for m in reversed(row.messages[:-1]) if m["role"] == "user"), "")


def _summary(card: Scorecard, checkpoint: Manifest, base: Manifest, dataset: Manifest) -> dict[str, Any]:
    tuned = card.models["tuned"]
    return {
        "checkpoint": str(checkpoint.ref),
        "base_model": str(base.ref),
        "dataset": str(dataset.ref),
        "rows": card.rows,
        "base_accuracy": card.models["base"].accuracy,
        "tuned_accuracy": tuned.accuracy,
        "tuned_interval": list(tuned.interval),
        "gain": card.comparison.gain,
        "p_value": card.comparison.p_value,
    }


if __name__ == "__main__":
    raise SystemExit(command(EvaluateConfig, run))
