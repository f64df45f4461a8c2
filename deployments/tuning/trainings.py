"""Trainings as Ray jobs, under ids that follow from the fine-tuning jobs', so that each runs once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from cluster.contracts.files import FileRecord
from cluster.contracts.tuning import TuningHyperparameters, TuningRecord
from cluster.errors import NotFoundError, RefusedError, UsageError
from cluster.storage import ObjectStore
from deployments.gateway.args import TuningArgs
from deployments.package import jobs_environment
from deployments.tuning.choosing import batches

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from cluster.job.submit import JobOutcome

#: vLLM's own, where the application names none.
_USUAL_RANK = 16


@dataclass(frozen=True)
class Base:
    """What an application that is tuned serves."""

    #: Of the base model's artifact.
    address: str
    #: Key prefix below which it looks for adapters.
    adapters: str
    max_rank: int


@dataclass(frozen=True)
class Order:
    """All that a training needs to know."""

    record: TuningRecord
    base: Base
    training_file: FileRecord
    validation_file: FileRecord | None


class Trainings(Protocol):
    """Where models are trained. Every method raises UnavailableError while that does not answer."""

    def base(self, application: str) -> Base:
        """What an application serves. Raises RefusedError if it takes no adapters, or is not there."""
        ...

    def submit(self, order: Order) -> None:
        """Begin; nothing happens if it has begun."""
        ...

    def retire(self, record: TuningRecord, submission_id: str) -> None:
        """Begin to take away what came of it; nothing happens if it has begun."""
        ...

    def outcome(self, submission_id: str) -> JobOutcome | None:
        """How it stands; None if it has never begun, or the cluster that knew of it is lost."""
        ...

    def stop(self, submission_id: str) -> None:
        """End it, if it runs."""
        ...


class RayTrainings:
    """On the cluster of this process.

    :param team: below whose folder applications look for adapters.
    """

    def __init__(self, args: TuningArgs, store: ObjectStore, team: str) -> None:
        self._args, self._store, self._team = args, store, team

    def base(self, application: str) -> Base:
        """See :class:`Trainings`."""
        from cluster.ray_api import RayApi, read_token

        found = RayApi(_address(), read_token()).applications().get(application) or {}
        return base_of(application, found.get("deployed_app_config") or {}, self._store, self._team)

    def submit(self, order: Order) -> None:
        """See :class:`Trainings`."""
        record = order.record
        self._send(record, record.submission_id, "tune", words(order, self._args))

    def retire(self, record: TuningRecord, submission_id: str) -> None:
        """See :class:`Trainings`."""
        self._send(record, submission_id, "retire", retire_words(record))

    def _send(self, record: TuningRecord, submission_id: str, verb: str, words: list[str]) -> None:
        """As its team's and key's."""
        from cluster.job.submit import send

        environment = jobs_environment(self._store)
        principal = {"MANTA_TEAM": record.team, "MANTA_USER": record.key_id}
        environment["env_vars"] = {**environment.get("env_vars", {}), **principal}
        try:
            send(
                self._client(),
                ["python", "-m", f"jobs.{verb}", *words, "--json"],
                environment,
                submission_id=submission_id,
                metadata={"verb": verb, "team": record.team, "user": record.key_id},
            )
        except RefusedError:
            if self.outcome(submission_id) is None:
                raise

    def outcome(self, submission_id: str) -> JobOutcome | None:
        """See :class:`Trainings`."""
        from cluster.job.submit import outcome

        try:
            return outcome(submission_id, self._client())
        except NotFoundError:
            return None

    def stop(self, submission_id: str) -> None:
        """See :class:`Trainings`."""
        from cluster.job.submit import stop

        stop(submission_id, self._client())

    def _client(self) -> JobSubmissionClient:
        from cluster.job.submit import connect

        return connect(_address())


def _address() -> str:
    """The API server's URL: the environment's, else that of the cluster which this process belongs to."""
    import ray
    from ray.dashboard.utils import ray_address_to_api_server_url

    from cluster.ray_api import named_address

    return named_address() or ray_address_to_api_server_url(ray.get_runtime_context().gcs_address)


def base_of(application: str, config: Mapping[str, Any], store: ObjectStore, team: str) -> Base:
    """What the application deployed with ``config`` serves. Raises RefusedError if it takes no adapters."""
    args = config.get("args") or {}
    llm = args.get("llm_config") or {}
    engine = llm.get("engine_kwargs") or {}
    if not args.get("model") or not engine.get("enable_lora"):
        raise RefusedError(
            f"Application {application} takes no adapters: it is not there, "
            "or its llm_config.engine_kwargs.enable_lora is not set."
        )
    folder = (llm.get("lora_config") or {}).get("dynamic_lora_loading_path")
    try:
        adapters = store.key(folder).strip("/") if folder else f"{team}/adapters"
    except UsageError as error:  # Another bucket: what is trained here cannot be put there.
        raise RefusedError(f"Application {application} takes no adapters of ours: {error}") from None
    return Base(args["model"], f"{adapters}/", int(engine.get("max_lora_rank") or _USUAL_RANK))


def words(order: Order, args: TuningArgs) -> list[str]:
    """Arguments of ``python -m jobs.tune``; the same ones for every attempt, so that it resumes."""
    record, chosen = order.record, order.record.chosen or TuningHyperparameters()
    workers, rows, passes = batches(chosen, args)
    assert isinstance(chosen.learning_rate_multiplier, float | int)
    usual = args.dpo_learning_rate if record.method == "dpo" else args.learning_rate
    training = {
        "learning_rate": usual * chosen.learning_rate_multiplier,
        "num_train_epochs": chosen.n_epochs,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": passes,
        "max_length": args.max_length,
        "seed": record.seed,
        "logging_steps": 1,
        "save_steps": args.save_steps,
    }
    rank = min(args.lora_rank, order.base.max_rank)
    fields: dict[str, Any] = {
        "training_file": _file(order.training_file),
        "validation_file": order.validation_file and _file(order.validation_file),
        "training": training,
        "lora": {"r": rank, "lora_alpha": 2 * rank},
        "resources_per_worker": args.resources_per_worker,
        "dpo": {"beta": chosen.beta} if record.method == "dpo" else None,
    }
    plain = [
        *(("--method", record.method) if record.method == "dpo" else ()),
        *("--name", record.id),
        *("--base_model", order.base.address),
        *("--adapters", order.base.adapters),
        *("--num_workers", str(workers)),
    ]
    return plain + [
        word
        for name, value in fields.items()
        if value is not None
        for word in (f"--{name}", json.dumps(value))
    ]


def retire_words(record: TuningRecord) -> list[str]:
    """Arguments of ``python -m jobs.retire``; the registered model bears the job's id."""
    deleted = record.deleted_at is not None
    why = f"{record.tuned_name} was deleted" if deleted else f"{record.id} is {record.status.value}"
    return ["--name", record.id, "--version", "all", "--why", why]


def _file(record: FileRecord) -> dict[str, str]:
    return {"key": record.key, "sha256": record.sha256}
