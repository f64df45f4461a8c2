"""Traces and the conventions' metrics, as a receiver of OTLP gets them over HTTP."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.semconv._incubating.attributes import error_attributes, gen_ai_attributes, http_attributes
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.semconv.schemas import Schemas

from deployments.gateway.errors import ApiError
from deployments.gateway.otlp_metrics import HISTOGRAMS, OtlpMetrics, make_otlp_metrics
from deployments.gateway.record import RequestRecord
from deployments.gateway.tracing import SCHEMA, Traces, attributes, make_traces
from tests.unit.gateway_app import chat, gateway, policy, route, snapshot, usage
from tests.unit.test_gateway_metrics import PRICE
from tests.unit.test_gateway_record import MAIL, PII
from tests.unit.test_gateway_requests import AUTH, URL

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "ann@example.com"


class Receiver:
    """A collector that keeps what it gets."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.metrics: list[ExportMetricsServiceRequest] = []
        self.raw: list[bytes] = []
        kept = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["content-length"]))
                assert self.headers["content-type"] == "application/x-protobuf"
                kept.raw.append(raw)
                if self.path == "/v1/traces":
                    kept.requests.append(ExportTraceServiceRequest.FromString(raw))
                elif self.path == "/v1/metrics":
                    kept.metrics.append(ExportMetricsServiceRequest.FromString(raw))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def scopes(self) -> list[Any]:
        resources = [resource for request in self.requests for resource in request.resource_spans]
        return [scope for resource in resources for scope in resource.scope_spans]

    @property
    def spans(self) -> dict[str, Any]:
        return {span.name: span for scope in self.scopes for span in scope.spans}


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    found = Receiver()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
    # Nothing is given up because this process, which is sender and receiver, stands still for a while.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")
    yield found
    found.server.shutdown()
    found.server.server_close()


def values(attributes: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in attributes}


async def ask(traces: Traces | OtlpMetrics, says: list[Any], **headers: str) -> int:
    body = {"model": "m", "messages": [MAIL], "stream": True}
    published = snapshot(routes=[route(policy="pii", price=PRICE)], policies=[policy("pii", PII)])
    async with gateway(published, observers=[traces]) as g:
        g.script.says = says
        answer = await g.http.post(URL, json=body, headers=AUTH | {"x-request-id": "r1"} | headers)
    await asyncio.to_thread(traces.stop)
    return answer.status_code


async def test_a_request_is_a_span_of_the_clients_trace(receiver: Receiver) -> None:
    (traces,) = make_traces()
    says = [chat("write to bob@example.com"), chat(" now", finish="stop"), usage(5, 3)]
    assert await ask(traces, says, traceparent=f"00-{TRACE}-{PARENT}-01", tracestate="vendor=1") == 200
    (resource,) = [item for r in receiver.requests for item in r.resource_spans][:1]
    assert values(resource.resource.attributes)["service.name"] == "manta-gateway"
    assert {scope.schema_url for scope in receiver.scopes} == {SCHEMA}
    assert set(receiver.spans) == {"chat m", "input_guards", "engine"}
    span = receiver.spans["chat m"]
    assert (span.trace_id.hex(), span.parent_span_id.hex(), span.trace_state) == (TRACE, PARENT, "vendor=1")
    assert span.kind == span.SPAN_KIND_SERVER
    found = values(span.attributes)
    assert found.pop("gen_ai.response.time_to_first_chunk") > 0
    assert len(found.pop("manta.policy.digest")) == 64
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "manta",
        "gen_ai.request.model": "m",
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "engine-m",
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 3,
        "http.response.status_code": 200,
        "manta.request.id": "r1",
        "manta.key.id": "tester",
        "manta.team": "default",
        "manta.policy.name": "pii",
        "manta.verdict": "redacted",
        "manta.cost": 0.000011,
    }
    events = [values(event.attributes) for event in span.events]
    assert [(e["manta.guard.name"], e["manta.guard.direction"]) for e in events] == [
        ("pii", "input"),
        ("pii", "output"),
    ]
    for name in ("input_guards", "engine"):
        step = receiver.spans[name]
        assert (step.trace_id, step.parent_span_id) == (span.trace_id, span.span_id)
        assert span.start_time_unix_nano <= step.start_time_unix_nano
        assert step.start_time_unix_nano <= step.end_time_unix_nano <= span.end_time_unix_nano
    assert not [raw for raw in receiver.raw if b"example.com" in raw]


