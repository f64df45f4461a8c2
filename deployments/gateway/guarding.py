"""Input guards: before the model begins, or, where the policy says ``input: parallel``, beside its beginning.

What may redact always judges first, for the model must not see what was cut out. All else may judge while
the model reads the prompt: its first token waits for the verdict, and a refusal aborts the generation.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any

from cluster.contracts import Action, Direction
from cluster.errors import UsageError
from deployments.gateway.errors import ApiError, guard_unavailable
from deployments.gateway.record import RequestRecord
from validation.guards import BodyVerdict, GuardContext, GuardEngine, Placeholders, judge_request

#: Which policy judged: ``name@version;sha256=digest``.
POLICY_HEADER = "x-guard-policy"
Chunks = list[dict[str, Any]]


async def judge_input(
    engine: GuardEngine,
    body: Mapping[str, Any],
    context: GuardContext,
    record: RequestRecord,
    placeholders: Placeholders | None = None,
) -> dict[str, Any]:
    """The body that may go to the model, redacted.

    Raises ApiError 400 with code ``content_filter`` for what the policy blocks, and 503 if a guard could not
    judge.
    """
    try:
        verdict = await judge_request(engine, body, context, placeholders)
    except UsageError as error:
        raise ApiError(400, str(error)) from None
    record.note(verdict.findings, Direction.INPUT)
    if verdict.blocked:
        raise _refusal(verdict)
    record.guarded_s = record.now_s()
    return verdict.body


def _refusal(verdict: BodyVerdict) -> ApiError:
    if verdict.failed:
        return guard_unavailable(verdict.reason)
    where = next((f.path for f in verdict.findings if f.action is Action.BLOCK and not f.shadow), None)
    return ApiError(400, f"Your request was blocked: {verdict.reason}", code="content_filter", param=where)


async def released_by(
    verdict: Coroutine[Any, Any, Any], source: AsyncGenerator[Chunks, None]
) -> AsyncGenerator[Chunks, None]:
    """What ``source`` yields, from when the verdict is there; the source begins first.

    Raises what the verdict raises, at once, and ends the source.
    """

    async def begin() -> Chunks | None:
        return await anext(source, None)

    async with aclosing(source):
        tasks = first, judging = asyncio.ensure_future(begin()), asyncio.ensure_future(verdict)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            await judging
            chunks = await first
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if chunks is None:
            return
        yield chunks
        async for chunks in source:
            yield chunks
