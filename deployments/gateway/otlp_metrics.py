"""The GenAI conventions' metrics over OTLP, for who collects them there: `gen_ai.server.*` and token usage.

They are what :mod:`deployments.gateway.metrics` gives Prometheus, by the conventions' names, labels and
boundaries as of schema 1.44.0; keys and guards, which the conventions do not know, are there alone. On where
traces are (:mod:`deployments.gateway.tracing`), unless ``OTEL_METRICS_EXPORTER`` is ``none``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from deployments.gateway.metrics import BETWEEN_TOKENS, DURATION, per_token_s
from deployments.gateway.record import RequestRecord
from deployments.gateway.tracing import SCHEMA, is_grpc, is_wanted, operation_of, resource_of

_FIRST_TOKEN = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0]
_TOKENS = [4**power for power in range(14)]
#: Name -> unit, boundaries.
HISTOGRAMS: dict[str, tuple[str, list[float]]] = {
    "gen_ai.client.token.usage": ("{token}", [float(boundary) for boundary in _TOKENS]),
    "gen_ai.server.request.duration": ("s", DURATION),
    "gen_ai.server.time_to_first_token": ("s", _FIRST_TOKEN),
    "gen_ai.server.time_per_output_token": ("s", BETWEEN_TOKENS),
}


def make_otlp_metrics(environment: Mapping[str, str] = os.environ) -> list[OtlpMetrics]:
    """The observer, if there is a place to send metrics to."""
    return [OtlpMetrics(environment)] if is_wanted("METRICS", environment) else []


class OtlpMetrics:
    """Times requests and counts tokens. A thread sends, once a minute or by OTEL_METRIC_EXPORT_INTERVAL."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader

        exporter: MetricExporter
        if is_grpc("METRICS", environment):
            from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as Grpc

            exporter = Grpc()
        else:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

            exporter = OTLPMetricExporter()
        reader = PeriodicExportingMetricReader(exporter)
        self._provider = MeterProvider([reader], resource=resource_of(environment))
        meter = self._provider.get_meter("manta.gateway", schema_url=SCHEMA)
        self._record = {
            name: meter.create_histogram(name, unit, explicit_bucket_boundaries_advisory=boundaries).record
            for name, (unit, boundaries) in HISTOGRAMS.items()
        }

    def ended(self, record: RequestRecord) -> None:
        """Take in one request."""
        about = {"gen_ai.operation.name": operation_of(record), "gen_ai.provider.name": "manta"}
        if record.route is not None:
            about["gen_ai.request.model"] = record.route.model
        if record.target is not None:
            about["gen_ai.response.model"] = record.target.model_version or record.target.model
        failed = {"error.type": record.error_code or str(record.status)} if record.status >= 400 else {}
        times = {
            "request.duration": record.ended_s,
            "time_to_first_token": record.first_s,
            "time_per_output_token": per_token_s(record),
        }
        for name, seconds in times.items():
            if seconds is not None:
                error = failed if name == "request.duration" else {}
                self._record[f"gen_ai.server.{name}"](seconds, about | error)
        for kind, field in (("input", "prompt_tokens"), ("output", "completion_tokens")):
            if tokens := record.usage.get(field):
                self._record["gen_ai.client.token.usage"](tokens, about | {"gen_ai.token.type": kind})

    def stop(self) -> None:
        """Send what is left; waits for it, some seconds at most."""
        self._provider.shutdown()
