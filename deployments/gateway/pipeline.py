"""The life of a request, step by step: each step is one function on typed values.

    authenticate -> take a place, the key's and the gateway's -> parse -> find the route and its policy
    -> limits -> reserve the key's tokens and money -> prompt template -> input guards -> choose a target
    -> upstream -> output guards on the stream -> respond; beside it, when it is over: the observers of its
    record.

No step is optional: there is no way to a model that does not pass the guards. A stream and a whole answer
are made from the same guarded chunks.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager
from decimal import Decimal
from typing import Any

from starlette.requests import ClientDisconnect

from cluster.contracts import (
    ApiKey,
    Direction,
    UpstreamRequest,
)
from cluster.contracts.request import Body, EmbeddingBody
from deployments.gateway.answer import Answer, Assembly, embeddings
from deployments.gateway.args import GatewayArgs
from deployments.gateway.budget import Budgets
from deployments.gateway.call import Call, Caller, Estimate
from deployments.gateway.dialect import Reader, TypedBody
from deployments.gateway.errors import ApiError, overloaded
from deployments.gateway.guarding import POLICY_HEADER, released_by
from deployments.gateway.joining import joined
from deployments.gateway.limits import Limiter
from deployments.gateway.output import GuardedAnswer
from deployments.gateway.record import CLIENT_LEFT, Observer, RequestRecord, end
from deployments.gateway.steps import (
    authenticate,
    bound_output,
    choose_target,
    estimate_tokens,
    find_route,
    for_the_engine,
    guard_input,
    guard_input_beside,
    put_prompt,
    tokens_used,
    users_of,
)
from deployments.gateway.throttle import FailedAuthentications
from deployments.gateway.upstream import DIED, Upstreams
from deployments.gateway.view import Poller, View
from validation.guards import Placeholders

#: A body that is still being sent costs its bytes only.
_READ_FOR_EACH_PLACE = 4


class Pipeline:
    """One replica's pipeline; shared by all of its requests."""

    def __init__(
        self,
        args: GatewayArgs,
        poller: Poller,
        upstreams: Upstreams,
        limiter: Limiter,
        budgets: Budgets,
        observers: Sequence[Observer],
        keeps_answer: Callable[[RequestRecord], bool] = lambda record: False,
    ) -> None:
        self.args = args
        self.poller = poller
        self.budgets = budgets
        self._limiter = limiter
        self._failures = FailedAuthentications(args.max_failed_authentications)
        self._upstreams = upstreams
        self._observers = observers
        self._keeps_answer = keeps_answer
        #: Requests that have a place now.
        self.at_work = 0
        self._being_read = 0

    def authenticate(self, caller: Caller) -> tuple[ApiKey, View]:
        """The key of who asks, and the view that knows it.

        Raises ApiError 401, or 429 for a client that has failed too often; a good key is never refused.
        """
        view = self.poller.view
        if caller.key_id is not None:
            return view.key_of(caller.key_id), view
        try:
            return authenticate(caller.authorization, view), view
        except ApiError:
            self._failures.note(caller.address)
            raise

    @asynccontextmanager
    async def open(
        self,
        dialect: Reader[TypedBody],
        request_id: str,
        caller: Caller,
        read_body: Callable[[], Awaitable[bytes]],
    ) -> AsyncGenerator[Call[TypedBody], None]:
        """From what came over HTTP to a call that may go to a model; it has a place among those at work.

        Raises ApiError. Leaving the context ends the request, whatever became of it.
        """
        record = RequestRecord(request_id, dialect.name, caller.traceparent, caller.tracestate)
        record.attempt = caller.attempt
        with ExitStack() as stack:
            stack.callback(end, record, self._observers)
            with _telling(record):
                call = await self._call(record, dialect, caller, read_body, stack)
                call = await guard_input(call)
            yield call

    async def _call(
        self,
        record: RequestRecord,
        dialect: Reader[TypedBody],
        caller: Caller,
        read_body: Callable[[], Awaitable[bytes]],
        stack: ExitStack,
    ) -> Call[TypedBody]:
        """The typed request, its key's limits taken until ``stack`` is left. Raises ApiError."""
        # Before a body of megabytes is read and judged.
        record.key, _ = self.authenticate(caller)
        admission = stack.enter_context(self._limiter.admit(record.key))
        raw = await self._read(read_body)
        stack.enter_context(self._place())
        record.key, view = self.authenticate(caller)  # Reading may take long; it may be revoked since.
        body = dialect.read(raw)
        record.stream = isinstance(body, Body) and body.stream
        record.model, record.users = body.model, users_of(body)
        record.route = find_route(view, record.key, body.model)
        record.cost = None if record.route.price is None else Decimal(0)
        bound = bound_output(body, record.key, record.route, self.args)
        estimate = estimate_tokens(raw, body, bound, self.args)
        admission.reserve_tokens(estimate.total)
        money = (record.key, record.route.price, estimate.prompt, estimate.most or 0)
        await self.budgets.ready(*money)
        hold = stack.enter_context(self.budgets.hold(*money))
        record.admitted_s = record.now_s()
        engine = caller.engine or view.engine(record.key, record.route)
        record.policy = engine.policy
        upstream_body, template = put_prompt(body, for_the_engine(body, bound), view, record)
        return Call(
            request_id=record.request_id,
            endpoint=dialect.endpoint,
            key=record.key,
            route=record.route,
            engine=engine,
            body=body,
            upstream_body=upstream_body,
            admission=admission,
            hold=hold,
            estimate=estimate,
            output_bound=bound,
            record=record,
            template=template,
            tries=(False, True) if caller.asks_again else (True,),
            placeholders=None if caller.key_id is not None else Placeholders(),
        )

    async def chunks(
        self, call: Call[Body], answer: Answer
    ) -> AsyncGenerator[list[list[dict[str, Any]]], None]:
        """Lists of guarded choices, one for each chunk; text that came together stays together.

        If the replica dies before the client can have got anything, another one is asked, once. Of a whole
        answer that is until its end.

        Closing this generator aborts the generation. Raises ApiError.
        """
        for last in call.tries:
            begun = False
            try:
                async with aclosing(self._generate(call, answer)) as source:
                    if call.body.stream:
                        async for released in source:
                            begun = True
                            yield released
                        return
                    whole = [released async for released in source]
            except ApiError as error:
                if last or begun or error.code not in DIED:
                    raise
                answer.begin_again()
                call.record.begin_again()
                continue
            for released in whole:
                yield released
            return

    async def _generate(
        self, call: Call[Body], answer: Answer
    ) -> AsyncGenerator[list[list[dict[str, Any]]], None]:
        """What one target says, guarded."""
        record = call.record
        guarded = GuardedAnswer(
            call.engine,
            call.context,
            call.body.choices,
            placeholders=call.placeholders,
            at_once=call.body.stream,
        )
        try:
            async with aclosing(self._let_through(call)) as source:
                async for chunks in source:
                    released = []
                    for chunk in chunks:
                        answer.note_usage(chunk)
                    for chunk in joined(chunks):
                        if choices := await guarded.feed(chunk):
                            released.append(choices)
                    if released:
                        record.last_s = record.now_s()
                        record.first_s = record.first_s or record.last_s
                        yield released
                    if guarded.cut_short:
                        return
            if guarded.unfinished():
                raise ApiError(502, "The model stopped before its answer was complete.", kind="server_error")
        finally:
            record.note(guarded.findings, Direction.OUTPUT)

    def _let_through(
        self, call: Call[Body] | Call[EmbeddingBody]
    ) -> AsyncGenerator[list[dict[str, Any]], None]:
        """What the model says, from when the guards that judge beside it let it. Raises ApiError."""
        if call.engine.beside is None or not call.unjudged:
            return self._ask(call)
        return released_by(guard_input_beside(call, call.engine.beside), self._ask(call))

    async def _ask(
        self, call: Call[Body] | Call[EmbeddingBody]
    ) -> AsyncGenerator[list[dict[str, Any]], None]:
        """What the model says, unjudged, from the target that the request goes to. Raises ApiError."""
        record = call.record
        record.target = target = choose_target(call.route.targets)
        request = UpstreamRequest(
            # Engines refuse an id that is at work already, and clients may repeat theirs.
            request_id=f"{call.request_id}-{uuid.uuid4().hex[:8]}",
            endpoint=call.endpoint,
            body=call.upstream_body | {"model": target.model},
            principal=call.principal,
            output_bound=call.output_bound if call.endpoint == "chat" else None,
        )
        record.sent_s = record.now_s()
        try:
            async with aclosing(self._upstreams.chunks(target, request)) as source:
                async for chunks in source:
                    record.answered_s = record.answered_s or record.now_s()
                    yield chunks
        except ApiError as error:
            # Clients know the model by its public name.
            error.message = error.message.replace(f"`{target.model}`", f"`{call.route.model}`")
            raise

    async def embed(self, call: Call[EmbeddingBody]) -> dict[str, Any]:
        """The vectors of the request's texts, in OpenAI's form. Raises ApiError."""
        record = call.record
        try:
            with _telling(record):
                for last in call.tries:  # Another replica is asked if one dies, once.
                    try:
                        async with aclosing(self._let_through(call)) as source:
                            found = [chunk async for chunks in source for chunk in chunks]
                        break
                    except ApiError as error:
                        if last or error.code not in DIED:
                            raise
                        record.begin_again()
                body = embeddings(found, call.route.model, len(call.body.inputs))
                record.usage = body["usage"]
                record.first_s = record.last_s = record.now_s()
                record.status = 200
                return body
        finally:
            used = int(record.usage.get("total_tokens") or 0)
            # Who goes away before the end had the engine work no less.
            used = used or (call.estimate.total if record.status in (200, CLIENT_LEFT) else 0)
            call.count(Estimate(prompt=used, answer=0))

    async def respond(self, call: Call[Body], answer: Answer) -> AsyncGenerator[list[dict[str, Any]], None]:
        """The chunks that a client gets, or the one whole answer: lists of JSON bodies."""
        record = call.record
        try:
            with _telling(record):
                async with aclosing(self.chunks(call, answer)) as source:
                    assembly = Assembly(call.endpoint)
                    if kept := not call.body.stream or self._keeps_answer(record):
                        record.released = assembly
                    async for released in source:
                        if kept:
                            for choices in released:
                                assembly.add(choices)
                        if call.body.stream:
                            yield [self._chunk(call, answer, choices) for choices in released]
                    record.status = 200
                    if not call.body.stream:
                        yield [answer.whole(assembly.choices())]
                    elif call.body.include_usage:
                        yield [answer.chunk([]) | {"usage": answer.usage}]
        finally:
            record.usage = answer.usage
            call.count(tokens_used(call.estimate, answer, record.status))

    def _chunk(self, call: Call[Body], answer: Answer, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = answer.chunk(choices)
        return chunk | {"usage": None} if call.body.include_usage else chunk

    async def _read(self, read_body: Callable[[], Awaitable[bytes]]) -> bytes:
        """The body. Who sends it slowly takes no place from those whose work can begin.

        Raises ApiError 408 for one that takes too long, 503 if too many are being sent.
        """
        if self._being_read >= _READ_FOR_EACH_PLACE * self.args.max_concurrent_requests:
            raise overloaded("The gateway")
        self._being_read += 1
        try:
            async with asyncio.timeout(self.args.body_timeout_s):
                return await read_body()
        except TimeoutError:
            raise ApiError(
                408, f"The request body did not arrive within {self.args.body_timeout_s:g} seconds."
            ) from None
        finally:
            self._being_read -= 1

    @contextmanager
    def _place(self) -> Generator[None]:
        if self.at_work >= self.args.max_concurrent_requests:
            raise overloaded("The gateway")
        self.at_work += 1
        try:
            yield
        finally:
            self.at_work -= 1


@contextmanager
def _telling(record: RequestRecord) -> Generator[None]:
    """Note how the steps inside fail. Whoever goes away sees no status, so none is noted."""
    try:
        yield
    except ApiError as error:
        record.status, record.error_code = error.status, error.code
        if record.policy is not None:
            error.add_header(POLICY_HEADER, record.policy.tag)
        raise
    except ClientDisconnect:
        raise
    except Exception:
        record.status = 500
        raise
