"""Do one job of ``/v1/fine_tuning/jobs``: file -> dataset -> checkpoint -> registered adapter.

    ray job submit --address http://127.0.0.1:8265 --runtime-env runtime_env.yaml --working-dir . -- \
        python -m jobs.tune --name ftjob-... --training_file.key ... --base_model ...

The gateway's worker submits it, with the key's team and id as its principal, and publishes what comes of it.
The dataset (kind ``dataset``) and the checkpoint belong to that team and bear the job's id as their name, and
so does the registered model; the adapter stands where the application of the base loads adapters from. Each
step is told as an event of the job. Running it again finds what is done and goes on from checkpoints.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from cluster.contracts import ArtifactInput, Manifest, adapter_id
from cluster.contracts.tuning import TuningStatus
from cluster.errors import RefusedError
from cluster.job import JobConfig, JobResult, JobRun, command, start_run
from cluster.registry import Registry
from cluster.settings import load_settings
from cluster.storage import ArtifactStore, object_store
from cluster.tuning import TuningRepository, make_event
from jobs import finetune
from jobs.finetune import FinetuneConfig
from jobs.inputs import find_artifact
from jobs.promote import publish_adapter
from jobs.training.arguments import DpoArguments, LoraArguments, TrainingArguments
from jobs.training.objective import Dpo
from validation.data.schema import CONVERSATIONS, MESSAGES, PREFERENCES
from validation.examples import conversations, preference

CODE_EPOCH = 1
#: Steps that become events; of longer trainings every second, third ... does.
_MOST_TOLD = 1000
_SPLITS = {"train": "training_file", "validation": "validation_file"}


class ExamplesFile(BaseModel):
    """An uploaded file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str = Field(description="Its place in the bucket.")
    sha256: str = Field(description="Of its bytes.")


class TuneConfig(JobConfig):
    """One fine-tuning job; ``name`` is its id."""

    #: Of the dataset, which is what this job's own configuration makes.
    runtime_fields: ClassVar[frozenset[str]] = frozenset(
        {"training_file", "validation_file", "base_model", "adapters", "training", "lora", "dpo"}
        | {"num_workers", "resources_per_worker"}
    )

    training_file: ExamplesFile = Field(description="Examples to learn from.")
    validation_file: ExamplesFile | None = Field(None, description="Examples to measure the result by.")
    base_model: str = Field(description="The base model's artifact address.")
    adapters: str = Field(description="Key prefix below which the base's application finds adapters.")
    method: Literal["supervised", "dpo"] = Field(
        "supervised", description="Files hold conversations to imitate, or preferences."
    )
    dpo: DpoArguments = Field(
        default_factory=DpoArguments, description="As in trl.DPOConfig; for method dpo."
    )
    training: TrainingArguments = Field(description="As in transformers.TrainingArguments.")
    lora: LoraArguments = Field(default_factory=LoraArguments, description="As in peft.LoraConfig.")
    num_workers: int = Field(1, ge=1, description="Training workers.")
    resources_per_worker: dict[str, float] = Field(
        default_factory=lambda: {"CPU": 0.5}, description="Ray resources of each worker, e.g. CPU, GPU."
    )

    def meaning(self) -> dict[str, Any]:
        """Supervised tuning's is as it was before there was another method."""
        meaning = super().meaning()
        if self.method == "supervised":
            del meaning["method"]
        return meaning


