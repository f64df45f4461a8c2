"""Fine-tune a model with LoRA on a dataset version: Ray Train, checkpoints in S3.

    ray job submit --address http://127.0.0.1:8265 --runtime-env runtime_env.yaml --working-dir . -- \
        python -m jobs.finetune --config jobs/configs/demo/finetune.yaml

The artifact (kind ``checkpoint``) holds ``adapter/`` (PEFT's files) and ``training.jsonl`` (one line a step:
step, loss, samples_seen, elapsed_s). With ``method: supervised`` it learns the last message, the assistant's:
the loss counts its tokens only. With ``method: dpo`` the dataset's columns are ``prompt``, ``chosen`` and
``rejected``, each a list of messages, and it learns to prefer the chosen answer; each step tells of
chosen_reward, rejected_reward, reward_margin and reward_accuracy, too.
If a worker dies, Ray Train restarts the workers from the last checkpoint; if the whole job dies, the same
command resumes from it.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from cluster.contracts import ArtifactInput, Manifest
from cluster.errors import MantaError
from cluster.job import JobConfig, JobResult, JobRun, command, start_run
from cluster.job.preflight import preflight
from cluster.models import ensure_model
from cluster.settings import load_settings
from cluster.storage import ArtifactStore, object_store, rows_digest
from jobs.inputs import find_artifact
from jobs.rows import split_files
from jobs.session import connect
from jobs.training.arguments import RUNTIME_ARGUMENTS, DpoArguments, LoraArguments, TrainingArguments
from jobs.training.objective import Dpo, Objective, Supervised

if TYPE_CHECKING:
    from collections.abc import Callable

    from ray.train import Result

    from jobs.training.progress import OnStep
    from jobs.training.worker import WorkerPlan

CODE_EPOCH = 2
ADAPTER_CONFIG = "adapter_config.json"


class FinetuneConfig(JobConfig):
    """A base model, a dataset, and how the one learns from the other."""

    #: The inputs' digests stand for dataset and base_model.
    runtime_fields: ClassVar[frozenset[str]] = frozenset(
        {"dataset", "base_model", "resources_per_worker", "max_failures", "validation_split"}
    )

    dataset: str = Field(description="A dataset artifact's address, or latest:<name>.")
    split: str = Field("train", description="Which split of the dataset to learn from.")
    validation_split: str | None = Field(
        None, description="Split whose loss is measured when training ends; none if absent."
    )
    base_model: str = Field(
        description="demo, a folder, s3://..., a Hugging Face id, or a model artifact's address."
    )
    base_model_name: str | None = Field(
        None, description="Name of the base model's artifact, if it must be made; else from its source."
    )
    method: Literal["supervised", "dpo"] = Field(
        "supervised", description="Imitate answers, or prefer the chosen of two answers."
    )
    dpo: DpoArguments = Field(
        default_factory=DpoArguments, description="As in trl.DPOConfig; for method dpo."
    )
    training: TrainingArguments = Field(
        default_factory=TrainingArguments, description="As in transformers.TrainingArguments."
    )
    lora: LoraArguments = Field(default_factory=LoraArguments, description="As in peft.LoraConfig.")
    num_workers: int = Field(2, ge=1, description="Training workers; one step's rows grow with them.")
    resources_per_worker: dict[str, float] = Field(
        default_factory=lambda: {"CPU": 0.5}, description="Ray resources of each worker, e.g. CPU, GPU."
    )
    max_failures: int = Field(2, ge=0, description="Restarts of the workers before the job fails.")

    @model_validator(mode="after")
    def _no_dropout_in_dpo(self) -> FinetuneConfig:
        if self.method == "dpo" and self.lora.lora_dropout:
            raise ValueError("method dpo trains without dropout: leave lora.lora_dropout out")
        return self

    @property
    def objective(self) -> Objective[Any]:
        """What is learned."""
        return Dpo(self.dpo.beta) if self.method == "dpo" else Supervised()

    def meaning(self) -> dict[str, Any]:
        """Without what cannot change the weights."""
        meaning = super().meaning()
        if self.method == "supervised":  # As it was before there was another.
            del meaning["method"], meaning["dpo"]
        training = meaning["training"]
        meaning["training"] = {key: training[key] for key in training if key not in RUNTIME_ARGUMENTS}
        meaning.pop("base_model_name")
        return meaning


def run(config: FinetuneConfig, on_step: OnStep | None = None) -> JobResult:
    """Fine-tune, or find it done.

    :param on_step: gets what is told of each of the steps that are (``logging_steps``): step, steps, loss,
        the method's own figures, samples_seen, elapsed_s.

    Raises NotFoundError for an unknown dataset or model, RefusedError for more resources than the cluster
    has, a dataset without the method's columns or with rows that cannot be learned from, UnavailableError if
    there is no cluster.
    """
    store = object_store()
    store.check()
    artifacts = ArtifactStore(store)
    dataset = find_artifact(artifacts, load_settings().team, "dataset", config.dataset)
    split_files(artifacts, dataset, config.split, config.objective.columns, reader="fine-tuning")
    base = ensure_model(config.base_model, config.base_model_name, _progress())
    inputs = [ArtifactInput(address=str(m.ref), digest=m.data_digest) for m in (base, dataset)]
    with start_run("finetune", "checkpoint", config, inputs=inputs, code_epoch=CODE_EPOCH) as job:
        if job.done:
            return job.result(job.done)
        connect()
        preflight(
            [config.resources_per_worker] * config.num_workers,
            asker="Fine-tuning",
            remedy="lower num_workers or resources_per_worker",
        )
        trained = _train(job, config, base, dataset, on_step)
        manifest = _store(job, config, base, dataset, trained)
        _discard(job)
        return job.result(manifest)


def _progress() -> Callable[[str], None]:
    """Lines like those of a run, for what comes before it: its fingerprint needs the model's digest."""
    started = time.monotonic()
    return lambda said: print(f"[{time.monotonic() - started:7.1f} s] {said}", flush=True)


