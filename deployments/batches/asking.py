"""One row of a batch, asked as any request is: key, limits, guards, model, guards, record."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import replace
from typing import Any, Literal

from cluster.contracts.batches import BatchRecord
from deployments.batches.parts import Done, Row, response_line
from deployments.gateway.answer import Answer
from deployments.gateway.call import Caller
from deployments.gateway.dialect import Embeddings, OpenAi
from deployments.gateway.errors import GUARD_UNAVAILABLE, ApiError
from deployments.gateway.pipeline import Pipeline
from deployments.gateway.upstream import DIED
from validation.guards import GuardEngine

logger = logging.getLogger("ray.serve")
_GENERATES: dict[str, Literal["chat", "completions"]] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
}
#: Failures that may be the row's own fault: tried again, but not for ever.
_TRIED_AGAIN = (500, 502, 504)
_LONGEST_PAUSE_S = 30.0
#: Answers that a guard cannot judge now, until the row is given up: with the pauses, some ten minutes.
_MOST_UNJUDGED = 25
_INTERNAL = ApiError(500, "The server had an error while processing your request.", kind="server_error")


class KeyEndedError(Exception):
    """The batch's key is no longer good."""


class Asker:
    """Asks the rows of one batch.

    :param engine: guards of the policy that the batch has pinned.
    :param attempts: most tries of a row that fails in the model. One that finds no place waits as long as it
        takes.
    :param suspects: held by a row under which a replica died while it is tried again: so the one that kills
        them takes no other with it twice.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        record: BatchRecord,
        engine: GuardEngine,
        attempts: int,
        suspects: asyncio.Lock,
    ) -> None:
        self._pipeline, self._attempts, self._suspects = pipeline, attempts, suspects
        self._endpoint = _GENERATES.get(record.endpoint)
        self._caller = Caller(key_id=record.key_id, engine=engine, asks_again=False)

    async def ask(self, row: Row) -> Done:
        """The row's end. Raises KeyEndedError."""
        request_id, tries, unjudged, pause_s = f"batch_req_{secrets.token_hex(12)}", 0, 0, 0.5
        attempt = 0
        place: AbstractAsyncContextManager[None] = nullcontext()
        while True:
            attempt += 1
            try:
                async with place:
                    return await self._once(row, request_id, attempt)
            except ApiError as error:
                if error.status == 401:
                    raise KeyEndedError(error.message) from None
                failed = error.status in _TRIED_AGAIN or error.code in DIED
                unjudged += error.code == GUARD_UNAVAILABLE
                if unjudged >= _MOST_UNJUDGED:  # It may be this row's own text that a guard fails on.
                    failed, tries = True, self._attempts
                tries += failed
                place = self._suspects if error.code in DIED else place
                waits = error.status == 503 or (error.status == 429 and error.retry_after_s is not None)
                if (failed and tries >= self._attempts) or not (failed or waits):
                    line = response_line(row, request_id, error.status, error.body)
                    return Done(row.custom_id, False, 0, 0, line)
                wait_s = error.retry_after_s or 0
            except Exception:  # A bug that this row meets must not cost the others.
                logger.exception("Row %s failed", request_id)
                tries += 1
                if tries >= self._attempts:
                    line = response_line(row, request_id, 500, _INTERNAL.body)
                    return Done(row.custom_id, False, 0, 0, line)
                wait_s = 0
            # Spread out, so that rows refused together do not come back together.
            await asyncio.sleep(max(wait_s, pause_s) * random.uniform(0.75, 1.25))  # noqa: S311
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _once(self, row: Row, request_id: str, attempt: int) -> Done:
        async def body() -> bytes:
            return row.body

        caller = replace(self._caller, attempt=attempt)
        whole = (
            await self._embedded(caller, request_id, body)
            if self._endpoint is None
            else (await self._generated(OpenAi(self._endpoint), caller, request_id, body))
        )
        usage = whole.get("usage") or {}
        return Done(
            row.custom_id,
            True,
            int(usage.get("prompt_tokens") or 0),
            int(usage.get("completion_tokens") or 0),
            response_line(row, request_id, 200, whole),
        )

    async def _generated(
        self, dialect: OpenAi, caller: Caller, request_id: str, body: Callable[[], Awaitable[bytes]]
    ) -> dict[str, Any]:
        async with self._pipeline.open(dialect, request_id, caller, body) as call:
            answer = Answer(dialect.endpoint, request_id, call.route.model, call.body.n)
            async with aclosing(self._pipeline.respond(call, answer)) as source:
                (whole,) = await anext(source)
        return whole

    async def _embedded(
        self, caller: Caller, request_id: str, body: Callable[[], Awaitable[bytes]]
    ) -> dict[str, Any]:
        async with self._pipeline.open(Embeddings(), request_id, caller, body) as call:
            return await self._pipeline.embed(call)
