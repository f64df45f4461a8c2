"""The guard engine: one policy applied to complete texts and to streams, the same way everywhere.

Every guard of the policy judges, concurrently; ours in this process, packaged ones through
:class:`RemoteGuards`. A guard that raises or does not answer in time blocks (``on_error: closed``), and
says so by the label ``GUARD_ERROR``. What goes to the model is also judged as what its disguises hide
(:mod:`validation.guards.disguise`); what comes from it, as its stream would be. Neither findings nor log
lines ever hold the text.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import Field, SkipValidation

from cluster.contracts import Action, Finding, Principal, Segment
from cluster.contracts.base import Contract
from cluster.errors import UsageError
from validation.guards.breaker import Breaker, GuardUnavailableError
from validation.guards.disguise import Reading
from validation.guards.findings import (
    GUARD_ERROR,
    blocking_reason,
    finding_order,
    not_within,
    redactions,
    severest,
)
from validation.guards.inline import build_check, build_guard
from validation.guards.inline.system_prompt import SystemPromptGuard, system_text
from validation.guards.placeholders import Placeholders
from validation.guards.policy import GuardPolicy
from validation.guards.reading import (
    THREAD_FROM,
    TOOL_CALL,
    Windows,
    batches,
    in_thread,
    read,
    size_of,
    units_of,
)
from validation.guards.redact import Redactor, merge
from validation.guards.scan import Cursor, Hit, InlineGuard
from validation.guards.specs import GuardSpec, JsonSchemaSpec, PackagedSpec, SqlSpec
from validation.guards.times import GuardTimes

if TYPE_CHECKING:
    from validation.guards.stream import GuardStream

logger = logging.getLogger(__name__)

#: Units of one text that one packaged guard judges at a time.
REMOTE_AT_ONCE = 8


class GuardContext(Contract):
    """On whose behalf a text is judged."""

    request_id: str = Field("", description="x-request-id, for log lines.")
    principal: Principal | None = Field(None, description="Who asks.")
    system_text: str = Field("", description="The request's system prompt, which answers must not quote.")
    times: SkipValidation[GuardTimes] = Field(
        default_factory=GuardTimes, description="Where guards leave how long they took.", exclude=True
    )


class RemoteGuards(Protocol):
    """Where packaged validators run: a Serve deployment of their own, or, in a job, this process."""

    async def check(self, guard: str, policy_digest: str, segment: Segment) -> list[Finding]:
        """What the policy's guard of that name finds in ``segment``, in offsets of its text."""
        ...


class Verdict(Contract):
    """What follows for one text."""

    action: Action | None = Field(description="The severest enforced action; None if nothing was found.")
    text: str = Field(description="The original with redactions; empty if it is blocked.")
    findings: list[Finding] = Field(default_factory=list, description="Every finding, shadow ones included.")

    @property
    def blocked(self) -> bool:
        """True if the text must not go on."""
        return self.action is Action.BLOCK

    @property
    def reason(self) -> str:
        """See :func:`blocking_reason`."""
        return blocking_reason(self.findings)


@dataclass(frozen=True, slots=True)
class InlineSlot:
    """One of our guards in its place in the policy."""

    spec: GuardSpec
    guard: InlineGuard

    def reads(self, reading: Reading) -> bool:
        """Whether this guard judges that reading of a text."""
        return self.guard.readings == "words" or (self.guard.readings == "exact" and not reading.words)

    def cursor(self, context: GuardContext) -> Cursor:
        """Begin to read a text of that request."""
        if isinstance(self.guard, SystemPromptGuard):
            return self.guard.cursor(context.system_text)
        return self.guard.cursor()


#: Guards that judge complete units of a text, not patterns in it.
UnitSpec = PackagedSpec | JsonSchemaSpec | SqlSpec


