"""Traces of requests over OTLP, when ``OTEL_EXPORTER_OTLP_ENDPOINT`` says where to; else nothing is imported.

A request is one span, ``chat <model>``, by OpenTelemetry's GenAI conventions as of schema 1.44.0, with spans
for the input guards and the engine below it and an event for each finding. W3C's ``traceparent`` makes it a
part of the client's trace and says whether it is recorded. OpenTelemetry's own variables hold: headers,
protocol, sampler, service name, ``OTEL_TRACES_EXPORTER=none``. Spans are made when the request is over and
sent by a thread; what does not fit its queue is dropped. No text is ever in a span.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from deployments.gateway.metrics import verdict_of
from deployments.gateway.record import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

#: Of the conventions whose names stand below.
SCHEMA = "https://opentelemetry.io/schemas/1.44.0"
_OPERATIONS = {"completions": "text_completion", "embeddings": "embeddings"}

Attributes = dict[str, str | bool | int | float]


def make_traces(environment: Mapping[str, str] = os.environ) -> list[Traces]:
    """The observer, if there is a place to send traces to."""
    return [Traces(environment)] if is_wanted("TRACES", environment) else []


def is_wanted(signal: str, environment: Mapping[str, str]) -> bool:
    """Whether there is a place to send a signal to, and nobody said otherwise."""
    places = (f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return any(environment.get(name) for name in places) and (
        environment.get(f"OTEL_{signal}_EXPORTER") != "none"
    )


def is_grpc(signal: str, environment: Mapping[str, str]) -> bool:
    """Whether a signal goes over gRPC; over HTTP else."""
    names = (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    return next((environment[name] for name in names if environment.get(name)), "") == "grpc"


def resource_of(environment: Mapping[str, str]) -> Resource:
    """What sends."""
    from opentelemetry.sdk.resources import Resource

    return Resource.create({} if environment.get("OTEL_SERVICE_NAME") else {"service.name": "manta-gateway"})


class Traces:
    """Turns each request into spans."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # Its own: Ray or a user's code may have set the process' global one.
        self._provider = TracerProvider(resource=resource_of(environment))
        self._provider.add_span_processor(BatchSpanProcessor(_exporter(environment)))
        self._tracer = self._provider.get_tracer("manta.gateway", schema_url=SCHEMA)
        self._propagator = TraceContextTextMapPropagator()

    def ended(self, record: RequestRecord) -> None:
        """Make the spans of one request."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        sent = {"traceparent": record.traceparent, "tracestate": record.tracestate}
        parent = self._propagator.extract({name: value for name, value in sent.items() if value})
        model = record.route.model if record.route else ""
        span = self._tracer.start_span(
            f"{operation_of(record)} {model}".strip(),
            context=parent,
            kind=SpanKind.SERVER,
            attributes=attributes(record),
            start_time=_ns(record.started_at, 0),
        )
        if span.is_recording():
            _finish(span, record)
            context = set_span_in_context(span)
            steps = (
                ("input_guards", SpanKind.INTERNAL, record.admitted_s, record.guarded_s),
                ("engine", SpanKind.CLIENT, record.sent_s, record.last_s or record.ended_s),
            )
            for name, kind, start_s, end_s in steps:
                if start_s is not None and end_s is not None:
                    start = _ns(record.started_at, start_s)
                    step = self._tracer.start_span(name, context=context, kind=kind, start_time=start)
                    step.end(_ns(record.started_at, end_s))
        span.end(_ns(record.started_at, record.ended_s or 0))

    def stop(self) -> None:
        """Send what is left; waits for it, some seconds at most."""
        self._provider.shutdown()


def attributes(record: RequestRecord) -> Attributes:
    """What the whole request was. Names that the conventions lack begin with ``manta.``."""
    found: dict[str, str | bool | int | float | None] = {
        "gen_ai.operation.name": operation_of(record),
        "gen_ai.provider.name": "manta",
        "gen_ai.request.model": record.route.model if record.route else None,
        "gen_ai.request.stream": record.stream,
        "gen_ai.response.model": (record.target.model_version or record.target.model)
        if record.target
        else None,
        "gen_ai.response.time_to_first_chunk": record.first_s,
        "gen_ai.usage.input_tokens": record.usage.get("prompt_tokens"),
        "gen_ai.usage.output_tokens": record.usage.get("completion_tokens"),
        "http.response.status_code": record.status,
        "error.type": (record.error_code or str(record.status)) if record.status >= 400 else None,
        "manta.request.id": record.request_id,
        "manta.key.id": record.key.id if record.key else None,
        "manta.team": record.key.team if record.key else None,
        "manta.policy.name": record.policy.name if record.policy else None,
        "manta.policy.digest": record.policy.digest if record.policy else None,
        "manta.verdict": verdict_of(record),
        "manta.cost": None if record.cost is None else float(record.cost),
    }
    return {name: value for name, value in found.items() if value is not None}


def operation_of(record: RequestRecord) -> str:
    """The conventions' word for what was asked."""
    return _OPERATIONS.get(record.endpoint, "chat")


def _finish(span: Span, record: RequestRecord) -> None:
    from opentelemetry.trace import StatusCode

    for direction, finding in record.findings:
        seen_s = record.guarded_s if direction.value == "input" else record.last_s
        span.add_event(
            "manta.guard.finding",
            {
                "manta.guard.name": finding.guard,
                "manta.guard.label": finding.label,
                "manta.guard.action": "shadow" if finding.shadow else finding.action.value,
                "manta.guard.direction": direction.value,
                "manta.guard.score": finding.score,
                "manta.guard.path": finding.path,
            },
            _ns(record.started_at, seen_s or record.ended_s or 0),
        )
    if record.status >= 500:  # A client's own mistakes are no failures of a server, by the conventions.
        span.set_status(StatusCode.ERROR)


def _exporter(environment: Mapping[str, str]) -> SpanExporter:
    if is_grpc("TRACES", environment):
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def _ns(start: datetime, seconds: float) -> int:
    """Nanoseconds since 1970."""
    return int(start.timestamp() * 1e6) * 1000 + int(seconds * 1e9)
