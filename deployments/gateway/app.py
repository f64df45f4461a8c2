"""The gateway's ASGI application: routes, what follows from each failure, and the request id."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.contracts import KeyTerms
from cluster.contracts import Route as ModelRoute
from cluster.contracts.request import ChatBody, CompletionBody, EmbeddingBody
from deployments.gateway.admin import KeyAdmin, Rotation
from deployments.gateway.answer import Answer
from deployments.gateway.assembly import Assembled
from deployments.gateway.batches import Batches, BatchRequest, Workers, tell_when_busy
from deployments.gateway.call import Caller
from deployments.gateway.dialect import Dialect, Embeddings, OpenAi, Writer
from deployments.gateway.errors import ApiError
from deployments.gateway.feedback import MAX_BYTES, Feedback, FeedbackBody
from deployments.gateway.files import Files
from deployments.gateway.messages import Messages, MessagesBody
from deployments.gateway.openapi import document
from deployments.gateway.pipeline import Pipeline
from deployments.gateway.record import CLIENT_LEFT
from deployments.gateway.responses import Responses, ResponsesBody
from deployments.gateway.steps import find_route, may_use
from deployments.gateway.tuning import Tuning
from deployments.gateway.tuning_request import TuningRequest

logger = logging.getLogger("ray.serve")
#: What is posted where, as the OpenAPI document has it. Messages and responses become chats.
BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    "/v1/embeddings": EmbeddingBody,
    "/v1/messages": MessagesBody,
    "/v1/responses": ResponsesBody,
    "/v1/feedback": FeedbackBody,
    "/v1/batches": BatchRequest,
    "/v1/fine_tuning/jobs": TuningRequest,
    "/admin/keys": KeyTerms,
    "/admin/keys/{id}/rotate": Rotation,
}
_UNSOUND = re.compile(r"[^A-Za-z0-9._:-]")


def make_app(assembled: Assembled, workers: Workers, *, behind_proxy: bool) -> ASGIApp:
    """The whole application around one pipeline.

    :param assembled: it is started and stopped with the application.
    :param workers: what does batches.
    :param behind_proxy: whether Serve's proxy stands before it, which tells clients the request id.
    """
    pipeline = assembled.pipeline

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with assembled.running():
            telling = asyncio.create_task(tell_when_busy(lambda: pipeline.at_work, workers))
            yield
            telling.cancel()

    doors = Doors(pipeline, Feedback(assembled.sink, assembled.limiter))
    asked = (
        lambda request: pipeline.authenticate(caller_of(request)),
        lambda request: read_body(request, pipeline.args.max_body_bytes),
        workers.wake,
    )
    batches, tuning = Batches(*asked), Tuning(*asked, pipeline.args.tuning.open_jobs_of_a_team)
    files = Files(pipeline.args, lambda request: pipeline.authenticate(caller_of(request))[0])
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", Generation(pipeline, partial(OpenAi, "chat")), methods=["POST"]),
            Route("/v1/completions", Generation(pipeline, partial(OpenAi, "completions")), methods=["POST"]),
            Route("/v1/responses", Generation(pipeline, Responses), methods=["POST"]),
            Route("/v1/messages", Generation(pipeline, Messages), methods=["POST"]),
            Route("/v1/embeddings", doors.embeddings, methods=["POST"]),
            Route("/v1/models", doors.models, methods=["GET"]),
            Route("/v1/models/{model:path}", doors.model, methods=["GET"]),
            Route("/v1/feedback", doors.feedback, methods=["POST"]),
            *files.routes,
            *batches.routes,
            *tuning.routes,
            Route("/healthz", doors.health, methods=["GET"]),
            Route("/openapi.json", doors.openapi, methods=["GET"]),
            *KeyAdmin(pipeline, lambda asked: pipeline.authenticate(caller_of(asked))[0], read_body).routes(),
        ],
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_exception,
            ClientDisconnect: _nobody_there,
            Exception: _unforeseen,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return RequestId(app, tell=not behind_proxy)


class Generation:
    """``POST`` of a request that generates. An ASGI app: one coroutine owns the request to its end."""

    def __init__(self, pipeline: Pipeline, dialect: Callable[[], Dialect]) -> None:
        self._pipeline = pipeline
        self._dialect = dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        dialect = scope["state"]["dialect"] = self._dialect()  # Failures are told in it too.
        request_id: str = scope["state"]["request_id"]
        limit = self._pipeline.args.max_body_bytes
        async with self._pipeline.open(
            dialect, request_id, caller_of(request), lambda: read_body(request, limit)
        ) as call:
            answer = Answer(call.endpoint, request_id, call.route.model, call.body.n)
            writer = dialect.writer(answer)
            async with aclosing(self._pipeline.respond(call, answer)) as source:
                first = await anext(source)  # A failure until here is a plain error answer.
                headers = call.headers
                if call.body.stream:
                    await _send_stream(first, source, writer, headers, send)
                else:
                    await JSONResponse(writer.whole(first[0]), headers=headers)(scope, receive, send)


async def _send_stream(
    first: list[dict[str, Any]],
    source: AsyncIterator[list[dict[str, Any]]],
    writer: Writer,
    headers: Mapping[str, str],
    send: Send,
) -> None:
    plain = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
    more = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 200, "headers": plain + more})
    try:
        await _send_part(writer.feed(first), send)
        async for chunks in source:
            await _send_part(writer.feed(chunks), send)
        last = writer.end()
    except ApiError as error:
        last = writer.failed(error)
    except Exception:
        logger.exception("A stream failed")
        last = writer.failed(_internal())
    await send({"type": "http.response.body", "body": last, "more_body": False})


async def _send_part(data: bytes, send: Send) -> None:
    if data:
        await send({"type": "http.response.body", "body": data, "more_body": True})


class Doors:
    """The endpoints that generate no text."""

    def __init__(self, pipeline: Pipeline, feedback: Feedback) -> None:
        self._pipeline = pipeline
        self._feedback = feedback

    async def models(self, request: Request) -> JSONResponse:
        """``GET /v1/models``: the models that this key may use."""
        key, view = self._pipeline.authenticate(caller_of(request))
        mine = [route for route in view.routes.values() if may_use(key, route)]
        return JSONResponse({"object": "list", "data": [_card(route) for route in mine]})

    async def model(self, request: Request) -> JSONResponse:
        """``GET /v1/models/{id}``."""
        key, view = self._pipeline.authenticate(caller_of(request))
        return JSONResponse(_card(find_route(view, key, request.path_params["model"])))

    async def feedback(self, request: Request) -> JSONResponse:
        """``POST /v1/feedback``: a rating of an earlier answer."""
        self._pipeline.authenticate(caller_of(request))
        raw = await read_body(request, MAX_BYTES)
        key, view = self._pipeline.authenticate(caller_of(request))  # It may be revoked since.
        return await self._feedback.take(raw, request.state.request_id, key, view)

    async def embeddings(self, request: Request) -> JSONResponse:
        """``POST /v1/embeddings``."""
        limit = self._pipeline.args.max_body_bytes
        async with self._pipeline.open(
            Embeddings(),
            request.scope["state"]["request_id"],
            caller_of(request),
            lambda: read_body(request, limit),
        ) as call:
            return JSONResponse(await self._pipeline.embed(call), headers=call.headers)

    async def health(self, _: Request) -> JSONResponse:
        """``GET /healthz``: 200 once the gateway has a snapshot; needs no key."""
        return JSONResponse({"status": "ok", "snapshot": self._pipeline.poller.view.number})

    async def openapi(self, _: Request) -> JSONResponse:
        """``GET /openapi.json``: what can be asked here; needs no key."""
        return JSONResponse(document(BODIES))


def caller_of(request: Request) -> Caller:
    """Who asks, as far as HTTP tells; not what ``X-Forwarded-For`` claims, which anybody can write."""
    headers = request.headers
    authorization = headers.get("authorization")
    if authorization is None and (key := headers.get("x-api-key")):  # As Anthropic's clients send it.
        authorization = f"Bearer {key}"
    return Caller(
        authorization,
        request.client.host if request.client else "",
        headers.get("traceparent"),
        headers.get("tracestate"),
    )


def _card(route: ModelRoute) -> dict[str, Any]:
    return {
        "id": route.model,
        "object": "model",
        "created": int(route.created_at.timestamp()),
        "owned_by": route.owned_by,
    }


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body. Raises ApiError 413 as soon as it is longer than ``limit`` bytes."""
    too_large = ApiError(413, f"The request body may be at most {limit} bytes.", code="request_too_large")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise too_large
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise too_large
    return bytes(body)