def _train(
    job: JobRun, config: FinetuneConfig, base: Manifest, dataset: Manifest, on_step: OnStep | None
) -> Result:
    from jobs.training.progress import worker_progress
    from jobs.training.storage import earlier_checkpoint
    from jobs.training.worker import WorkerPlan

    earlier = earlier_checkpoint(job.store, job.ref)
    if earlier is not None:
        job.progress(f"run {earlier.run_id} left a checkpoint at step {earlier.step}: going on from there")
    job.progress(f"{config.num_workers} workers load {base.ref}")
    with worker_progress(job, on_step) as progress:
        plan = WorkerPlan(
            base=base,
            dataset=dataset,
            split=config.split,
            validation_split=config.validation_split,
            arguments=config.training,
            lora=config.lora,
            objective=config.objective,
            resume=earlier.checkpoint if earlier else None,
            progress=progress,
        )
        return _fit(job, config, plan)


def _fit(job: JobRun, config: FinetuneConfig, plan: WorkerPlan) -> Result:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    from jobs.training.storage import experiment
    from jobs.training.worker import train

    path, name = experiment(job)
    use_gpu = config.resources_per_worker.get("GPU", 0) > 0
    trainer = TorchTrainer(
        train,
        train_loop_config={"plan": plan},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=use_gpu,
            resources_per_worker=dict(config.resources_per_worker),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=job.store.filesystem(),
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=config.training.save_total_limit),
        ),
    )
    try:
        return trainer.fit()
    except TrainingFailedError as error:
        # What a worker says to a user is said to the user; a bug keeps its traceback.
        for failure in getattr(error, "worker_failures", {}).values():
            cause = getattr(failure, "cause", failure)
            if isinstance(cause, MantaError):
                raise cause from None
        raise


def _store(
    job: JobRun, config: FinetuneConfig, base: Manifest, dataset: Manifest, trained: Result
) -> Manifest:
    """Copy the adapter and the curve of the last checkpoint into the attempt, and commit."""
    from jobs.training.worker import ADAPTER, STATE

    assert trained.checkpoint is not None, "every run ends with a checkpoint"
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(trained.checkpoint.to_directory(scratch))
        state = json.loads((directory / STATE).read_text())
        digest = checkpoint_digest(directory / ADAPTER, state["history"])
        job.attempt.upload(directory / ADAPTER, ADAPTER)
    curve = "".join(f"{json.dumps(record)}\n" for record in state["history"])
    job.attempt.write("training.jsonl", curve.encode())
    summary = {
        "base_model": str(base.ref),
        "dataset": str(dataset.ref),
        "steps": state["step"],
        "first_loss": state["history"][0]["loss"],
        "last_loss": _mean_of_last(state["history"], "loss"),
        "training_s": round(state["elapsed_s"], 1),
        "lora_rank": config.lora.r,
    }
    if config.method == "dpo":
        summary |= {"method": "dpo", "beta": config.dpo.beta}
        summary |= {name: _mean_of_last(state["history"], name) for name in config.objective.figures}
    if state["valid_loss"] is not None:
        summary["valid_loss"] = state["valid_loss"]
    counts = {
        "samples_seen": state["samples_seen"],
        "tokens_seen": state["tokens_seen"],
        "left_out_too_long": state["too_long"],
    }
    return job.commit(counts=counts, summary=summary, data_digest=digest)


def checkpoint_digest(adapter: Path, history: list[dict[str, float]]) -> str:
    """SHA-256 over what was trained: weights, their configuration, and each step's loss and rows.

    Not over how long a step took, where the base model stands, or the order in which PEFT writes a set: equal
    trainings have equal digests, interrupted or not.
    """
    rows: list[dict[str, Any]] = [
        {"row_id": f"step-{record['step']:09d}", "loss": record["loss"], "seen": record["samples_seen"]}
        for record in history
    ]
    for file in adapter.iterdir():
        if file.name == ADAPTER_CONFIG:
            config = json.loads(file.read_text())
            config.pop("base_model_name_or_path", None)
            content: Any = {
                # Its lists are sets (of modules' names).
                key: sorted(value, key=str) if isinstance(value, list) else value
                for key, value in config.items()
            }
        else:
            content = hashlib.sha256(file.read_bytes()).hexdigest()
        rows.append({"row_id": file.name, "content": content})
    return rows_digest(rows)


def _mean_of_last(history: list[dict[str, float]], name: str, steps: int = 5) -> float:
    """One step's loss is noise; the mean of the last few is a figure."""
    found = [record[name] for record in history[-steps:]]
    return round(sum(found) / len(found), 6)


def _discard(job: JobRun) -> None:
    """A failed clean-up is no failed job."""
    from jobs.training.storage import discard

    try:
        discard(job)
    except OSError as error:
        job.progress(f"the training checkpoints were not deleted: {error}")


if __name__ == "__main__":
    raise SystemExit(command(FinetuneConfig, run))
