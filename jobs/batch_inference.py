"""Answer many prompts with one model, behind the same guard policy as the gateway; Parquet in S3.

    ray job submit --address http://127.0.0.1:8265 --runtime-env runtime_env.yaml --working-dir . -- \
        python -m jobs.batch_inference --config jobs/configs/demo/batch_inference.yaml

The artifact (kind ``batch-output``) holds ``output/*.parquet`` (answered rows) and ``errors/*.parquet``
(rows that a guard blocked or the engine failed), with the same columns; every input row is in exactly
one of them. ``policy.json`` is the guard policy as it was pinned at submission. Two engines: ``warm``
asks a deployed model by its Serve handle, ``dedicated`` starts vLLM for the batch through Ray Data LLM
(for large batches).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field

from cluster.errors import RefusedError, UsageError
from cluster.job import JobConfig, JobResult, JobRun, command, start_run
from cluster.settings import load_settings
from cluster.storage import canonical_json, merge_row_digests, object_store, row_digest
from jobs.batch.dedicated import DedicatedConfig, DedicatedEngine, check_schedulable, check_supported
from jobs.batch.guarding import BatchGuards
from jobs.batch.pinning import Pin, pin_dedicated, pin_warm
from jobs.batch.progress import Progress
from jobs.batch.rows import (
    ERRORS,
    MEASURED,
    OUTPUT,
    REQUESTS,
    BatchRequest,
    PartWriter,
    answer_schema,
    discrepancy,
    read_parts,
    request_columns,
    request_of,
    request_schema,
)
from jobs.batch.sampling import SamplingConfig, normalise
from jobs.batch.source import Source, SourceConfig, resolve
from jobs.batch.warm import WarmEngine
from jobs.session import connect

CODE_EPOCH = 1


class BatchInferenceConfig(JobConfig):
    """Prompts, the model that answers them, and how."""

    runtime_fields: ClassVar[frozenset[str]] = frozenset(
        {"concurrency", "attempts", "timeout_s", "progress_s", "rows_per_file", "max_failed"}
    )

    source: SourceConfig = Field(description="Where the prompts come from.")
    model: str = Field(
        description="warm: the deployed model's public name. dedicated: a registered version"
        " (models:/name@champion, name@3) or a model source (Hugging Face id, s3://, folder, demo)."
    )
    engine: Literal["warm", "dedicated"] = Field(
        "warm", description="A deployed model, or an engine of its own."
    )
    policy: str | None = Field(
        None, description="Guard policy by name or file; else the route's, else the default."
    )
    sampling: SamplingConfig = Field(
        default_factory=SamplingConfig, description="For rows that do not say otherwise."
    )
    dedicated: DedicatedConfig = Field(
        default_factory=DedicatedConfig, description="Of the dedicated engine."
    )
    concurrency: int = Field(32, ge=1, description="warm: rows asked at a time.")
    attempts: int = Field(3, ge=1, description="warm: tries a row.")
    timeout_s: float = Field(600.0, gt=0, description="warm: seconds for one try.")
    progress_s: float = Field(5.0, gt=0, description="Seconds between two progress lines.")
    rows_per_file: int = Field(10_000, ge=1, description="Most rows in one Parquet file.")
    max_failed: float = Field(
        0.5, ge=0, le=1, description="Share of failed rows above which the batch is refused."
    )

    def meaning(self) -> dict[str, Any]:
        """Without names whose digests are among the inputs: a dataset, the model, the policy."""
        meaning = super().meaning()
        for part, name in ((meaning, "model"), (meaning, "policy"), (meaning["source"], "dataset")):
            part.pop(name)
        if self.engine == "warm":
            meaning.pop("dedicated")
        return meaning


@dataclass(frozen=True)
class _Asked:
    """What preparation found in the input."""

    rows: int
    chat: bool
    seed: bool
    stop: bool


def run(config: BatchInferenceConfig) -> JobResult:
    """Pin model and policy, check every row, answer them, prove that none is lost, commit."""
    settings, store = load_settings(), object_store()
    source = resolve(config.source, store, settings.team)
    connect()
    pin = (pin_warm if config.engine == "warm" else pin_dedicated)(
        config.model, config.policy, settings, store
    )
    inputs = [*source.inputs, *pin.inputs]
    with start_run("batch-inference", "batch-output", config, inputs=inputs, code_epoch=CODE_EPOCH) as job:
        if job.done:
            return job.result(job.done)
        progress, digest = _run_rows(job, config, source, pin)
        job.attempt.write("policy.json", canonical_json(pin.policy))
        summary = _summary(config, pin, progress)
        job.log_metrics({key: value for key, value in summary.items() if isinstance(value, int | float)})
        counts = {
            "input": progress.total,
            "output": progress.counts["succeeded"],
            "errors": progress.total - progress.counts["succeeded"],
            "blocked": progress.counts["blocked"],
            "failed": progress.counts["failed"],
        }
        return job.result(job.commit(counts=counts, summary=summary, data_digest=digest))


def _run_rows(job: JobRun, config: BatchInferenceConfig, source: Source, pin: Pin) -> tuple[Progress, str]:
    """Answer every row, and prove it; returns what was counted and the answers' digest."""
    try:
        asked = _prepare(job, config, source)
        job.progress(
            f"{asked.rows} rows checked; {config.engine} engine, model {pin.model.address},"
            f" guard policy {pin.policy.name} ({pin.policy.digest[:12]})"
        )
        progress = Progress(asked.rows, job.progress, config.progress_s)
        digest = _store(job, config, _answers(job, config, pin, asked), progress)
        _prove(job)
        _refuse_failure(config, progress, job)
        return progress, digest
    finally:
        # The prompts as they were sent: a guard policy may well keep them out of storage.
        job.attempt.clear(REQUESTS)


