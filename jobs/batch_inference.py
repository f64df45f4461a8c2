"""Answer many prompts with one model, behind the same guard policy as the gateway; Parquet in S3.

    ray job submit --address http://127.0.0.1:8265 --runtime-env runtime_env.yaml --working-dir . -- \
        python -m jobs.batch_inference --config jobs/configs/demo/batch_inference.yaml

The artifact (kind ``batch-output``) holds ``output/*.parquet`` (answered rows) and ``errors/*.parquet``
(rows that a guard blocked or the engine failed), with the same columns; every input row is in exactly
one of them. ``output.formats`` asks for lines in OpenAI's batch output format beside them or in their
place: ``jsonl/output/*.jsonl`` and ``jsonl/errors/*.jsonl``. A run that is killed is resumed by the same
command: answered rows are durable within seconds and are not asked again. ``policy.json`` is the guard
policy as it was pinned at submission. Two engines: ``warm`` asks a deployed model by its Serve handle,
``dedicated`` starts vLLM for the batch through Ray Data LLM; ``auto`` takes the one that fits its size.
``--compare other,another`` asks these models too, and makes a ``comparison`` of all of them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from cluster.contracts import ArtifactInput, ArtifactRef
from cluster.errors import MantaError, RefusedError, UsageError
from cluster.job import JobConfig, JobResult, JobRun, command, start_run
from cluster.job.run import address_of
from cluster.settings import load_settings
from cluster.storage import canonical_json, object_store
from jobs.batch.choosing import Choice, Engine, choose
from jobs.batch.comparing import ComparisonConfig, compare_models
from jobs.batch.dedicated import DedicatedConfig, DedicatedEngine, check_schedulable, check_supported
from jobs.batch.estimate import PriceConfig, Sample, refuse_cost, tokenizer_of
from jobs.batch.finishing import Finished, prove, write_files
from jobs.batch.formats import OutputConfig
from jobs.batch.guarding import BatchGuards
from jobs.batch.journal import PLAN, REQUESTS, Journal, rows_of
from jobs.batch.pinning import Pin
from jobs.batch.progress import Progress
from jobs.batch.resume import Former, await_others, each_once, take_over
from jobs.batch.rows import (
    BatchRequest,
    PartWriter,
    parts,
    read_parts,
    request_columns,
    request_of,
    request_schema,
)
from jobs.batch.sampling import RequestConfig, SamplingConfig, prepared
from jobs.batch.showing import KIND, VERB
from jobs.batch.sorting import SortedSpill
from jobs.batch.source import Source, SourceConfig, resolve
from jobs.batch.warm import WarmEngine
from jobs.session import connect

CODE_EPOCH = 1


class BatchInferenceConfig(JobConfig):
    """Prompts, the model that answers them, and how."""

    runtime_fields: ClassVar[frozenset[str]] = frozenset(
        {
            *("concurrency", "attempts", "timeout_s", "stall_s", "outage_s", "progress_s"),
            *("flush_rows", "flush_s", "rows_per_file", "max_failed", "price", "max_cost"),
            *("dedicated_from_tokens", "compare", "comparison"),
        }
    )

    source: SourceConfig = Field(description="Where the prompts come from.")
    model: str = Field(
        description="warm: the deployed model's public name. dedicated: a registered version"
        " (models:/name@champion, name@3) or a model source (Hugging Face id, s3://, folder, demo)."
        " auto: any of them."
    )
    engine: Literal["auto", "warm", "dedicated"] = Field(
        "auto",
        description="warm: a deployed model. dedicated: an engine of the batch's own. auto: for a small batch"
        " a deployed model if there is one of that name, else an engine of its own with the same weights.",
    )
    dedicated_from_tokens: int = Field(
        1_000_000,
        ge=0,
        description="auto: tokens to read, and at most to generate, from which on a batch is not small: it is"
        " worth the minutes that an engine's start takes.",
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
    stall_s: float = Field(
        60.0,
        gt=0,
        description="Seconds without a token after which an engine or a request counts as stalled.",
    )
    outage_s: float = Field(
        900.0, gt=0, description="warm: seconds without a token from anywhere that end the run; it resumes."
    )
    flush_rows: int = Field(500, ge=1, description="Answered rows that are made durable together...")
    flush_s: float = Field(5.0, gt=0, description="...or after so many seconds, if there are fewer.")
    request: RequestConfig | None = Field(
        None, description="Structured output and tools, for rows that do not say otherwise."
    )
    compare: list[str] = Field(
        default_factory=list,
        description="More models to ask the same, each in a batch of its own, and to hold beside model.",
    )
    comparison: ComparisonConfig = Field(
        default_factory=ComparisonConfig, description="How compared models are judged."
    )
    price: PriceConfig | None = Field(None, description="What tokens cost; the route's price if absent.")
    max_cost: float | None = Field(
        None, ge=0, description="Refuse to start a model's batch if the rows still to be asked may cost more."
    )
    progress_s: float = Field(5.0, gt=0, description="Seconds between two progress lines.")
    output: OutputConfig = Field(default_factory=OutputConfig, description="How answers are stored.")
    rows_per_file: int = Field(10_000, ge=1, description="Most rows in one file.")
    max_failed: float = Field(
        0.5, ge=0, le=1, description="Share of failed rows above which the batch is refused."
    )

    @model_validator(mode="after")
    def _different_models(self) -> BatchInferenceConfig:
        models = [self.model, *self.compare]
        if twice := sorted({model for model in models if models.count(model) > 1}):
            raise ValueError(f"{twice[0]} is to be compared with itself: name each model once")
        if unknown := sorted(self.comparison.prices.keys() - models):
            raise ValueError(f"comparison.prices names {unknown[0]}, which is neither model nor in compare")
        return self

    def meaning(self) -> dict[str, Any]:
        """Without names whose digests are among the inputs: a dataset, the model, the policy."""
        meaning = super().meaning()
        for part, name in ((meaning, "model"), (meaning, "policy"), (meaning["source"], "dataset")):
            part.pop(name)
        meaning["source"].pop("expected_column")  # No model sees it.
        if self.engine == "warm":
            meaning.pop("dedicated")
        else:  # Of its settings only the engine's own decide what it answers.
            meaning["dedicated"] = {"engine_kwargs": meaning["dedicated"]["engine_kwargs"]}
        if self.request is None:
            meaning.pop("request")
        if self.output == OutputConfig():  # Batches from before there was a choice keep their address.
            meaning.pop("output")
        return meaning

    def answers_at(self, engine: Engine, inputs: Sequence[ArtifactInput], team: str) -> ArtifactRef:
        """Where an engine's answers stand once there are all."""
        return address_of(KIND, self.model_copy(update={"engine": engine}), inputs, CODE_EPOCH, team)

    def batch_digest(self, source: Source) -> str:
        """SHA-256 of what is asked of whom, whichever engine does it."""
        meaning = self.meaning()
        for engine in ("engine", "dedicated"):
            meaning.pop(engine, None)
        whole = {"rows": source.order, "model": self.model, "policy": self.policy, "meaning": meaning}
        return hashlib.sha256(canonical_json(whole)).hexdigest()


