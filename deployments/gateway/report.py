"""What a gateway tells about itself: a log line a request and a finding, and a few counters. Never a text."""

from __future__ import annotations

import json
import logging
from typing import Any

from cluster.contracts import Direction, Finding
from deployments.gateway.record import RequestRecord

logger = logging.getLogger("ray.serve")


class Report:
    """Logs JSON lines and counts.

    :param counters: whether to register Ray metrics, which only a process of Ray can.
    """

    def __init__(self, counters: bool) -> None:
        self._findings = self._requests = self._tokens = None
        if counters:
            from ray.util.metrics import Counter

            self._findings = Counter(
                "manta_guard_findings_total",
                "Findings of guards.",
                ("model", "key", "guard", "label", "action", "direction"),
            )
            self._requests = Counter("manta_requests_total", "Requests answered.", ("model", "key", "status"))
            self._tokens = Counter(
                "manta_tokens_total", "Tokens of prompts and answers.", ("model", "key", "kind")
            )

    def ended(self, record: RequestRecord) -> None:
        """A line and a count for each finding, then for the request."""
        key = record.key.id if record.key else ""
        model = record.route.model if record.route else ""
        for direction, finding in record.findings:
            self._finding(record.request_id, key, model, direction, finding)
        tokens = {kind: record.usage.get(f"{kind}_tokens", 0) for kind in ("prompt", "completion")}
        _line(
            "request",
            request_id=record.request_id,
            key=key,
            model=model,
            status=record.status,
            duration_s=_rounded(record.ended_s),
            time_to_first_token_s=_rounded(record.first_s),
            prompt_tokens=tokens["prompt"],
            completion_tokens=tokens["completion"],
        )
        if self._requests is not None and self._tokens is not None:
            self._requests.inc(tags={"model": model, "key": key, "status": str(record.status)})
            for kind, count in tokens.items():
                if count:
                    self._tokens.inc(count, tags={"model": model, "key": key, "kind": kind})

    def _finding(self, request_id: str, key: str, model: str, direction: Direction, finding: Finding) -> None:
        tags = {
            "model": model,
            "key": key,
            "guard": finding.guard,
            "label": finding.label,
            "action": "shadow" if finding.shadow else finding.action.value,
            "direction": direction.value,
        }
        _line(
            "guard_finding",
            request_id=request_id,
            **tags,
            score=round(finding.score, 3),
            path=finding.path,
        )
        if self._findings is not None:
            self._findings.inc(tags=tags)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)


def _line(event: str, **fields: Any) -> None:
    logger.info(json.dumps({"event": event, **fields}, ensure_ascii=True))
