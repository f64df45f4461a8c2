"""``/v1/fine_tuning/jobs``: what was asked for goes on record here; the workers behind the gateway do it.

SQL is asked in threads, by these endpoints alone.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core.core_schema import ValidatorFunctionWrapHandler
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cluster.contracts import ApiKey
from cluster.contracts import Route as ModelRoute
from cluster.contracts.tuning import (
    TuningEvent,
    TuningHyperparameters,
    TuningRecord,
    TuningStatus,
    TuningTerms,
)
from deployments.gateway.body import read_object, typed
from deployments.gateway.errors import ApiError, from_validation
from deployments.gateway.threads import in_thread
from deployments.gateway.view import View

if TYPE_CHECKING:
    from cluster.files import FileRepository
    from cluster.tuning import TuningRepository

#: OpenAI's own least number of examples.
_FEWEST = 10
_METADATA = re.compile(r"metadata\[(.+)\]")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Hyperparameters(_Part):
    """How it learns."""

    n_epochs: Literal["auto"] | int = "auto"
    batch_size: Literal["auto"] | int = "auto"
    learning_rate_multiplier: Literal["auto"] | float = "auto"

    @field_validator("n_epochs", "batch_size", "learning_rate_multiplier", mode="wrap")
    @classmethod
    def _auto_or_a_number(cls, value: object, handler: ValidatorFunctionWrapHandler, info: Any) -> Any:
        whole = info.field_name != "learning_rate_multiplier"
        most = {"n_epochs": 50, "batch_size": 256}.get(info.field_name, 100)
        wanted = f"must be 'auto' or a {'whole number from 1' if whole else 'number over 0'} to {most}"
        try:
            number = handler(value)
        except ValidationError:
            raise ValueError(wanted) from None
        if number != "auto" and not (1 if whole else 1e-6) <= number <= most:
            raise ValueError(wanted)
        return number


class MethodSettings(_Part):
    """Of one method."""

    hyperparameters: Hyperparameters | None = None


class Method(_Part):
    """How it is tuned."""

    type: Literal["supervised"]
    supervised: MethodSettings | None = None


class TuningRequest(_Part):
    """Body of ``POST /v1/fine_tuning/jobs``."""

    model: str = Field(min_length=1, max_length=256)
    training_file: str = Field(max_length=64)
    validation_file: str | None = Field(None, max_length=64)
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    suffix: str | None = Field(None, min_length=1, max_length=64)
    seed: int | None = Field(None, ge=0, lt=2**31)
    metadata: dict[str, str] | None = Field(None, max_length=16)

    @field_validator("suffix")
    @classmethod
    def _fits_a_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9._-]+", value):
            raise ValueError("use letters, digits, '.', '_' and '-', for it becomes a part of a model's name")
        return value

    @field_validator("metadata")
    @classmethod
    def _short(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        if any(len(name) > 64 or len(text) > 512 for name, text in (value or {}).items()):
            raise ValueError("names have up to 64 and values up to 512 characters")
        return value


class ListQuery(BaseModel):
    """Query of a list."""

    model_config = ConfigDict(extra="forbid")

    after: str | None = Field(None, max_length=64)
    limit: int = Field(20, ge=1, le=100)


class Tuning:
    """The endpoints.

    :param authenticate: the key of who asks and the view that knows it; raises ApiError 401.
    :param read_body: the whole body; raises ApiError 413.
    :param wake: tells a worker that there is work.
    :param most_open: a team's jobs that may be under way or queued; gateways that race may let in a few more.
    """

    def __init__(
        self,
        authenticate: Callable[[Request], tuple[ApiKey, View]],
        read_body: Callable[[Request], Awaitable[bytes]],
        wake: Callable[[], None],
        most_open: int,
    ) -> None:
        self._authenticate = authenticate
        self._read_body = read_body
        self._wake = wake
        self._most_open = most_open

    @property
    def routes(self) -> list[Route]:
        """For the application."""
        one = "/v1/fine_tuning/jobs/{job_id}"
        return [
            Route("/v1/fine_tuning/jobs", self.create, methods=["POST"]),
            Route("/v1/fine_tuning/jobs", self.list, methods=["GET"]),
            Route(one, self.retrieve, methods=["GET"]),
            Route(f"{one}/cancel", self.cancel, methods=["POST"]),
            Route(f"{one}/pause", self.cannot_wait, methods=["POST"]),
            Route(f"{one}/resume", self.cannot_wait, methods=["POST"]),
            Route(f"{one}/events", self.events, methods=["GET"]),
            Route(f"{one}/checkpoints", self.checkpoints, methods=["GET"]),
        ]

    async def create(self, request: Request) -> Response:
        """``POST /v1/fine_tuning/jobs``."""
        self._authenticate(request)
        content = read_object(await self._read_body(request))
        key, view = self._authenticate(request)
        wanted = _typed(content)
        _check_model(_route(view, key, wanted.model))
        terms = await in_thread(lambda: self._terms(key, wanted))
        record = await in_thread(lambda: self._repository.create(terms))
        self._wake()
        return JSONResponse(card(record))

    async def list(self, request: Request) -> Response:
        """``GET /v1/fine_tuning/jobs``."""
        key, _ = self._authenticate(request)
        query, metadata = _query(request.query_params)
        found = await in_thread(
            lambda: self._repository.list(
                key.team, after=query.after, limit=query.limit + 1, metadata=metadata
            )
        )
        return _page([card(record) for record in found], query.limit)

    async def retrieve(self, request: Request) -> Response:
        """``GET /v1/fine_tuning/jobs/{id}``."""
        return JSONResponse(card(await self._find(request)))

    async def cancel(self, request: Request) -> Response:
        """``POST /v1/fine_tuning/jobs/{id}/cancel``."""
        key, _ = self._authenticate(request)
        job_id = request.path_params["job_id"]
        record = await in_thread(lambda: self._repository.cancel(job_id, key.team))
        self._wake()
        return JSONResponse(card(record))

    async def cannot_wait(self, request: Request) -> Response:
        """``POST /v1/fine_tuning/jobs/{id}/pause`` and ``resume``."""
        record = await self._find(request)
        raise ApiError(
            400,
            f"Job {record.id} cannot be paused or resumed: that is not supported here; it can be cancelled.",
            code="unsupported_operation",
        )

    async def events(self, request: Request) -> Response:
        """``GET /v1/fine_tuning/jobs/{id}/events``."""
        record, (query, _) = await self._find(request), _query(request.query_params)
        found = await in_thread(
            lambda: self._repository.events(record.id, after=query.after, limit=query.limit + 1)
        )
        return _page([_event(event) for event in found], query.limit)

    async def checkpoints(self, request: Request) -> Response:
        """``GET /v1/fine_tuning/jobs/{id}/checkpoints``: the last step's, which is served."""
        record, (query, _) = await self._find(request), _query(request.query_params)
        found = [_checkpoint(record)] if record.status is TuningStatus.SUCCEEDED else []
        return _page([item for item in found if item["id"] != query.after], query.limit)

    async def _find(self, request: Request) -> TuningRecord:
        key, _ = self._authenticate(request)
        job_id = request.path_params["job_id"]
        return await in_thread(lambda: self._repository.get(job_id, key.team))

    def _terms(self, key: ApiKey, wanted: TuningRequest) -> TuningTerms:
        """What goes on record. Raises ApiError, MantaError."""
        from cluster.tuning import new_tuning_id

        self._check_file(key, wanted.training_file, "training_file", _FEWEST)
        if wanted.validation_file is not None:
            self._check_file(key, wanted.validation_file, "validation_file", 1)
        if self._repository.count_open(key.team) >= self._most_open:
            raise ApiError(
                429,
                f"Team {key.team} has {self._most_open} fine-tuning jobs that have not ended, and may have "
                "no more: wait for one, or cancel it.",
                kind="requests",
                code="rate_limit_exceeded",
                headers={"x-should-retry": "false"},  # Trainings take long.
            )
        return TuningTerms(
            id=new_tuning_id(),
            team=key.team,
            tenant=key.tenant,
            key_id=key.id,
            model=wanted.model,
            training_file=wanted.training_file,
            validation_file=wanted.validation_file,
            hyperparameters=_asked(wanted),
            suffix=wanted.suffix,
            seed=secrets.randbelow(2**31) if wanted.seed is None else wanted.seed,
            metadata=wanted.metadata or {},
            created_at=datetime.now(UTC),
        )

    def _check_file(self, key: ApiKey, file_id: str, param: str, fewest: int) -> None:
        file = self._files.get(file_id, key.team)
        if file.purpose != "fine-tune":
            message = f"File {file.id} is for '{file.purpose}', not for 'fine-tune'."
            raise ApiError(400, message, param=param, code="invalid_file_purpose")
        if file.lines < fewest:
            message = f"File {file.id} has {file.lines} example(s), but must have at least {fewest}."
            raise ApiError(400, message, param=param, code="invalid_n_examples")

    @cached_property
    def _repository(self) -> TuningRepository:
        from cluster.settings import load_settings
        from cluster.tuning import TuningRepository

        return TuningRepository(load_settings().database_url)

    @cached_property
    def _files(self) -> FileRepository:
        from cluster.files import FileRepository
        from cluster.settings import load_settings

        return FileRepository(load_settings().database_url)