@dataclass(frozen=True)
class _Asked:
    """What preparation found in the input; ``pending`` rows have no answer yet."""

    rows: int
    pending: int
    chat: bool
    seed: bool
    stop: bool


def run(config: BatchInferenceConfig) -> JobResult:
    """One model's answers, or several models' side by side."""
    return compare_models(config, _ask) if config.compare else _ask(config)


def _ask(config: BatchInferenceConfig) -> JobResult:
    """Pin model and policy, check every row, answer those that are not, prove that none is lost, commit."""
    settings, store = load_settings(), object_store()
    source = resolve(config.source, store, settings.team)
    connect()
    began = time.monotonic()
    choice = choose(config, source, settings, store)
    config = config.model_copy(update={"engine": choice.engine})
    inputs = [*source.inputs, *choice.pin.inputs]
    with start_run(VERB, KIND, config, inputs=inputs, code_epoch=CODE_EPOCH, tracked_late=True) as job:
        job.done = job.done or await_others(job)
        if job.done:
            return job.result(job.done)
        job.progress(f"{choice.engine} engine: {choice.reason}")
        progress, finished = _run_rows(job, config, source, choice, began)
        job.attempt.write("policy.json", canonical_json(choice.pin.policy))
        summary = _summary(config, choice, progress, finished)
        job.log_metrics({key: value for key, value in summary.items() if isinstance(value, int | float)})
        counts = {
            "input": finished.rows,
            "output": finished.counts["succeeded"],
            "errors": finished.rows - finished.counts["succeeded"],
            "blocked": finished.counts["blocked"],
            "failed": finished.counts["failed"],
        }
        manifest = job.commit(counts=counts, summary=summary, data_digest=finished.digest)
        _discard(job)
        return job.result(manifest)


