"""The typed request that goes through the pipeline's steps, and who sent it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

from cluster.contracts import ApiKey, Principal, PromptTemplate, Route
from deployments.gateway.budget import Hold
from deployments.gateway.dialect import Endpoint, TypedBody
from deployments.gateway.guarding import POLICY_HEADER
from deployments.gateway.limits import Admission
from deployments.gateway.record import RequestRecord
from validation.guards import GuardContext, GuardEngine, Placeholders


@dataclass(frozen=True)
class Estimate:
    """Of a request: likely to be used at most, or used."""

    prompt: int
    answer: int
    #: Tokens that the answer has at most, whatever is likely; None if that is not known, or not asked.
    most: int | None = None

    @property
    def total(self) -> int:
        """Of both."""
        return self.prompt + self.answer


@dataclass(frozen=True)
class Call(Generic[TypedBody]):
    """The typed request."""

    request_id: str
    endpoint: Endpoint
    key: ApiKey
    route: Route
    engine: GuardEngine
    body: TypedBody
    upstream_body: dict[str, Any]
    admission: Admission
    hold: Hold
    estimate: Estimate
    #: Most tokens of each choice of a chat that names no number itself.
    output_bound: int | None
    #: What the steps tell those that stand beside them.
    record: RequestRecord
    #: What was redacted reversibly; it lives as long as the request. None of a batch: what it says is stored.
    placeholders: Placeholders | None
    #: Whose messages stand before the client's own.
    template: PromptTemplate | None = None
    #: Of each try, whether it is the last one.
    tries: Sequence[bool] = (False, True)
    #: What guards judge while the model begins, if any do; empty once they let it through.
    unjudged: dict[str, Any] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of its answer."""
        return self.admission.headers() | {POLICY_HEADER: self.engine.policy.tag}

    @property
    def principal(self) -> Principal:
        """Who asks."""
        return Principal(key_id=self.key.id, team=self.key.team, tenant=self.key.tenant)

    @property
    def context(self) -> GuardContext:
        """What guards may know of the request."""
        times = self.record.guard_times
        return self.engine.context(self.request_id, self.principal, self.upstream_body, times)

    def count(self, used: Estimate) -> None:
        """Take note of what it used in the end: tokens of the key's limit, money of its budget."""
        self.admission.tokens = used.total
        if self.route.price is not None:
            self.record.cost = self.hold.cost = self.route.price.cost(used.prompt, used.answer)


@dataclass(frozen=True)
class Caller:
    """Who asks: as far as HTTP tells, or a batch."""

    #: The header.
    authorization: str | None = None
    #: The address that the connection came from: a load balancer's, if one stands before.
    address: str = ""
    #: W3C's headers of a trace that this is a part of.
    traceparent: str | None = None
    tracestate: str | None = None
    #: A batch's key, which was authenticated when it was made.
    key_id: str | None = None
    #: A batch's guards: of the policy as it was then.
    engine: GuardEngine | None = None
    #: Whether another replica is asked if one dies; a batch counts what its rows kill.
    asks_again: bool = True
    #: Which try of a batch's row it is, from 1.
    attempt: int | None = None
