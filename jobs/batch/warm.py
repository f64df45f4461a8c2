"""The warm engine: a deployed model application, reached by its Serve handle.

The gateway is the only door over HTTP; a batch goes past the door, not past the guards: it runs the same
policy on what it sends and on what comes back.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from cluster.contracts import Principal, Target, UpstreamError, UpstreamRequest
from cluster.errors import UnavailableError
from jobs.batch.guarding import BatchGuards, judged_answer, refused
from jobs.batch.rows import Answer, BatchRequest
from jobs.batch.upstream import UpstreamFailedError, collect

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle


class WarmEngine:
    """Asks rows of one target, at most ``concurrency`` at a time.

    :param target: pinned at submission; all rows go to it.
    :param attempts: tries a row, with a growing pause between them.
    :param timeout_s: seconds for one try, queueing in the engine included.
    """

    def __init__(
        self,
        target: Target,
        guards: BatchGuards,
        principal: Principal,
        *,
        concurrency: int,
        attempts: int,
        timeout_s: float,
    ) -> None:
        self._target, self._guards, self._principal = target, guards, principal
        self._concurrency, self._attempts, self._timeout_s = concurrency, attempts, timeout_s
        self._handle = _handle(target)

    def answers(self, requests: Iterable[BatchRequest]) -> Iterator[dict[str, Any]]:
        """Stored rows in the order in which they finish; each request gives exactly one."""
        source, tasks = iter(requests), set[asyncio.Task[Answer]]()
        with asyncio.Runner() as runner:
            loop = runner.get_loop()

            async def turn() -> list[Answer]:
                while len(tasks) < self._concurrency and (request := next(source, None)) is not None:
                    tasks.add(loop.create_task(self._answer(request)))
                if not tasks:
                    return []
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                tasks.difference_update(done)
                return [task.result() for task in done]

            while finished := runner.run(turn()):
                for answer in finished:
                    yield answer.columns()

    async def _answer(self, request: BatchRequest) -> Answer:
        asked = await self._guards.request(request)
        if asked.blocked:
            return refused(request, asked)
        request, started = request.with_body(asked.body), time.monotonic()
        try:
            body = await self._ask(request)
        except UpstreamFailedError as failure:
            return Answer(
                request,
                "failed",
                input_findings=asked.findings,
                error_code=failure.error.code or failure.error.type,
                error_message=failure.error.message,
                seconds=time.monotonic() - started,
            )
        seconds = time.monotonic() - started
        return judged_answer(request, asked, await self._guards.answer(request, body), seconds)

    async def _ask(self, request: BatchRequest) -> dict[str, Any]:
        for attempt in range(1, self._attempts + 1):
            try:
                return await self._ask_once(request)
            except UpstreamFailedError as failure:
                if attempt == self._attempts or not failure.retriable:
                    raise
            # Spread out, so that rows refused together do not come back together.
            await asyncio.sleep(random.uniform(0.5, 1.0) * min(2.0**attempt, 30.0))  # noqa: S311
        raise AssertionError("unreachable")

    async def _ask_once(self, request: BatchRequest) -> dict[str, Any]:
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        upstream = UpstreamRequest(
            request_id=f"batch-{request.row_id}",
            endpoint=request.endpoint,
            body={
                **request.body,
                "model": self._target.model,
                "stream": True,  # A replica always streams; without this it would not count tokens.
                "stream_options": {"include_usage": True},
            },
            principal=self._principal,
        )
        stream = self._handle.remote(upstream.model_dump(mode="json"))
        try:
            async with asyncio.timeout(self._timeout_s):
                return await collect(stream)
        except TimeoutError:
            stream.cancel()
            message = f"No answer in {self._timeout_s:g} s."
            raise UpstreamFailedError(UpstreamError(status=504, message=message, code="timeout")) from None
        except (RayError, RayServeException) as error:
            message = f"The model's replica failed ({type(error).__name__})."
            raise UpstreamFailedError(
                UpstreamError(status=503, message=message, code="replica_failed")
            ) from None


def _handle(target: Target) -> DeploymentHandle:
    from ray import serve
    from ray.serve.schema import ApplicationStatus

    known = serve.status().applications
    application = known.get(str(target.application))
    if application is None or application.status != ApplicationStatus.RUNNING:
        state = "not deployed" if application is None else application.status.value
        raise UnavailableError(
            f"The model application {target.application!r} is {state}: deploy it with `manta deploy`."
        )
    handle = serve.get_deployment_handle(str(target.deployment), app_name=str(target.application))
    return handle.options(stream=True, method_name="stream")
