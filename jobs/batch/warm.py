"""The warm engine: a deployed model application, reached by its Serve handle.

The gateway is the only door over HTTP; a batch goes past the door, not past the guards: it runs the same
policy on what it sends and on what comes back.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.contracts import Principal, StreamItem, Target, UpstreamError, UpstreamRequest
from cluster.errors import UnavailableError
from jobs.batch.failures import DEATHS, POISON, REPLICA_FAILED, STALLED, TIMEOUT, UNAVAILABLE, stored_code
from jobs.batch.guarding import BatchGuards, judged_answer, refused
from jobs.batch.lanes import Lanes
from jobs.batch.rows import Answer, BatchRequest
from jobs.batch.upstream import UpstreamFailedError, collect

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle


#: A row under which the engine died so often, the last times alone, is asked no more.
POISON_DEATHS = 3


@dataclass(eq=False)
class _Flight:
    """One try of one row. Times are the loop's, in seconds."""

    limit: asyncio.Timeout
    began: float
    last: float
    begun: bool = False
    stalled: bool = False


class WarmEngine:
    """Asks rows of one target, at most ``concurrency`` at a time.

    What a failure leads to depends on what it tells. Of the request (400, too long): none is tried again. Of
    overload, or of a time-out while the engine gives signs of life: ``attempts`` tries, with growing pauses.
    Of an engine that is silent altogether: tries do not count, until ``outage_s``. Of an engine that died:
    the rows in flight are asked again a few at a time, then alone; the row that goes on killing it is poison.

    :param target: pinned at submission; all rows go to it.
    :param attempts: tries a row.
    :param timeout_s: seconds for one try, queueing in the engine included.
    :param stall_s: seconds without a token after which a try is given up: without one of its own if it had
        begun, without one from the whole engine if it had not.
    :param outage_s: seconds without a sign of life after which :meth:`answers` raises UnavailableError.
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
        stall_s: float,
        outage_s: float,
    ) -> None:
        self._target, self._guards, self._principal = target, guards, principal
        self._concurrency, self._attempts, self._timeout_s = concurrency, attempts, timeout_s
        self._stall_s, self._outage_s = stall_s, outage_s
        self._lanes = Lanes((concurrency, max(1, concurrency // 8), 1))
        self._flights: set[_Flight] = set()
        self._asking = 0
        self._alive_at = self._left_at = time.monotonic()
        #: Seconds that were left out of all times so far.
        self._excused_s = 0.0
        self._handle = _handle(target)

    def answers(self, requests: Iterable[BatchRequest]) -> Iterator[dict[str, Any]]:
        """Stored rows in the order in which they finish; each request gives exactly one.

        Raises UnavailableError when the engine is away for too long.
        """
        source, tasks = iter(requests), set[asyncio.Task[Answer]]()
        with asyncio.Runner() as runner:
            loop = runner.get_loop()
            self._alive_at = self._left_at = loop.time()
            watch = loop.create_task(self._watch())

            async def turn() -> list[Answer]:
                self._go_on(loop.time() - self._left_at)
                while len(tasks) < self._concurrency and (request := next(source, None)) is not None:
                    tasks.add(loop.create_task(self._answer(request)))
                if not tasks:
                    return []
                await asyncio.wait({*tasks, watch}, return_when=asyncio.FIRST_COMPLETED)
                if watch.done():
                    watch.result()
                done = [task for task in tasks if task.done()]
                tasks.difference_update(done)
                self._left_at = loop.time()
                return [task.result() for task in done]

            while finished := runner.run(turn()):
                for answer in finished:
                    yield answer.columns()

    async def _answer(self, request: BatchRequest) -> Answer:
        asked = await self._guards.request(request)
        if asked.blocked:
            return refused(request, asked)
        request, started = request.with_body(asked.body), time.monotonic()
        if not self._asking:
            self._alive_at = asyncio.get_running_loop().time()  # Silence counts from the first request on.
        self._asking += 1
        try:
            body = await self._ask(request)
        except UpstreamFailedError as failure:
            return Answer(
                request,
                "failed",
                input_findings=asked.findings,
                error_code=stored_code(failure.error),
                error_message=failure.error.message,
                seconds=time.monotonic() - started,
            )
        finally:
            self._asking -= 1
        seconds = time.monotonic() - started
        return judged_answer(request, asked, await self._guards.answer(request, body), seconds)

    async def _ask(self, request: BatchRequest) -> dict[str, Any]:
        tries = deaths = 0
        while True:
            async with self._lanes.enter(min(deaths, 2)):
                began = asyncio.get_running_loop().time()
                try:
                    return await self._ask_once(request)
                except UpstreamFailedError as failure:
                    if not failure.retriable:
                        raise
                    if failure.error.code in DEATHS:
                        deaths += 1
                        if deaths == POISON_DEATHS:
                            raise _poison() from None
                    elif self._alive_at >= began:
                        tries += 1
                        if tries == self._attempts:
                            raise
            # Spread out, so that rows refused together do not come back together.
            pause = random.uniform(0.5, 1.0) * min(2.0 ** max(tries, 1), 30.0)  # noqa: S311
            await asyncio.sleep(pause)

    async def _ask_once(self, request: BatchRequest) -> dict[str, Any]:
        from ray.exceptions import RayActorError, RayError
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
        now = asyncio.get_running_loop().time()
        flight = _Flight(asyncio.timeout_at(now + self._timeout_s), now, now)
        stream = self._handle.remote(upstream.model_dump(mode="json"))
        self._flights.add(flight)
        try:
            async with flight.limit:
                return await collect(self._noted(stream, flight))
        except TimeoutError:
            stream.cancel()
            if flight.stalled:
                raise _failed(504, f"No token in {self._stall_s:g} s.", STALLED) from None
            raise _failed(504, f"No answer in {self._timeout_s:g} s.", TIMEOUT) from None
        except (RayError, RayServeException) as error:
            code = REPLICA_FAILED if isinstance(error, RayActorError) else UNAVAILABLE
            raise _failed(503, f"The model's replica failed ({type(error).__name__}).", code) from None
        finally:
            self._flights.discard(flight)

    async def _noted(self, stream: AsyncIterable[StreamItem], flight: _Flight) -> AsyncIterator[StreamItem]:
        """The same items; each is a sign of life of the engine, and of this try."""
        loop = asyncio.get_running_loop()
        async for item in stream:
            self._alive_at = flight.last = loop.time()
            flight.begun = True
            yield item

    # The watchdog

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        pause_s = min(1.0, self._stall_s / 4)
        while True:
            excused_s, began = self._excused_s, loop.time()
            await asyncio.sleep(pause_s)
            now = loop.time()
            # A process that stood still, with its machine perhaps, has heard nobody: that was no silence.
            self._go_on(now - began - pause_s - (self._excused_s - excused_s))
            silent = now - self._alive_at
            if self._asking and silent > self._outage_s:
                raise UnavailableError(
                    f"The model application {self._target.application!r} gave no sign of life for"
                    f" {silent:.0f} s: look at `manta status`, then run this again; answered rows are kept."
                )
            for flight in self._flights:
                quiet = now - flight.last > self._stall_s
                if quiet and (flight.begun or silent > self._stall_s) and not flight.limit.expired():
                    flight.stalled = True
                    flight.limit.reschedule(now)

    def _go_on(self, paused: float) -> None:
        """Leave out of all times how long the loop stood still, as while finished rows are taken away."""
        if paused < 1.0:
            return
        self._excused_s += paused
        self._alive_at += paused
        for flight in self._flights:
            flight.last += paused
            if not flight.limit.expired() and (when := flight.limit.when()) is not None:
                flight.limit.reschedule(when + paused)


def _failed(status: int, message: str, code: str) -> UpstreamFailedError:
    return UpstreamFailedError(UpstreamError(status=status, message=message, code=code))


def _poison() -> UpstreamFailedError:
    return _failed(
        500,
        f"The engine died {POISON_DEATHS} times while it worked on this row, at last on it alone.",
        POISON,
    )


def check_running(target: Target) -> None:
    """Raises UnavailableError unless the target's application runs on this cluster, or soon will again."""
    _handle(target)


def _handle(target: Target) -> DeploymentHandle:
    """Raises UnavailableError if there is no such application, or none that will come to run by itself."""
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.schema import ApplicationStatus

    try:
        known = serve.status().applications
    except RayError as error:
        raise UnavailableError(
            f"Ray Serve does not say what runs ({type(error).__name__}): look at `manta status`, then run"
            " this again; answered rows are kept."
        ) from None
    application = known.get(str(target.application))
    # One whose replica has just died is unhealthy until Serve has started another: requests wait for that.
    serves = (ApplicationStatus.RUNNING, ApplicationStatus.UNHEALTHY, ApplicationStatus.DEPLOYING)
    if (
        application is None
        or application.status not in serves
        or target.deployment not in application.deployments
    ):
        state = "not deployed" if application is None else application.status.value
        begun = application is not None and application.status == ApplicationStatus.DEPLOYING
        remedy = "run this again when it is RUNNING" if begun else "deploy it with `manta deploy`"
        raise UnavailableError(f"The model application {target.application!r} is {state}: {remedy}.")
    handle = serve.get_deployment_handle(str(target.deployment), app_name=str(target.application))
    return handle.options(stream=True, method_name="stream")
