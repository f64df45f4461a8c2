"""The gateway's metrics: through Ray to Prometheus as ``ray_manta_…``, beside vLLM's and Serve's.

Times are seconds. What a client waits for (first token, between tokens, all of it) carries key, model,
endpoint and verdict; where the time went, model and endpoint alone. Every label is bounded: keys and models
are published ones, or empty for who has no key and what does not exist; guards and labels are the policies'.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from cluster.contracts import Action, Direction, Finding
from deployments.gateway.record import RequestRecord

_WHO = ("model", "key", "endpoint", "verdict")
_WHERE = ("model", "endpoint")

#: Boundaries as OpenTelemetry's GenAI conventions advise them; the first token's go on, for cold starts.
DURATION = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92]
_FIRST_TOKEN = [0.005, 0.01, 0.02, 0.04, 0.06, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 30, 120]
BETWEEN_TOKENS = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5]
_INSIDE = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]
#: From a pattern over a line to a classifier on a machine of its own.
_GUARD = [0.00002, 0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10]

#: Name -> description, labels.
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "manta_requests_total": (
        "Requests answered, by status and OpenAI's error code.",
        (*_WHO, "status", "code"),
    ),
    "manta_tokens_total": ("Tokens of prompts and answers.", ("model", "key", "kind")),
    "manta_cost_total": ("Money that tokens cost, in the settings' currency.", ("model", "key")),
    "manta_guard_findings_total": (
        "Findings of guards.",
        ("model", "key", "guard", "label", "action", "direction"),
    ),
}
#: Name -> description, labels, boundaries.
HISTOGRAMS: dict[str, tuple[str, tuple[str, ...], list[float]]] = {
    "manta_request_duration_seconds": ("From a request's first byte to its end.", _WHO, DURATION),
    "manta_time_to_first_token_seconds": (
        "From a request's first byte to the first judged chunk.",
        _WHO,
        _FIRST_TOKEN,
    ),
    "manta_time_per_output_token_seconds": (
        "Mean time between the tokens of an answer, after the first.",
        _WHO,
        BETWEEN_TOKENS,
    ),
    "manta_queue_time_seconds": (
        "From a request's first byte to its admission: authentication, body, limits.",
        _WHERE,
        _INSIDE,
    ),
    "manta_input_guards_seconds": ("Judging what goes to the model.", _WHERE, _INSIDE),
    "manta_guard_seconds": (
        "One guard over all texts of a request, or of its answer.",
        ("model", "key", "guard", "direction", "verdict"),
        _GUARD,
    ),
    "manta_engine_first_chunk_seconds": (
        "From asking the engine to its first chunk: its queue and prefill, and the way there.",
        _WHERE,
        _FIRST_TOKEN,
    ),
    "manta_gateway_overhead_seconds": (
        "What the gateway adds to the first token: all but the engine's time.",
        _WHERE,
        _INSIDE,
    ),
}
_VERDICTS = {Action.FLAG: "flagged", Action.REDACT: "redacted", Action.BLOCK: "blocked"}


class Measurement(NamedTuple):
    """One value of one metric."""

    name: str
    value: float
    labels: dict[str, str]


class Metrics:
    """Counts and times every request. Only a process of Ray can."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Histogram

        self._record: dict[str, Any] = {
            name: Counter(name, description, labels).inc for name, (description, labels) in COUNTERS.items()
        }
        for name, (description, labels, boundaries) in HISTOGRAMS.items():
            self._record[name] = Histogram(name, description, boundaries, labels).observe

    def ended(self, record: RequestRecord) -> None:
        """Take in one request."""
        for name, value, labels in measurements(record):
            self._record[name](value, labels)


def verdict_of(record: RequestRecord) -> str:
    """What guards made of a request and its answer, at worst: passed, flagged, redacted or blocked."""
    return _worst(finding for _, finding in record.findings)


def _worst(findings: Iterable[Finding]) -> str:
    actions = {finding.action for finding in findings if not finding.shadow}
    worst = next((action for action in reversed(Action) if action in actions), None)
    return "passed" if worst is None else _VERDICTS[worst]


def measurements(record: RequestRecord) -> Iterator[Measurement]:
    """All that one request is worth."""
    key = record.key.id if record.key else ""
    model = record.route.model if record.route else ""
    where = {"model": model, "endpoint": record.endpoint}
    who = where | {"key": key, "verdict": verdict_of(record)}
    told = {"status": str(record.status), "code": record.error_code or ""}
    yield Measurement("manta_requests_total", 1, who | told)
    for kind in ("prompt", "completion"):
        if count := record.usage.get(f"{kind}_tokens", 0):
            yield Measurement("manta_tokens_total", count, {"model": model, "key": key, "kind": kind})
    if record.cost:
        yield Measurement("manta_cost_total", float(record.cost), {"model": model, "key": key})
    for direction, finding in record.findings:
        labels = {
            "guard": finding.guard,
            "label": finding.label,
            "action": "shadow" if finding.shadow else finding.action.value,
            "direction": direction.value,
        }
        yield Measurement("manta_guard_findings_total", 1, {"model": model, "key": key} | labels)
    for direction, guard, took_s in guard_times(record):
        mine = (found for way, found in record.findings if (way, found.guard) == (direction, guard))
        which = {"guard": guard, "direction": direction.value, "verdict": _worst(mine)}
        yield Measurement("manta_guard_seconds", took_s, {"model": model, "key": key} | which)
    for name, seconds in _times(record).items():
        if seconds is not None:
            yield Measurement(name, seconds, who if HISTOGRAMS[name][1] == _WHO else where)


def guard_times(record: RequestRecord) -> Iterator[tuple[Direction, str, float]]:
    """Direction, guard and seconds of each guard that judged something."""
    for direction in Direction:
        for guard, seconds in record.guard_times.of(direction).items():
            yield direction, guard, seconds


def _times(record: RequestRecord) -> dict[str, float | None]:
    """None for what never was."""
    engine = _between(record.sent_s, record.answered_s)
    return {
        "manta_request_duration_seconds": record.ended_s,
        "manta_time_to_first_token_seconds": record.first_s,
        "manta_time_per_output_token_seconds": per_token_s(record),
        "manta_queue_time_seconds": record.admitted_s,
        "manta_input_guards_seconds": _between(record.admitted_s, record.guarded_s),
        "manta_engine_first_chunk_seconds": engine,
        "manta_gateway_overhead_seconds": _between(engine, record.first_s),
    }


def _between(start_s: float | None, end_s: float | None) -> float | None:
    return None if start_s is None or end_s is None else max(0.0, end_s - start_s)


def per_token_s(record: RequestRecord) -> float | None:
    """Mean seconds between the tokens of an answer, after the first."""
    tokens = record.usage.get("completion_tokens", 0)
    took = _between(record.first_s, record.last_s)
    return took / (tokens - 1) if took and tokens > 1 else None
