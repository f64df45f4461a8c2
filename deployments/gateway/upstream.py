"""Upstreams: where a request goes. A Serve application by its handle, or an OpenAI-compatible URL."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from cluster import sse
from cluster.contracts import Target, UpstreamError, UpstreamRequest
from deployments.gateway.errors import ApiError, from_upstream, overloaded

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger("ray.serve")
#: The code of an error that another replica may not have.
REPLICA_FAILED = "replica_failed"
#: Codes of a replica or an engine that died over a request: another one may do it.
DIED = frozenset({REPLICA_FAILED, "engine_stopped"})
_PATHS = {"chat": "/chat/completions", "completions": "/completions", "embeddings": "/embeddings"}
_WORD = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")
_STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


class Upstreams:
    """Opens streams to targets and keeps what can be reused: handles and connections."""

    def __init__(self, timeout_s: float, key_variables: Mapping[str, str]) -> None:
        self._timeout_s = timeout_s
        self._key_variables = key_variables
        self._handles: dict[tuple[str, str], Any] = {}
        self._client: httpx.AsyncClient | None = None

    async def chunks(
        self, target: Target, request: UpstreamRequest
    ) -> AsyncGenerator[list[dict[str, Any]], None]:
        """OpenAI's chunks as the target sends them, those that came together in one list.

        Closing this generator aborts the generation. Raises ApiError, also in mid-stream.
        """
        source = self._from_url(target, request) if target.base_url else self._from_handle(target, request)
        async with aclosing(source):
            async for item in _parsed(_not_silent(source, self._timeout_s)):
                yield item

    async def close(self) -> None:
        """Give connections back."""
        if self._client is not None:
            await self._client.aclose()

    async def _from_handle(self, target: Target, request: UpstreamRequest) -> AsyncGenerator[bytes, None]:
        from grpc.aio import AioRpcError
        from ray.exceptions import RayError
        from ray.serve.exceptions import (
            BackPressureError,
            DeploymentUnavailableError,
            RayServeException,
        )

        body = request.body
        if request.endpoint != "embeddings":
            body = body | {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        handle = await self._handle(target)
        # Replicas that have the adapter already are preferred.
        adapter = target.model if ":" in target.model else ""
        stream = handle.options(stream=True, method_name="stream", multiplexed_model_id=adapter).remote(
            request.model_copy(update={"body": body}).model_dump()
        )
        try:
            async for item in stream:
                yield item
        except BackPressureError:
            raise overloaded(f"The model `{target.application}`") from None
        except DeploymentUnavailableError:
            raise ApiError(
                503, "The model is not available now.", kind="server_error", retry_after_s=5
            ) from None
        except (RayError, RayServeException, AioRpcError) as error:
            raise _replica_failed(error, request) from None
        finally:
            stream.cancel()

    async def _handle(self, target: Target) -> Any:
        from ray import serve
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        name = (target.deployment or "", target.application or "")
        if name not in self._handles:
            try:
                # Asks the controller, so it may not run on the event loop.
                self._handles[name] = await asyncio.to_thread(serve.get_deployment_handle, *name)
            except (RayError, RayServeException):
                raise ApiError(
                    503, "The model is not deployed now.", kind="server_error", retry_after_s=5
                ) from None
        return self._handles[name]

    async def _from_url(self, target: Target, request: UpstreamRequest) -> AsyncGenerator[bytes, None]:
        import httpx

        if self._client is None:
            # How many requests may be at work is said elsewhere: else the 101st would wait for a connection.
            unlimited = httpx.Limits(max_connections=None, max_keepalive_connections=100)
            self._client = httpx.AsyncClient(timeout=self._timeout_s, limits=unlimited)
        url = (target.base_url or "").rstrip("/")
        headers = {"x-request-id": request.request_id}
        if (variable := self._key_variables.get(target.base_url or "")) is not None:
            headers["authorization"] = f"Bearer {os.environ.get(variable, '')}"
        body = request.body | (_STREAMED if request.endpoint != "embeddings" else {})
        if request.output_bound is not None:
            body["max_completion_tokens"] = request.output_bound
        try:
            async with self._client.stream(
                "POST", url + _PATHS[request.endpoint], json=body, headers=headers
            ) as answer:
                if answer.status_code != 200:
                    raise _refused(answer.status_code, await answer.aread())
                if request.endpoint == "embeddings":
                    yield sse.encode(_vectors(await answer.aread()))
                    return
                async for item in answer.aiter_bytes():
                    yield item
        except httpx.HTTPError:
            raise ApiError(502, "The model's server does not answer.", kind="server_error") from None


async def _not_silent(source: AsyncIterator[bytes], timeout_s: float) -> AsyncIterator[bytes]:
    while True:
        try:
            async with asyncio.timeout(timeout_s):
                item = await anext(source)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise ApiError(
                504, f"The model was silent for {timeout_s:g} seconds.", kind="server_error"
            ) from None
        yield item


async def _parsed(source: AsyncIterator[bytes]) -> AsyncIterator[list[dict[str, Any]]]:
    reader = sse.EventReader()
    async for item in source:
        chunks: list[dict[str, Any]] = []
        for event in reader.feed(item):
            if event.name == "error":
                if chunks:
                    yield chunks
                raise _told(event.data)
            if event.data == "[DONE]":
                continue
            chunk = _chunk(event.data)
            if "error" in chunk:  # An OpenAI-compatible server that fails in mid-stream.
                raise _broke()
            chunks.append(chunk)
        if chunks:
            yield chunks


def _told(data: str) -> ApiError:
    """The error that a replica sends last. Other servers have events of that name, in forms of their own."""
    try:
        return from_upstream(UpstreamError.model_validate_json(data))
    except ValidationError:
        return _broke()


def _broke() -> ApiError:
    return ApiError(502, "The model's server failed while it answered.", kind="server_error")


def _chunk(data: str) -> dict[str, Any]:
    """One event's JSON. Half a surrogate pair, which nobody could write out again, becomes a question mark.

    Raises ApiError 502 for what is none.
    """
    try:
        chunk = json.loads(data)
        if "\\ud" in data or "\\uD" in data:
            chunk = json.loads(json.dumps(chunk, ensure_ascii=False).encode(errors="replace"))
    except (ValueError, RecursionError):
        chunk = None
    if not isinstance(chunk, dict):
        raise ApiError(502, "The model's server sent what is no OpenAI stream.", kind="server_error")
    return chunk


def _vectors(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ApiError(502, "The model's server did not answer in JSON.", kind="server_error")
    return found


def _replica_failed(error: Exception, request: UpstreamRequest) -> ApiError:
    """A replica that died or broke: another one may do it. Its own log has the reason."""
    logger.warning("Request %s: the model's replica failed (%s).", request.request_id, type(error).__name__)
    return ApiError(
        503,
        "The model's replica failed; please try again.",
        kind="server_error",
        code=REPLICA_FAILED,
        retry_after_s=1,
    )


def _refused(status: int, body: bytes) -> ApiError:
    """An error answer of another server: the client's own mistakes are passed on, the rest is not."""
    if status in (400, 404, 422):
        try:
            error = json.loads(body)["error"]
            return ApiError(
                status, str(error["message"]), param=_word(error.get("param")), code=_word(error.get("code"))
            )
        except (ValueError, KeyError, TypeError):
            return ApiError(status, "The model's server does not take this request.")
    if status in (429, 503):
        return overloaded("The model's server")
    return ApiError(502, "The model's server failed on this request.", kind="server_error")


def _word(said: object) -> str | None:
    """A code or a path as it may stand in records and labels: vLLM's server sends its status as the code."""
    return said if isinstance(said, str) and _WORD.fullmatch(said) else None
