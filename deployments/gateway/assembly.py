"""What a process that answers requests is made of: the gateway's replica, and the worker of its batches."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deployments.gateway.args import GatewayArgs, RecordArgs
from deployments.gateway.limits import Limiter, ReplicaCount
from deployments.gateway.pipeline import Pipeline
from deployments.gateway.sink import RecordSink
from deployments.gateway.upstream import Upstreams

if TYPE_CHECKING:
    from deployments.gateway.budget import Ledger
    from deployments.gateway.otlp_metrics import OtlpMetrics
    from deployments.gateway.record import Observer
    from deployments.gateway.tracing import Traces
    from deployments.gateway.traffic import Traffic

#: Serve tells all that it has whenever it is asked: 0.1 s of CPU in which no request goes on.
_COUNT_INTERVAL_S = 10.0


@dataclass(frozen=True)
class Assembled:
    """A pipeline and all that it reads from and tells."""

    pipeline: Pipeline
    upstreams: Upstreams
    replicas: ReplicaCount
    limiter: Limiter
    sink: RecordSink
    #: Called when it ends, in a thread, for they may wait for some seconds.
    at_end: Sequence[Callable[[], None]] = ()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start everything; at the end stop it, what others still tell last."""
        self.sink.start()
        await self.pipeline.poller.start()
        await self.replicas.start()
        await self.pipeline.budgets.start()
        try:
            yield
        finally:
            await self.pipeline.budgets.stop()
            await self.replicas.stop()
            await self.pipeline.poller.stop()
            await self.upstreams.close()
            for stop in self.at_end:
                await asyncio.to_thread(stop)
            await asyncio.to_thread(self.sink.stop)


def assemble(args: GatewayArgs, running_replicas: Callable[[], int]) -> Assembled:
    """As it runs inside Serve.

    :param running_replicas: how many processes share the keys' limits; it may wait.
    """
    from cluster.settings import load_settings
    from cluster.snapshots import newest
    from deployments.gateway.budget import Budgets
    from deployments.gateway.metrics import Metrics
    from deployments.gateway.otlp_metrics import make_otlp_metrics
    from deployments.gateway.report import Report
    from deployments.gateway.tracing import make_traces
    from deployments.gateway.view import Poller
    from deployments.guards import make_engine

    poller = Poller(newest, make_engine, args.snapshot_interval_s)
    upstreams = Upstreams(args.upstream_timeout_s, args.upstream_key_variables)
    replicas = ReplicaCount(running_replicas, lambda: poller.limited, _COUNT_INTERVAL_S)
    limiter = Limiter(lambda: replicas.value)
    budgets = Budgets(
        _ledger, uuid.uuid4().hex, share=args.budget_lease_share, interval_s=args.budget_interval_s
    )
    sink = RecordSink(args.records, args.records.spool or load_settings().state_dir / "gateway" / "records")
    traffic, recorders = record_observers(args.records, sink)
    telemetry: list[Traces | OtlpMetrics] = [*make_traces(), *make_otlp_metrics()]
    observers: list[Observer] = [Report(), Metrics(), *recorders, *telemetry]
    pipeline = Pipeline(args, poller, upstreams, limiter, budgets, observers, traffic.keeps_answer)
    return Assembled(pipeline, upstreams, replicas, limiter, sink, [part.stop for part in telemetry])


def record_observers(args: RecordArgs, sink: RecordSink) -> tuple[Traffic, list[Observer]]:
    """The traffic record, and those of audit and traffic that are on."""
    from deployments.gateway.audit import Audit
    from deployments.gateway.traffic import Traffic

    traffic = Traffic(sink, args.traffic_share, args.max_text_characters)
    audit = [Audit(sink, args.max_text_characters)] if args.audit else []
    return traffic, [*audit, *([traffic] if args.traffic_share else [])]


def _ledger() -> Ledger:
    from cluster.budget_ledger import BudgetLedger
    from cluster.settings import load_settings

    return BudgetLedger(load_settings().database_url)