class RequestId:
    """Gives every request an id, the client's own if it sent one, and every answer ``x-request-id``.

    :param tell: whether to put it on answers; Serve's proxy does that itself.
    """

    def __init__(self, app: ASGIApp, tell: bool) -> None:
        self._app = app
        self._tell = tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, marked."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = next(
            (value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), ""
        )
        # It goes into logs and to engines: no quotes, no line ends, no megabytes.
        request_id = _UNSOUND.sub("_", sent)[:128] or f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        await self._app(scope, receive, tell if self._tell else send)


def _internal() -> ApiError:
    return ApiError(500, "The server had an error while processing your request.", kind="server_error")


def _response(error: ApiError, request: Request) -> JSONResponse:
    state = request.scope["state"]
    dialect: Dialect | None = state.get("dialect")
    body = error.body if dialect is None else dialect.error(error, state["request_id"])
    return JSONResponse(body, status_code=error.status, headers=error.headers)


async def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return _response(error, request)


async def _nobody_there(request: Request, error: Exception) -> Response:
    """The client went away while it sent its body. Nobody reads this."""
    return Response(status_code=CLIENT_LEFT)


async def _unforeseen(request: Request, error: Exception) -> JSONResponse:
    """A bug: its traceback goes to the log (Starlette raises it again), nothing of it to the client."""
    return _response(_internal(), request)


async def _http_exception(request: Request, error: Exception) -> JSONResponse:
    """Starlette's own: unknown routes and wrong methods."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        return _response(ApiError(404, f"Invalid URL ({where}).", code="unknown_url"), request)
    if error.status_code == 405:
        return _response(ApiError(405, f"Not allowed to {where}.", code="method_not_supported"), request)
    return _response(ApiError(error.status_code, error.detail), request)
