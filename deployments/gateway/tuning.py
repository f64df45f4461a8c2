"""``/v1/fine_tuning/jobs``: what was asked for goes on record here; the workers behind the gateway do it.

SQL is asked in threads, by these endpoints alone.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cluster.contracts import ApiKey
from cluster.contracts import Route as ModelRoute
from cluster.contracts.tuning import TuningEvent, TuningRecord, TuningStatus, TuningTerms
from deployments.gateway.body import read_object
from deployments.gateway.errors import ApiError, unknown_model
from deployments.gateway.threads import in_thread
from deployments.gateway.tuning_request import TuningRequest, parse_query, parse_request
from deployments.gateway.view import View

if TYPE_CHECKING:
    from cluster.files import FileRepository
    from cluster.tuning import TuningRepository

#: OpenAI's own least number of examples.
_FEWEST = 10


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
            Route("/v1/models/{model:path}", self.delete_model, methods=["DELETE"]),
        ]

    async def create(self, request: Request) -> Response:
        """``POST /v1/fine_tuning/jobs``."""
        self._authenticate(request)
        content = read_object(await self._read_body(request))
        key, view = self._authenticate(request)
        wanted = parse_request(content)
        _check_model(_route(view, key, wanted.model))
        terms = await in_thread(lambda: self._terms(key, wanted))
        record = await in_thread(lambda: self._repository.create(terms))
        self._wake()
        return JSONResponse(card(record))

    async def list(self, request: Request) -> Response:
        """``GET /v1/fine_tuning/jobs``."""
        key, _ = self._authenticate(request)
        query, metadata = parse_query(request.query_params)
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
        record, (query, _) = await self._find(request), parse_query(request.query_params)
        found = await in_thread(
            lambda: self._repository.events(record.id, after=query.after, limit=query.limit + 1)
        )
        return _page([_event(event) for event in found], query.limit)

    async def checkpoints(self, request: Request) -> Response:
        """``GET /v1/fine_tuning/jobs/{id}/checkpoints``: the last step's, which is served."""
        record, (query, _) = await self._find(request), parse_query(request.query_params)
        found = [_checkpoint(record)] if record.status is TuningStatus.SUCCEEDED else []
        return _page([item for item in found if item["id"] != query.after], query.limit)

    async def delete_model(self, request: Request) -> Response:
        """``DELETE /v1/models/{id}``: of a model that was tuned here; again, it says the same."""
        from deployments.gateway.steps import may_use

        key, view = self._authenticate(request)
        name = request.path_params["model"]
        route = view.routes.get(name)
        if route is not None and route.base is None and may_use(key, route):
            raise ApiError(
                403,
                f"Model {name} was not tuned by /v1/fine_tuning/jobs: only such models can be deleted here.",
                code="insufficient_permissions",
                param="model",
            )
        record = await in_thread(lambda: self._repository.find_tuned(name, key.team))
        if record is None or not (key.models is None or {name, record.model} & set(key.models)):
            raise unknown_model(name)
        await in_thread(lambda: self._delete(record))
        self._wake()
        return JSONResponse({"id": name, "object": "model", "deleted": True})

    def _delete(self, record: TuningRecord) -> None:
        """SQL first: should this be interrupted, a worker does the rest."""
        from cluster.storage import object_store
        from deployments.tuning.publishing import withdraw

        deleted = self._repository.delete_tuned(record.id, record.team)
        withdraw(deleted, object_store(), fence=record.deleted_at is None)

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
            method=wanted.tuned_by,
            hyperparameters=wanted.asked,
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
        "hyperparameters": hyperparameters if record.method == "supervised" else None,  # As OpenAI has it.
        "method": {"type": record.method, record.method: {"hyperparameters": hyperparameters}},
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
