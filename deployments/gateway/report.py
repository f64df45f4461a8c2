"""What a gateway logs: a line a request and a finding. Never a text."""

from __future__ import annotations

import json
import logging
from typing import Any

from cluster.contracts import Direction, Finding
from deployments.gateway.record import RequestRecord

logger = logging.getLogger("ray.serve")


class Report:
    """Logs JSON lines."""

    def ended(self, record: RequestRecord) -> None:
        """A line for each finding, then for the request."""
        key = record.key.id if record.key else ""
        model = record.route.model if record.route else ""
        for direction, finding in record.findings:
            _finding(record.request_id, key, model, direction, finding)
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
            cost=None if record.cost is None else float(record.cost),
        )


def _finding(request_id: str, key: str, model: str, direction: Direction, finding: Finding) -> None:
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


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)


def _line(event: str, **fields: Any) -> None:
    logger.info(json.dumps({"event": event, **fields}, ensure_ascii=True))
