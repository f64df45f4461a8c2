"""The gateway as a Serve deployment."""

from __future__ import annotations

import sys
import uuid
from typing import TYPE_CHECKING, Any

from ray import serve
from starlette.types import ASGIApp

from deployments.gateway.args import GatewayArgs, RecordArgs
from deployments.own_address import listen_on_own_address

if TYPE_CHECKING:
    from deployments.gateway.budget import Ledger
    from deployments.gateway.otlp_metrics import OtlpMetrics
    from deployments.gateway.record import Observer
    from deployments.gateway.sink import RecordSink
    from deployments.gateway.tracing import Traces
    from deployments.gateway.traffic import Traffic

#: Serve tells all that it has whenever it is asked: 0.1 s of CPU in which no request goes on.
_COUNT_INTERVAL_S = 10.0


def asgi_app(args: GatewayArgs) -> ASGIApp:
    """The gateway as it runs in a replica, with all that it reads from and counts in."""
    from cluster.settings import load_settings
    from cluster.snapshots import newest
    from deployments.gateway.app import make_app
    from deployments.gateway.budget import Budgets
    from deployments.gateway.feedback import Feedback
    from deployments.gateway.limits import Limiter, ReplicaCount
    from deployments.gateway.metrics import Metrics
    from deployments.gateway.otlp_metrics import make_otlp_metrics
    from deployments.gateway.pipeline import Pipeline
    from deployments.gateway.report import Report
    from deployments.gateway.sink import RecordSink
    from deployments.gateway.tracing import make_traces
    from deployments.gateway.upstream import Upstreams
    from deployments.gateway.view import Poller
    from deployments.guards import make_engine

    poller = Poller(newest, make_engine, args.snapshot_interval_s)
    upstreams = Upstreams(args.upstream_timeout_s, args.upstream_key_variables)
    replicas = ReplicaCount(_running_replicas, lambda: poller.limited, _COUNT_INTERVAL_S)
    limiter = Limiter(lambda: replicas.value)
    budgets = Budgets(
        _ledger, uuid.uuid4().hex, share=args.budget_lease_share, interval_s=args.budget_interval_s
    )
    sink = RecordSink(args.records, args.records.spool or load_settings().state_dir / "gateway" / "records")
    traffic, recorders = record_observers(args.records, sink)
    telemetry: list[Traces | OtlpMetrics] = [*make_traces(), *make_otlp_metrics()]
    observers: list[Observer] = [Report(), Metrics(), *recorders, *telemetry]
    pipeline = Pipeline(args, poller, upstreams, limiter, budgets, observers, traffic.keeps_answer)
    return make_app(
        pipeline,
        upstreams,
        replicas,
        sink,
        Feedback(sink, limiter),
        behind_proxy=True,
        at_end=[part.stop for part in telemetry],
    )


def _ledger() -> Ledger:
    from cluster.budget_ledger import BudgetLedger
    from cluster.settings import load_settings

    return BudgetLedger(load_settings().database_url)


def record_observers(args: RecordArgs, sink: RecordSink) -> tuple[Traffic, list[Observer]]:
    """The traffic record, and those of audit and traffic that are on."""
    from deployments.gateway.audit import Audit
    from deployments.gateway.traffic import Traffic

    traffic = Traffic(sink, args.traffic_share, args.max_text_characters)
    audit = [Audit(sink, args.max_text_characters)] if args.audit else []
    return traffic, [*audit, *([traffic] if args.traffic_share else [])]


def _running_replicas() -> int:
    """How many replicas of this one's deployment run. Asks Serve's controller, so it may wait."""
    own = serve.get_replica_context()
    deployment = serve.status().applications[own.app_name].deployments[own.deployment]
    return int(deployment.replica_states.get("RUNNING", 0))


@serve.deployment(
    name="gateway",
    # The pipeline refuses with an OpenAI body long before Serve does with a plain one.
    max_ongoing_requests=2048,
    ray_actor_options={"num_cpus": 0.2},
)
@serve.ingress()
class Gateway:
    """One replica of the gateway."""

    def __init__(self, args: GatewayArgs) -> None:
        self._args = args
        listen_on_own_address()

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Serve calls this in the replica, after the constructor."""
        return asgi_app(self._args)

    def loaded_modules(self) -> list[str]:
        """Names of all modules in this process; a test holds that no engine is among them."""
        return sorted(sys.modules)

    def resources(self) -> dict[str, Any]:
        """This process: ``pid``, and ``rss_bytes`` of memory."""
        import os

        import psutil

        return {"pid": os.getpid(), "rss_bytes": psutil.Process().memory_info().rss}