def _run_rows(
    job: JobRun, config: BatchInferenceConfig, source: Source, choice: Choice, began: float
) -> tuple[Progress, Finished]:
    """Answer every row that no earlier attempt has answered, write all of them, and prove it."""
    rows, pin = rows_of(job), choice.pin
    with SortedSpill() as ids:
        try:
            former = take_over(job, source.order)
            asked, sample = _prepare(job, config, source, former, ids)
            _estimate(job, config, choice, source, sample, asked)
            resumed = asked.rows - asked.pending
            before_s = time.monotonic() - began
            progress = Progress(asked.rows, job.progress, config.progress_s, resumed, before_s)
            if asked.pending:
                with Journal(rows, config.flush_rows, config.flush_s, progress.figures) as journal:
                    for row in _answers(job, config, pin, asked):
                        journal.add(row)
                        progress.add(row)
            answered = each_once(job, former, asked.rows)
            finished = write_files(job, answered, config.output, config.rows_per_file, config.model)
            prove(job, ids, config.output)
        finally:
            # The prompts as they were sent: a guard policy may well keep them out of storage.
            rows.clear(REQUESTS)
    _refuse_failure(config, finished)
    return progress, finished


def _prepare(
    job: JobRun, config: BatchInferenceConfig, source: Source, former: Former, ids: SortedSpill
) -> tuple[_Asked, Sample]:
    """Check and normalise every row before anything runs; write those to be asked where engines read them."""
    writer = PartWriter(rows_of(job), REQUESTS, request_schema(), config.rows_per_file)
    endpoints, seed, stop, rows, sample = set[str](), False, False, 0, Sample()
    for request in source.requests(ids):
        if (named := request.body.get("model")) not in (None, config.model):
            raise UsageError(
                f"Row {request.custom_id} asks for model {named!r} but this batch runs {config.model!r}:"
                " split the file by model, or leave model out of its bodies; nothing was run."
            )
        request = prepared(request, config.request, config.sampling)
        if config.engine == "dedicated":
            check_supported(request)
        endpoints.add(request.endpoint)
        seed, stop, rows = seed or "seed" in request.body, stop or "stop" in request.body, rows + 1
        if not former.has(request.number):
            writer.add(request_columns(request))
            sample.add(request)
    if config.engine == "dedicated" and len(endpoints) > 1:
        raise UsageError(
            "The dedicated engine takes chats or completions, not both in one batch; nothing was run."
        )
    writer.close()
    return _Asked(rows, writer.count, chat="chat" in endpoints, seed=seed, stop=stop), sample


