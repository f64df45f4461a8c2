"""What one request leaves behind: filled by the steps, read once by those that stand beside them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Protocol

from cluster.contracts import ApiKey, Direction, Finding, Route, Target
from deployments.gateway.answer import Assembly
from validation.guards.policy import GuardPolicy
from validation.guards.times import GuardTimes

logger = logging.getLogger("ray.serve")

#: Status of a request whose client went away before its answer had ended.
CLIENT_LEFT = 499


@dataclass
class RequestRecord:
    """One request, from its first byte to its last. All ``…_s`` are seconds after it came, None if never."""

    request_id: str
    endpoint: str
    #: W3C's headers, as the client sent them.
    traceparent: str | None = None
    tracestate: str | None = None
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    key: ApiKey | None = None
    route: Route | None = None
    #: Which try of a batch's row it is, from 1: they share its request id.
    attempt: int | None = None
    #: Where it went.
    target: Target | None = None
    policy: GuardPolicy | None = None
    #: The public name that was asked for, known or not.
    model: str | None = None
    #: Ids of end users that the client named.
    users: tuple[str, ...] = ()
    #: The request as it goes to the engine: judged, and redacted where the policy says so.
    judged: dict[str, Any] | None = None
    #: What was let out, put together: always of whole answers, of streams if the pipeline keeps them.
    released: Assembly | None = None
    #: The prompt template that it named, as name@version.
    prompt: str | None = None
    stream: bool = False
    #: Of the answer; for a stream that fails after it began, what it would have been before.
    status: int = CLIENT_LEFT
    error_code: str | None = None
    #: OpenAI's, exact also when the answer was cut short; empty if no engine was asked.
    usage: dict[str, Any] = field(default_factory=dict)
    #: In the settings' currency; None for a model without a price.
    cost: Decimal | None = None
    findings: list[tuple[Direction, Finding]] = field(default_factory=list)
    #: How long each guard took.
    guard_times: GuardTimes = field(default_factory=GuardTimes)
    #: It has a place: the limits let it in.
    admitted_s: float | None = None
    #: Its input is judged.
    guarded_s: float | None = None
    #: The engine is asked.
    sent_s: float | None = None
    #: The engine's first chunk is here.
    answered_s: float | None = None
    #: The first judged chunk leaves.
    first_s: float | None = None
    #: The last judged chunk leaves.
    last_s: float | None = None
    ended_s: float | None = None
    _started: float = field(default_factory=time.monotonic)

    def now_s(self) -> float:
        """Seconds since it came."""
        return time.monotonic() - self._started

    def note(self, findings: Iterable[Finding], direction: Direction) -> None:
        """Keep what guards saw."""
        self.findings.extend((direction, finding) for finding in findings)

    def begin_again(self) -> None:
        """Another replica is asked: nobody gets what the first one said, so nothing is told of it."""
        self.findings = [found for found in self.findings if found[0] is Direction.INPUT]
        self.answered_s = self.first_s = self.last_s = None


class Observer(Protocol):
    """Stands beside the requests: usage, audit, metrics, traces."""

    def ended(self, record: RequestRecord) -> None:
        """Called once a request, on the event loop: it must not wait. What it raises is logged only."""
        ...


def end(record: RequestRecord, observers: Sequence[Observer]) -> None:
    """The request is over: tell all observers, whatever one of them does."""
    record.ended_s = record.now_s()
    for observer in observers:
        try:
            observer.ended(record)
        except Exception:  # Never felt by a client.
            logger.exception("%s failed on request %s", type(observer).__name__, record.request_id)
