"""Hold an evaluation against the gate; register the checkpoint and move the alias, or refuse and say why.

    ray job submit --address http://127.0.0.1:8265 --runtime-env runtime_env.yaml --working-dir . -- \
        python -m jobs.promote --config jobs/configs/demo/promote.yaml

A promoted version is in MLflow with its lineage, its adapter under ``<team>/adapters/<adapter id>/`` (a name
that never changes its content), and the alias points to it, with a line in the alias history. The artifact
(kind ``promotion``) holds ``decision.json``. Running it again changes nothing: an alias that
has been moved since stays where it was moved to.
"""

from __future__ import annotations

import hashlib
from typing import ClassVar

from pydantic import Field

from cluster.contracts import ArtifactInput, Manifest, adapter_id
from cluster.contracts.base import Slug
from cluster.errors import NotFoundError, RefusedError
from cluster.job import JobConfig, JobResult, JobRun, command, start_run
from cluster.registry import TAG_EVALUATION, RegisteredModel, Registry
from cluster.settings import load_settings
from cluster.storage import ArtifactStore, object_store
from jobs.inputs import find_artifact
from validation.models import GateConfig, Scorecard, decide

CODE_EPOCH = 1
_ADAPTER = "adapter/"


class PromoteConfig(JobConfig):
    """An evaluation, the gate, and the alias. ``name`` is the registered model's name."""

    #: The evaluation's digest stands for what is promoted.
    runtime_fields: ClassVar[frozenset[str]] = frozenset({"evaluation", "checkpoint"})

    evaluation: str = Field(description="An evaluation artifact's address, or latest:<name>.")
    checkpoint: str | None = Field(
        None,
        description="The checkpoint that shall be promoted, by address or latest:<name>; it must be the one "
        "that was evaluated. That one if absent.",
    )
    alias: Slug = Field("champion", description="The alias to move.")
    gate: GateConfig = Field(default_factory=GateConfig, description="What the model must reach.")


def run(config: PromoteConfig) -> JobResult:
    """Promote, or find it done.

    Raises NotFoundError for an unknown evaluation or checkpoint, and RefusedError when the evaluation was of
    another checkpoint or the gate says no; the registry is untouched then.
    """
    store = object_store()
    store.check()
    artifacts, team = ArtifactStore(store), load_settings().team
    evaluation = find_artifact(artifacts, team, "evaluation", config.evaluation)
    checkpoint = find_artifact(
        artifacts, team, "checkpoint", config.checkpoint or _evaluated(evaluation).address
    )
    inputs = [ArtifactInput(address=str(m.ref), digest=m.data_digest) for m in (checkpoint, evaluation)]
    with start_run("promote", "promotion", config, inputs=inputs, code_epoch=CODE_EPOCH) as job:
        if job.done:
            return job.result(job.done)
        _check_same(evaluation, checkpoint)
        card = Scorecard.model_validate_json(artifacts.read(evaluation, "scorecard.json"))
        decision = decide(card, config.gate)
        for check in decision.checks:
            job.progress(f"gate: {'kept' if check.passed else 'NOT KEPT'}: {check.says}")
        if not decision.passed:
            raise RefusedError(f"{checkpoint.ref} is not promoted: {'; '.join(decision.reasons)}.")
        artifacts.verify(checkpoint)
        model = _register(job, config, checkpoint, evaluation, card)
        job.attempt.write("decision.json", decision.model_dump_json(indent=1).encode())
        summary = {
            "model": str(model.ref),
            "version": model.ref.version,
            "alias": config.alias,
            "adapter": model.adapter,
            "adapter_id": adapter_id(model.ref),
            "base_model": model.base,
            "checkpoint": str(checkpoint.ref),
            "evaluation": str(evaluation.ref),
            "accuracy": card.models["tuned"].accuracy,
            "gain": card.comparison.gain,
        }
        return job.result(job.commit(counts={"checks": len(decision.checks)}, summary=summary))


def _evaluated(evaluation: Manifest) -> ArtifactInput:
    """The checkpoint among an evaluation's inputs."""
    wanted = evaluation.summary.get("checkpoint")
    for item in evaluation.inputs:
        if item.address == wanted:
            return item
    raise NotFoundError(f"{evaluation.ref} does not say which checkpoint it was of: evaluate again.")


def _check_same(evaluation: Manifest, checkpoint: Manifest) -> None:
    """Raises RefusedError unless the evaluation was of this checkpoint with this very content."""
    item = _evaluated(evaluation)
    if item.address != str(checkpoint.ref):
        raise RefusedError(
            f"{evaluation.ref} is of {item.address}, not of {checkpoint.ref}: evaluate that one first."
        )
    if item.digest != checkpoint.data_digest:
        raise RefusedError(
            f"{checkpoint.ref} is not what {evaluation.ref} judged (its digest differs): evaluate it again."
        )


def _register(
    job: JobRun, config: PromoteConfig, checkpoint: Manifest, evaluation: Manifest, card: Scorecard
) -> RegisteredModel:
    """Version, adapter, alias: in this order, so that an alias never points to what cannot be served."""
    registry, team = Registry(job.settings), job.settings.team
    model = registry.register(
        config.name,
        checkpoint,
        base=checkpoint.summary["base_model"],
        served_adapter=f"{team}/adapters/{{adapter_id}}/",
        tags={TAG_EVALUATION: str(evaluation.ref)},
    )
    assert model.adapter is not None
    publish_adapter(job.artifacts, checkpoint, model.adapter)
    registry.set_alias(
        config.name,
        config.alias,
        model.ref.version,
        by=job.settings.principal,
        why=_why(card),
        evidence=str(evaluation.ref),
    )
    job.progress(f"{model.ref} is {config.alias}; its adapter is {job.store.uri(model.adapter)}")
    return model


def publish_adapter(artifacts: ArtifactStore, checkpoint: Manifest, prefix: str) -> None:
    """Copy the adapter to where engines load it from. What is there already must be the same.

    Raises RefusedError if other content stands under the name: engines keep adapters by name for ever.
    """
    store = artifacts.store
    files = [file for file in checkpoint.files if file.path.startswith(_ADAPTER)]
    # Whoever loads an adapter looks for its configuration first, so that comes last.
    for file in sorted(files, key=lambda file: file.path.endswith("adapter_config.json")):
        key = prefix + file.path.removeprefix(_ADAPTER)
        data = artifacts.read(checkpoint, file.path)
        if not store.put_if_absent(key, data) and _sha256(store.get(key)) != file.sha256:
            raise RefusedError(
                f"{store.uri(key)} holds another adapter: an adapter's name keeps its content for ever;"
                " delete it if nothing serves it, then promote again."
            )


def _why(card: Scorecard) -> str:
    base, tuned = card.models["base"], card.models["tuned"]
    return (
        f"Accuracy {tuned.accuracy:.1%} against the base's {base.accuracy:.1%} on {card.rows} held-out rows"
        f" (p {card.comparison.p_value:.2g})."
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    raise SystemExit(command(PromoteConfig, run))