def _typed(content: dict[str, Any]) -> TuningRequest:
    """The body. What of OpenAI's is not done here is refused by name. Raises ApiError 400."""
    said = dict(content)
    if said.pop("integrations", None):
        raise ApiError(
            400,
            "Integrations are not supported here: leave them out, and read the job's events instead.",
            param="integrations",
            code="unsupported_parameter",
        )
    method = said.get("method")
    kind = method.get("type") if isinstance(method, dict) else None
    if kind in ("dpo", "reinforcement"):
        raise ApiError(
            400,
            f"Method '{kind}' is not supported here: models are tuned by 'supervised'.",
            param="method.type",
            code="unsupported_value",
        )
    return typed(said, TuningRequest)


def _asked(wanted: TuningRequest) -> TuningHyperparameters:
    """Hyperparameters, where the method's own go before the older ones. Raises ApiError 400."""
    settings = wanted.method.supervised if wanted.method else None
    of_method = settings.hyperparameters if settings else None
    found = of_method or wanted.hyperparameters or Hyperparameters()
    return TuningHyperparameters(**found.model_dump())


def _route(view: View, key: ApiKey, model: str) -> ModelRoute:
    from deployments.gateway.steps import find_route

    return find_route(view, key, model)


def _check_model(route: ModelRoute) -> None:
    """Raises ApiError 400 for a model to which no adapter can be added."""
    target = route.targets[0]
    if len(route.targets) == 1 and target.application and target.model_version is None:
        return
    raise ApiError(
        400,
        f"Model {route.model} is not available for fine-tuning: "
        "it must be a base model that one application here serves.",
        param="model",
        code="model_not_available",
    )