async def test_a_failure_is_told_and_a_trace_that_is_not_recorded_is_not_sent(receiver: Receiver) -> None:
    (traces,) = make_traces()
    assert await ask(traces, [RuntimeError(SECRET)], traceparent="nonsense") == 500
    span = receiver.spans["chat m"]
    assert span.parent_span_id == b""
    assert (span.status.code, values(span.attributes)["error.type"]) == (2, "500")
    assert SECRET.encode() not in b"".join(receiver.raw)
    sent = len(receiver.requests)
    (traces,) = make_traces()
    says = [chat("ok", finish="stop"), usage(1, 1)]
    assert await ask(traces, says, traceparent=f"00-{TRACE}-{PARENT}-00") == 200
    assert len(receiver.requests) == sent


async def test_metrics_have_the_conventions_names_and_labels(receiver: Receiver) -> None:
    (metrics,) = make_otlp_metrics()
    says = [chat("one "), chat("two", finish="stop"), usage(5, 3)]
    assert await ask(metrics, says) == 200
    scopes = [s for r in receiver.metrics for resource in r.resource_metrics for s in resource.scope_metrics]
    assert {scope.schema_url for scope in scopes} == {SCHEMA}
    found = {metric.name: metric for scope in scopes for metric in scope.metrics}
    assert found.keys() == HISTOGRAMS.keys()
    assert set(HISTOGRAMS) <= {v for k, v in vars(gen_ai_metrics).items() if k.startswith("GEN_AI_")}
    about = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "manta",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "engine-m",
    }
    usages = {
        values(p.attributes)["gen_ai.token.type"]: p
        for p in found["gen_ai.client.token.usage"].histogram.data_points
    }
    assert {kind: point.sum for kind, point in usages.items()} == {"input": 5, "output": 3}
    for name in HISTOGRAMS.keys() - {"gen_ai.client.token.usage"}:
        (point,) = found[name].histogram.data_points
        assert (found[name].unit, values(point.attributes), point.count) == ("s", about, 1)
        assert list(point.explicit_bounds) == HISTOGRAMS[name][1]
    (metrics,) = make_otlp_metrics()
    assert await ask(metrics, [ApiError(503, "busy", code="overloaded")]) == 503
    late = [
        m
        for resource in receiver.metrics[-1].resource_metrics
        for s in resource.scope_metrics
        for m in s.metrics
    ]
    (duration,) = [metric for metric in late if metric.name == "gen_ai.server.request.duration"]
    assert values(duration.histogram.data_points[0].attributes)["error.type"] == "overloaded"


def test_a_signal_that_is_not_wanted_is_off() -> None:
    place = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    assert make_traces(place | {"OTEL_TRACES_EXPORTER": "none"}) == []
    assert make_otlp_metrics(place | {"OTEL_METRICS_EXPORTER": "none"}) == []
    assert make_otlp_metrics({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1"}) == []


async def test_nobody_there_is_not_felt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    (traces,) = make_traces()
    assert await ask(traces, [chat("ok", finish="stop"), usage(1, 1)]) == 200


def test_names_are_the_conventions(receiver: Receiver) -> None:
    assert SCHEMA in [item.value for item in Schemas]
    known = {
        value
        for module in (gen_ai_attributes, http_attributes, error_attributes)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str)
    }
    known.add("error.type")
    record = RequestRecord("r", "completions", status=500)
    used = [name for name in attributes(record) if not name.startswith("manta.")]
    assert {"gen_ai.operation.name", "error.type"} <= set(used) <= known | {"http.response.status_code"}
    operations = {item.value for item in gen_ai_attributes.GenAiOperationNameValues}
    assert attributes(record)["gen_ai.operation.name"] == "text_completion"
    assert {"chat", "text_completion", "embeddings"} <= operations


def test_without_a_place_to_go_nothing_is_imported() -> None:
    code = (
        "import sys; from deployments.gateway.tracing import make_traces; assert make_traces({}) == [];"
        "from deployments.gateway.otlp_metrics import make_otlp_metrics; assert make_otlp_metrics({}) == [];"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry.')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
