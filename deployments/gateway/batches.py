"""``/v1/batches``: what was asked for goes on record here; the batch workers do it.

A batch pins its guard policy when it is made. SQL is asked in threads, by these endpoints alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cluster.contracts import ApiKey
from cluster.contracts.batches import BatchEndpoint, BatchRecord, BatchStatus, BatchTerms
from deployments.gateway.body import read_object, typed
from deployments.gateway.errors import ApiError, from_validation
from deployments.gateway.threads import in_thread
from deployments.gateway.view import View

if TYPE_CHECKING:
    from cluster.batches import BatchRepository
    from cluster.files import FileRepository

_WINDOW = timedelta(hours=24)
_TELL_S = 0.5


class Workers(Protocol):
    """The batch workers; what they are told may get lost."""

    def wake(self) -> None:
        """There is work."""
        ...

    def step_back(self) -> None:
        """Interactive requests are at work."""
        ...


async def tell_when_busy(at_work: Callable[[], int], workers: Workers) -> None:
    """Tell the workers, again and again, while interactive requests are at work. Until cancelled."""
    while True:
        if at_work():
            workers.step_back()
        await asyncio.sleep(_TELL_S)


class BatchRequest(BaseModel):
    """Body of ``POST /v1/batches``."""

    model_config = ConfigDict(extra="forbid")

    input_file_id: str = Field(max_length=64)
    endpoint: BatchEndpoint
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = Field(None, max_length=16)

    def check_metadata(self) -> None:
        """Raises ApiError 400 for a name or value that is too long."""
        for name, value in (self.metadata or {}).items():
            if len(name) > 64 or len(value) > 512:
                raise ApiError(
                    400,
                    "'metadata' takes names of up to 64 and values of up to 512 characters.",
                    param=f"metadata.{name[:64]}",
                )


class ListQuery(BaseModel):
    """Query of ``GET /v1/batches``."""

    model_config = ConfigDict(extra="forbid")

    after: str | None = Field(None, max_length=64)
    limit: int = Field(20, ge=1, le=100)


class Batches:
    """The endpoints.

    :param authenticate: the key of who asks and the view that knows it; raises ApiError 401.
    :param read_body: the whole body; raises ApiError 413.
    :param wake: tells a worker that there is work.
    """

    def __init__(
        self,
        authenticate: Callable[[Request], tuple[ApiKey, View]],
        read_body: Callable[[Request], Awaitable[bytes]],
        wake: Callable[[], None],
    ) -> None:
        self._authenticate = authenticate
        self._read_body = read_body
        self._wake = wake

    @property
    def routes(self) -> list[Route]:
        """For the application."""
        return [
            Route("/v1/batches", self.create, methods=["POST"]),
            Route("/v1/batches", self.list, methods=["GET"]),
            Route("/v1/batches/{batch_id}", self.retrieve, methods=["GET"]),
            Route("/v1/batches/{batch_id}/cancel", self.cancel, methods=["POST"]),
        ]

    async def create(self, request: Request) -> Response:
        """``POST /v1/batches``."""
        self._authenticate(request)
        content = read_object(await self._read_body(request))
        key, view = self._authenticate(request)
        wanted = typed(content, BatchRequest)
        wanted.check_metadata()
        terms = await in_thread(lambda: self._terms(key, view, wanted))
        record = await in_thread(lambda: self._repository.create(terms))
        self._wake()
        return JSONResponse(card(record))

    async def list(self, request: Request) -> Response:
        """``GET /v1/batches``."""
        key, _ = self._authenticate(request)
        try:
            query = ListQuery.model_validate(dict(request.query_params))
        except ValidationError as error:
            raise from_validation(error) from None
        found = await in_thread(
            lambda: self._repository.list(key.team, after=query.after, limit=query.limit + 1)
        )
        data = [card(record) for record in found[: query.limit]]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
        more = len(found) > query.limit
        return JSONResponse({"object": "list", "data": data, **ends, "has_more": more})

    async def retrieve(self, request: Request) -> Response:
        """``GET /v1/batches/{id}``."""
        key, _ = self._authenticate(request)
        batch_id = request.path_params["batch_id"]
        return JSONResponse(card(await in_thread(lambda: self._repository.get(batch_id, key.team))))

    async def cancel(self, request: Request) -> Response:
        """``POST /v1/batches/{id}/cancel``."""
        key, _ = self._authenticate(request)
        batch_id = request.path_params["batch_id"]
        record = await in_thread(lambda: self._repository.cancel(batch_id, key.team))
        self._wake()
        return JSONResponse(card(record))

    def _terms(self, key: ApiKey, view: View, wanted: BatchRequest) -> BatchTerms:
        """What goes on record. Raises ApiError, MantaError."""
        from cluster.batches import new_batch_id
        from deployments.gateway.steps import find_route

        file = self._files.get(wanted.input_file_id, key.team)
        if file.purpose != "batch" or file.endpoint is None or file.model is None:
            raise ApiError(
                400,
                f"File {file.id} is for '{file.purpose}', not for 'batch'.",
                param="input_file_id",
                code="invalid_file_purpose",
            )
        if file.endpoint != wanted.endpoint:
            raise ApiError(
                400,
                f"The lines of {file.id} are for {file.endpoint}, not for {wanted.endpoint}.",
                param="endpoint",
                code="mismatched_endpoint",
            )
        route = find_route(view, key, file.model)
        now = datetime.now(UTC)
        return BatchTerms(
            id=new_batch_id(),
            team=key.team,
            tenant=key.tenant,
            key_id=key.id,
            endpoint=wanted.endpoint,
            input_file_id=file.id,
            model=file.model,
            policy=view.engine(key, route).policy.document(),
            metadata=wanted.metadata or {},
            created_at=now,
            expires_at=now + _WINDOW,
        )

    @cached_property
    def _repository(self) -> BatchRepository:
        from cluster.batches import BatchRepository
        from cluster.settings import load_settings

        return BatchRepository(load_settings().database_url)

    @cached_property
    def _files(self) -> FileRepository:
        from cluster.files import FileRepository
        from cluster.settings import load_settings

        return FileRepository(load_settings().database_url)


def card(record: BatchRecord) -> dict[str, Any]:
    """OpenAI's batch object."""
    errors = [error.model_dump() for error in record.errors]
    reached = {f"{status}_at": int(when.timestamp()) for status, when in record.reached.items()}
    reached.pop(f"{BatchStatus.VALIDATING}_at", None)  # That is when it was made.
    usage = record.usage
    return {
        "id": record.id,
        "object": "batch",
        "endpoint": record.endpoint,
        "model": record.model,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": record.input_file_id,
        "completion_window": "24h",
        "status": record.status.value,
        "output_file_id": record.output_file_id,
        "error_file_id": record.error_file_id,
        "created_at": int(record.created_at.timestamp()),
        "expires_at": int(record.expires_at.timestamp()),
        **reached,
        "request_counts": {
            "total": record.total,
            "completed": record.completed,
            "failed": record.failed,
        },
        "usage": {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        },
        "metadata": record.metadata or None,
    }