def _estimate(
    job: JobRun, config: BatchInferenceConfig, choice: Choice, source: Source, sample: Sample, asked: _Asked
) -> None:
    """Say what is about to be asked and what it may cost, and write it down; refuse what costs too much."""
    pin = choice.pin
    job.progress(
        f"{asked.rows} rows checked; {config.engine} engine, model {pin.model.address},"
        f" guard policy {pin.policy.name} ({pin.policy.digest[:12]})"
    )
    last = job.artifacts.latest(job.ref.team, job.ref.kind, job.ref.name)
    alike = last is not None and all(
        last.summary.get(key) == value for key, value in (("engine", config.engine), ("model", config.model))
    )
    count = tokenizer_of(job.artifacts, pin.model.address)
    estimate = sample.estimate(count, config.price or pin.price, last.summary if last and alike else None)
    job.progress(estimate.line())
    refuse_cost(estimate, config.max_cost)
    plan = {
        "order": source.order,
        "rows": asked.rows,
        "batch": config.batch_digest(source),
        "model_digest": pin.model.digest,
        "engine": config.engine,
        "engine_reason": choice.reason,
        "model": config.model,
        "estimate": estimate.figures(),
    }
    rows_of(job).write(PLAN, canonical_json(plan))


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
            stall_s=config.stall_s,
            outage_s=config.outage_s,
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
        say=job.progress,
    )
    folder = f"{job.store.bucket}/{rows_of(job).prefix}{REQUESTS}/"
    return dedicated.answers(ray.data.read_parquet(folder, filesystem=job.store.filesystem()))


def _requests(job: JobRun) -> Iterator[BatchRequest]:
    keys = parts(job.store, rows_of(job), REQUESTS)
    return (request_of(row) for row in read_parts(job.store, keys))


def _refuse_failure(config: BatchInferenceConfig, finished: Finished) -> None:
    failed = finished.counts["failed"]
    if failed <= config.max_failed * finished.rows:
        return
    raise RefusedError(
        f"{failed} of {finished.rows} rows failed, more than max_failed={config.max_failed:g} allows;"
        f" the first says: {finished.errors[0]['error_message']}"
    )


def _discard(job: JobRun) -> None:
    """Delete the journal; what it held is committed. What stays for once is collected by `manta gc`."""
    try:
        rows_of(job).clear()
    except MantaError as error:
        job.progress(f"the answered rows' journal stays until `manta gc`: {error}")


def _summary(
    config: BatchInferenceConfig, choice: Choice, progress: Progress, finished: Finished
) -> dict[str, Any]:
    """Rows and tokens are of the whole batch; seconds and rates of this run, which asked ``asked`` rows.

    ``first_row_s`` counts from when the cluster was joined, before model and engine are found, to the first
    answer; the others from the first question:
    ``start_s`` until the engine took a row, ``answered_s`` until the last answer, ``seconds`` to the end.
    """
    pin = choice.pin
    seconds = max(progress.seconds, 1e-9)
    price = config.price or pin.price
    cost = price.cost(finished.prompt_tokens, finished.completion_tokens) if price else None
    return {
        "rows": finished.rows,
        **{status: finished.counts[status] for status in ("succeeded", "blocked", "failed")},
        "resumed": progress.resumed,
        "asked": progress.asked,
        "seconds": round(progress.seconds, 3),
        "start_s": round(progress.start_s or 0.0, 3),
        "answered_s": round(progress.answered_s, 3),
        **({"first_row_s": round(progress.first_row_s, 3)} if progress.first_row_s is not None else {}),
        "rows_per_s": round(progress.asked / seconds, 3),
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.completion_tokens,
        "tokens_per_s": round(progress.completion_tokens / seconds, 3),
        **({"cost": round(cost, 6)} if cost is not None else {}),
        "engine": choice.engine,
        "engine_reason": choice.reason,
        "model": config.model,
        "model_address": pin.model.address,
        "engine_model": pin.target.model if pin.target else None,
        "policy": {"name": pin.policy.name, "digest": pin.policy.digest},
        "formats": config.output.formats,
        "error_codes": dict(finished.codes),
        "first_errors": finished.errors,
    }


if __name__ == "__main__":
    raise SystemExit(command(BatchInferenceConfig, run))