class GuardEngine:
    """Applies one policy. Safe to share between requests: all state is the text's or the stream's."""

    def __init__(self, policy: GuardPolicy, remote: RemoteGuards | None = None) -> None:
        """Compile the policy.

        Raises UsageError if it has packaged guards and there is nowhere to run them.
        """
        self.policy = policy
        self.remote = remote
        self.inline: list[InlineSlot] = []
        #: Guards whose redactions of a request may be told to the client again.
        self.reversible = {spec.name for spec in policy.guards if getattr(spec, "reversible", False)}
        self.packaged: list[UnitSpec] = []
        #: Of those, what runs here, by the guard's name.
        self.checks: dict[str, Callable[[str], list[Hit]]] = {}
        for spec in policy.guards:
            if isinstance(spec, PackagedSpec):
                self.packaged.append(spec)
            elif isinstance(spec, JsonSchemaSpec | SqlSpec):
                self.packaged.append(spec)
                self.checks[spec.name] = build_check(spec)
            else:
                self.inline.append(InlineSlot(spec, build_guard(spec)))
        #: By name of the packaged guard.
        self.breakers = {spec.name: Breaker() for spec in self.packaged}
        elsewhere = [spec.name for spec in self.packaged if spec.name not in self.checks]
        if elsewhere and remote is None:
            raise UsageError(
                f"guard policy {policy.name}: guard {elsewhere[0]} is a packaged validator, "
                "which needs the guards deployment (or, in a job, PackagedGuards) to run in."
            )

    @cached_property
    def before(self) -> GuardEngine:
        """What judges a request before the model begins: all, or, in parallel mode, what may redact."""
        return self if self.beside is None else self._only(_redacts_input)

    @cached_property
    def beside(self) -> GuardEngine | None:
        """What judges a request while the model begins; None if the policy judges it before."""
        if self.policy.input == "before":
            return None
        return self._only(lambda spec: spec.on != "output" and not _redacts_input(spec))

    def _only(self, wanted: Callable[[GuardSpec], bool]) -> GuardEngine:
        """The same policy with some of its guards."""
        part = copy(self)
        part.inline = [slot for slot in self.inline if wanted(slot.spec)]
        part.packaged = [spec for spec in self.packaged if wanted(spec)]
        return part

    def context(
        self,
        request_id: str,
        principal: Principal | None,
        body: Mapping[str, Any],
        times: GuardTimes | None = None,
    ) -> GuardContext:
        """What guards may know of an OpenAI request; its system prompt only if one of them asks for it.

        :param times: where they leave how long they took, if anybody wants to know.
        """
        asked = any(isinstance(slot.guard, SystemPromptGuard) for slot in self.inline)
        text = system_text(body) if asked else ""
        return GuardContext(
            request_id=request_id, principal=principal, system_text=text, times=times or GuardTimes()
        )

    async def check(self, segment: Segment, context: GuardContext) -> list[Finding]:
        """What every guard finds in a complete text, ordered by place."""
        (findings,) = await self.check_all([segment], context)
        return findings

    async def check_all(self, segments: Sequence[Segment], context: GuardContext) -> list[list[Finding]]:
        """What every guard finds in each of the texts of one body, ordered by place.

        All of a body counts for whether it is read in a thread: many texts hold the event loop as long as
        one that is as large.
        """
        found: list[list[Finding]] = []
        if not self.inline:
            found = [[] for _ in segments]
        elif size_of(segments) < THREAD_FROM:
            for segment in segments:
                windows = read(segment)
                found.append(
                    [
                        item
                        for slot in self.inline
                        for item in self._check_inline(slot, windows, segment, context)
                    ]
                )
        else:
            for batch in batches(segments):
                found.extend(await self._check_threaded(batch, context))
        if self.packaged:
            for findings, packaged in zip(
                found,
                await asyncio.gather(*(self._check_packaged(segment, context) for segment in segments)),
                strict=True,
            ):
                findings.extend(packaged)
        return [sorted(findings, key=finding_order) for findings in found]

    async def judge(self, segment: Segment, context: GuardContext) -> Verdict:
        """Check a complete text and apply what the policy says."""
        return self.verdict(segment, await self.check(segment, context))

    def verdict(
        self, segment: Segment, findings: list[Finding], placeholders: Placeholders | None = None
    ) -> Verdict:
        """What follows for a text in which that was found.

        :param placeholders: where reversible redactions of a request are kept; without it they are not.
        """
        action = severest(findings)
        if action is Action.BLOCK:
            return Verdict(action=action, text="", findings=findings)
        spans = merge(redactions(findings, self.reversible))
        text = segment.text
        if spans:
            text = Redactor(json=segment.role == TOOL_CALL, placeholders=placeholders).write(text, 0, spans)
        return Verdict(action=action, text=text, findings=findings)

    def stream(
        self, context: GuardContext, *, role: str = "assistant", path: str = "", at_once: bool = True
    ) -> GuardStream:
        """A judge of one streamed text: one per choice, and one per tool call (role ``tool_call``).

        Without ``at_once`` nothing leaves unchecked, even if the policy lets it: for who does not stream.
        """
        from validation.guards.stream import GuardStream

        return GuardStream(self, context, role=role, path=path, at_once=at_once)

    def finding(self, spec: GuardSpec, hit: Hit, path: str) -> Finding:
        """A hit as the policy sees it."""
        return Finding(
            guard=spec.name,
            label=hit.label,
            score=hit.score,
            start=hit.start,
            end=hit.end,
            action=spec.action_at(hit.score),
            path=path,
            shadow=spec.mode == "shadow",
        )

    def failure(
        self, spec: GuardSpec, error: BaseException, where: Hit, path: str, context: GuardContext
    ) -> Finding:
        """The finding that stands for a guard that failed; the log line names the error's type only."""
        logger.error(
            "guard %s of policy %s failed (%s) on request %s; on_error is %s",
            spec.name,
            self.policy.name,
            type(error).__name__,
            context.request_id or "-",
            spec.on_error,
        )
        finding = self.finding(spec, where, path)
        return finding.model_copy(
            update={"action": Action.BLOCK if spec.on_error == "closed" else Action.FLAG}
        )

    def _check_inline(
        self, slot: InlineSlot, windows: Windows, segment: Segment, context: GuardContext
    ) -> list[Finding]:
        if not slot.spec.covers(segment.direction, segment.role):
            return []
        (_, plain), *others = windows
        began = perf_counter()
        try:
            hits = list(slot.cursor(context).advance(plain, final=True))
            for reading, window in others:
                if reading and slot.reads(reading):
                    hits.extend(not_within(slot.cursor(context).advance(window, final=True), hits))
            return [
                self.finding(slot.spec, hit, segment.path) for hit in hits if hit.score >= slot.spec.threshold
            ]
        except Exception as error:
            where = Hit(GUARD_ERROR, 1.0, 0, plain.size)
            return [self.failure(slot.spec, error, where, segment.path, context)]
        finally:
            context.times.of(segment.direction)[slot.spec.name] += perf_counter() - began

    async def _check_threaded(
        self, segments: Sequence[Segment], context: GuardContext
    ) -> list[list[Finding]]:
        """What our own guards find in texts that they judge in threads, one guard in each."""
        if not self.inline:
            return [[] for _ in segments]
        windows = await in_thread(lambda: [read(segment) for segment in segments])

        async def judged(slot: InlineSlot) -> list[list[Finding]]:
            work = in_thread(
                lambda: [
                    self._check_inline(slot, read, segment, context)
                    for read, segment in zip(windows, segments, strict=True)
                ]
            )
            try:
                return await asyncio.wait_for(work, slot.spec.timeout_s)
            except TimeoutError as error:
                return [self._late(slot.spec, error, segment, context) for segment in segments]

        found = await asyncio.gather(*(judged(slot) for slot in self.inline))
        return [[item for findings in of_text for item in findings] for of_text in zip(*found, strict=True)]

    def _late(
        self, spec: GuardSpec, error: TimeoutError, segment: Segment, context: GuardContext
    ) -> list[Finding]:
        if not spec.covers(segment.direction, segment.role):
            return []
        where = Hit(GUARD_ERROR, 1.0, 0, len(segment.text))
        return [self.failure(spec, error, where, segment.path, context)]

    async def _check_packaged(self, segment: Segment, context: GuardContext) -> list[Finding]:
        specs = [spec for spec in self.packaged if spec.covers(segment.direction, segment.role)]
        if not specs:
            return []
        if size_of([segment]) < THREAD_FROM:
            units = units_of(segment)
        else:
            units = await in_thread(lambda: units_of(segment))
        found = await asyncio.gather(
            *(self.check_units(spec, units[spec.unit], segment, context) for spec in specs)
        )
        return [item for findings in found for item in findings]

    async def check_units(
        self, spec: UnitSpec, units: Sequence[tuple[int, str]], like: Segment, context: GuardContext
    ) -> list[Finding]:
        """What a packaged guard finds in units of a text, each given with its first code point."""
        gate = asyncio.Semaphore(REMOTE_AT_ONCE)
        began = perf_counter()

        async def one(start: int, text: str) -> list[Finding]:
            async with gate:
                return await self._check_unit(spec, start, like.model_copy(update={"text": text}), context)

        try:
            found = await asyncio.gather(*(one(start, text) for start, text in units))
        finally:
            context.times.of(like.direction)[spec.name] += perf_counter() - began
        return [finding for findings in found for finding in findings]

    async def _ask(self, spec: UnitSpec, segment: Segment, context: GuardContext) -> Sequence[Finding | Hit]:
        """Ask a guard that judges units; one elsewhere only while its breaker is closed.

        Raises whatever goes wrong.
        """
        if (check := self.checks.get(spec.name)) is not None:
            return await asyncio.wait_for(in_thread(lambda: check(segment.text)), spec.timeout_s)
        assert self.remote is not None  # __init__ refuses the policy otherwise
        breaker = self.breakers[spec.name]
        breaker.check()
        try:
            answer = self.remote.check(spec.name, self.policy.digest, segment)
            found = await asyncio.wait_for(answer, spec.timeout_s)
        except GuardUnavailableError:
            raise  # It is well, but has too much to do.
        except Exception:
            breaker.failed(context.request_id)
            raise
        breaker.succeeded()
        return found

    async def _check_unit(
        self, spec: UnitSpec, start: int, segment: Segment, context: GuardContext
    ) -> list[Finding]:
        end = start + len(segment.text)
        try:
            found = await self._ask(spec, segment, context)
            return [
                # Whatever the other side says, the place and the consequence are decided here.
                self.finding(
                    spec,
                    Hit(item.label, item.score, min(start + item.start, end), min(start + item.end, end)),
                    segment.path,
                )
                for item in found
                if item.score >= spec.threshold
            ]
        except Exception as error:
            return [self.failure(spec, error, Hit(GUARD_ERROR, 1.0, start, end), segment.path, context)]


def _redacts_input(spec: GuardSpec) -> bool:
    return spec.on != "output" and spec.changes and spec.action is Action.REDACT