def _prepare(job: JobRun, config: BatchInferenceConfig, source: Source) -> _Asked:
    """Check and normalise every row before anything runs, and write them where both engines read them."""
    writer = PartWriter(job.attempt, REQUESTS, request_schema(), config.rows_per_file)
    endpoints, seed, stop = set[str](), False, False
    for request in source.requests():
        if (named := request.body.get("model")) not in (None, config.model):
            raise UsageError(
                f"Row {request.custom_id} asks for model {named!r} but this batch runs {config.model!r}:"
                " split the file by model, or leave model out of its bodies; nothing was run."
            )
        try:
            request = request.with_body(normalise(request.body, config.sampling))
        except ValueError as error:
            raise UsageError(f"Row {request.custom_id}: {error}; nothing was run.") from None
        if config.engine == "dedicated":
            check_supported(request)
        endpoints.add(request.endpoint)
        seed, stop = seed or "seed" in request.body, stop or "stop" in request.body
        writer.add(request_columns(request))
    if config.engine == "dedicated" and len(endpoints) > 1:
        raise UsageError(
            "The dedicated engine takes chats or completions, not both in one batch; nothing was run."
        )
    writer.close()
    return _Asked(rows=writer.count, chat="chat" in endpoints, seed=seed, stop=stop)


def _answers(job: JobRun, config: BatchInferenceConfig, pin: Pin, asked: _Asked) -> Iterator[dict[str, Any]]:
    principal = job.settings.principal
    if config.engine == "warm":
        assert pin.target is not None
        engine = WarmEngine(
            pin.target,
            BatchGuards(pin.policy, principal),
            principal,
            concurrency=config.concurrency,
            attempts=config.attempts,
            timeout_s=config.timeout_s,
        )
        return engine.answers(_requests(job))
    import ray

    assert pin.weights is not None
    check_schedulable(config.dedicated)
    dedicated = DedicatedEngine(
        config.dedicated,
        pin.weights,
        pin.policy,
        principal,
        chat=asked.chat,
        seed=asked.seed,
        stop=asked.stop,
    )
    folder = f"{job.store.bucket}/{job.attempt.prefix}{REQUESTS}/"
    return dedicated.answers(ray.data.read_parquet(folder, filesystem=job.store.filesystem()))


def _requests(job: JobRun) -> Iterator[BatchRequest]:
    return (request_of(row) for row in read_parts(job.store, job.attempt, REQUESTS))


def _store(
    job: JobRun, config: BatchInferenceConfig, answers: Iterable[dict[str, Any]], progress: Progress
) -> str:
    """Write every row to the folder of its status; return the data digest."""
    schema = answer_schema()
    writers = {name: PartWriter(job.attempt, name, schema, config.rows_per_file) for name in (OUTPUT, ERRORS)}
    digests = []
    for row in answers:
        writers[OUTPUT if row["status"] == "succeeded" else ERRORS].add(row)
        digests.append(row_digest({name: row[name] for name in row if name not in MEASURED}))
        progress.add(row)
    for writer in writers.values():
        writer.close()
    return merge_row_digests(digests)


def _prove(job: JobRun) -> None:
    """Read back which rows are stored: each asked one exactly once, or it is a bug and no artifact."""

    def ids(*folders: str) -> Iterator[str]:
        for folder in folders:
            for row in read_parts(job.store, job.attempt, folder, ["row_id"]):
                yield row["row_id"]

    wrong = discrepancy(ids(REQUESTS), ids(OUTPUT, ERRORS))
    if wrong is not None:
        raise AssertionError(f"{job.run_id}: {wrong}")


def _refuse_failure(config: BatchInferenceConfig, progress: Progress, job: JobRun) -> None:
    failed = progress.counts["failed"]
    if failed <= config.max_failed * progress.total:
        return
    rows = read_parts(job.store, job.attempt, ERRORS, ["status", "error_message"])
    first = next(row["error_message"] for row in rows if row["status"] == "failed")
    raise RefusedError(
        f"{failed} of {progress.total} rows failed, more than max_failed={config.max_failed:g} allows;"
        f" the first says: {first}"
    )


def _summary(config: BatchInferenceConfig, pin: Pin, progress: Progress) -> dict[str, Any]:
    return {
        "rows": progress.rows,
        **{status: progress.counts[status] for status in ("succeeded", "blocked", "failed")},
        "seconds": round(progress.seconds, 3),
        "start_s": round(progress.start_s or 0.0, 3),
        "rows_per_s": round(progress.rows / max(progress.seconds, 1e-9), 3),
        "prompt_tokens": progress.prompt_tokens,
        "completion_tokens": progress.completion_tokens,
        "tokens_per_s": round(progress.completion_tokens / max(progress.seconds, 1e-9), 3),
        "engine": config.engine,
        "model": config.model,
        "model_address": pin.model.address,
        "engine_model": pin.target.model if pin.target else None,
        "policy": {"name": pin.policy.name, "digest": pin.policy.digest},
    }


if __name__ == "__main__":
    raise SystemExit(command(BatchInferenceConfig, run))