def run(config: TuneConfig) -> JobResult:
    """Tune, or find it done.

    Raises NotFoundError for a file that has gone, RefusedError for examples that cannot be learned from or a
    job that has failed or was cancelled, and what fine-tuning raises.
    """
    settings = load_settings()
    events = TuningRepository(settings.database_url)
    _refuse_ended(events, config.name, settings.team)

    def told(record: dict[str, Any]) -> None:
        if "loss" not in record:
            return
        step, steps, loss = int(record["step"]), int(record["steps"]), record["loss"]
        if step % max(1, -(-steps // _MOST_TOLD)) and step not in (1, steps):
            return
        data = {"step": step, "total_steps": steps, "train_loss": loss, "elapsed_s": record["elapsed_s"]}
        data |= {f"train_{name}": record[name] for name in Dpo.figures if name in record}
        message = f"Step {step}/{steps}: training loss={loss:.2f}"
        events.tell(
            config.name, [make_event(config.name, f"step {step}", message, type="metrics", data=data)]
        )

    dataset = _dataset(config)
    trained = finetune.run(
        FinetuneConfig(
            name=config.name,
            dataset=str(dataset.ref),
            base_model=config.base_model,
            method=config.method,
            dpo=config.dpo,
            training=config.training,
            lora=config.lora,
            num_workers=config.num_workers,
            resources_per_worker=config.resources_per_worker,
            validation_split="validation" if config.validation_file else None,
        ),
        on_step=told,
    )
    artifacts = ArtifactStore(object_store())
    checkpoint = find_artifact(artifacts, settings.team, "checkpoint", trained.artifact)
    artifacts.verify(checkpoint)
    if not checkpoint.counts["samples_seen"]:
        raise RefusedError(f"Every example has more than {config.training.max_length} tokens.")
    # Whoever ended it waits until this process has ended, too, and takes back what is here then.
    _refuse_ended(events, config.name, settings.team)
    model = Registry(settings).register(
        config.name,
        checkpoint,
        base=checkpoint.summary["base_model"],
        served_adapter=f"{config.adapters}{{adapter_id}}/",
    )
    assert model.adapter is not None
    publish_adapter(artifacts, checkpoint, model.adapter)
    summary = {
        "model": str(model.ref),
        "adapter_id": adapter_id(model.ref),
        "digest": checkpoint.data_digest,
        "checkpoint": str(checkpoint.ref),
        "steps": checkpoint.summary["steps"],
        "last_loss": checkpoint.summary["last_loss"],
        "valid_loss": checkpoint.summary.get("valid_loss"),
        "trained_tokens": checkpoint.counts["tokens_seen"],
        "left_out_too_long": checkpoint.counts["left_out_too_long"],
    }
    return JobResult(artifact=trained.artifact, reused=trained.reused, summary=summary)


def _refuse_ended(jobs: TuningRepository, job_id: str, team: str) -> None:
    status = jobs.get(job_id, team).status
    if status in (TuningStatus.FAILED, TuningStatus.CANCELLED):
        raise RefusedError(f"Job {job_id} is {status.value}: nothing may come of it any more.")


def _dataset(config: TuneConfig) -> Manifest:
    """The examples as a dataset artifact, made or found."""
    store = object_store()
    files = {split: file for split, field in _SPLITS.items() if (file := getattr(config, field)) is not None}
    inputs = [ArtifactInput(address=store.uri(file.key), digest=file.sha256) for file in files.values()]
    with start_run("tune", "dataset", config, inputs=inputs, code_epoch=CODE_EPOCH) as job:
        if job.done:
            return job.done
        counts = {split: _write(job, config.method, split, file) for split, file in files.items()}
        if not counts["train"]:
            raise RefusedError(f"No example of {config.training_file.key} has an answer to learn.")
        return job.commit(counts=counts, summary={"rows": sum(counts.values())})


def _write(job: JobRun, method: str, split: str, file: ExamplesFile) -> int:
    """One split as Parquet; its number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    messages = pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))
    columns = PREFERENCES if method == "dpo" else CONVERSATIONS
    schema = pa.schema(
        [(name, messages if kind == MESSAGES else pa.string()) for name, kind in columns.items()]
    )
    rows = list(rows_of(job.store.get(file.key), method))
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    job.attempt.write(f"{split}/part-0.parquet", sink.getvalue())
    job.progress(f"{split}: {len(rows):,} {'preferences' if method == 'dpo' else 'conversations'}")
    return len(rows)


def rows_of(content: bytes, method: str) -> Iterator[dict[str, Any]]:
    """The dataset's rows. Raises RefusedError for a line that cannot be learned from."""
    for number, line in enumerate(io.BytesIO(content), start=1):  # As at the upload: a line ends with LF.
        if not line.strip():
            continue
        row_id, example = f"line-{number:07d}", json.loads(line)
        try:
            if method == "dpo":
                yield {"row_id": row_id, **preference(example)}
                continue
            for answer, messages in enumerate(conversations(example)):
                yield {"row_id": f"{row_id}-{answer:04d}", "messages": messages}
        except RefusedError as refused:
            raise RefusedError(f"Line {number}: {refused}") from None


if __name__ == "__main__":
    raise SystemExit(command(TuneConfig, run))