def _query(params: Mapping[str, str]) -> tuple[ListQuery, dict[str, str]]:
    """Paging, and the filter by metadata. Raises ApiError 400."""
    plain, metadata = dict[str, str](), dict[str, str]()
    for name, value in params.items():
        if found := _METADATA.fullmatch(name):
            metadata[found[1]] = value
        else:
            plain[name] = value
    try:
        return ListQuery.model_validate(plain), metadata
    except ValidationError as error:
        raise from_validation(error) from None


def _page(cards: list[dict[str, Any]], limit: int) -> Response:
    return JSONResponse({"object": "list", "data": cards[:limit], "has_more": len(cards) > limit})


def card(record: TuningRecord) -> dict[str, Any]:
    """OpenAI's fine-tuning job object."""
    hyperparameters = (record.chosen or record.hyperparameters).model_dump()
    succeeded = record.status is TuningStatus.SUCCEEDED
    return {
        "id": record.id,
        "object": "fine_tuning.job",
        "created_at": int(record.created_at.timestamp()),
        "finished_at": _seconds(record.finished_at),
        "estimated_finish": None if record.finished_at else _seconds(record.estimated_finish),
        "model": record.model,
        "fine_tuned_model": record.tuned_name if succeeded else None,
        "organization_id": record.team,
        "status": record.status.value,
        "training_file": record.training_file,
        "validation_file": record.validation_file,
        "result_files": record.result_files if succeeded else [],
        "trained_tokens": record.trained_tokens,
        "hyperparameters": hyperparameters,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "seed": record.seed,
        "integrations": [],
        "metadata": record.metadata or None,
        "error": record.error.model_dump() if record.error else None,
    }


def _event(event: TuningEvent) -> dict[str, Any]:
    return {
        "id": event.id,
        "object": "fine_tuning.job.event",
        "created_at": int(event.created_at.timestamp()),
        "level": event.level,
        "message": event.message,
        "type": event.type,
        "data": event.data,
    }


def _checkpoint(record: TuningRecord) -> dict[str, Any]:
    metrics = {
        "step": record.steps,
        "train_loss": record.last_loss,
        "full_valid_loss": record.valid_loss,
    }
    return {
        "id": f"ftckpt-{record.id.removeprefix('ftjob-')}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": _seconds(record.finished_at),
        "fine_tuned_model_checkpoint": record.tuned_name,
        "fine_tuning_job_id": record.id,
        "step_number": record.steps,
        "metrics": {name: value for name, value in metrics.items() if value is not None},
    }


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
