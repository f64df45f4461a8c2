"""What a gateway tells about itself: a log line a request and a finding, and a few counters. Never a text."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from typing import Any

from cluster.contracts import Direction, Finding

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

    def findings(
        self, findings: Iterable[Finding], direction: Direction, *, request_id: str, key: str, model: str
    ) -> None:
        """One line and one count for each."""
        for finding in findings:
            action = "shadow" if finding.shadow else finding.action.value
            _line(
                "guard_finding",
                request_id=request_id,
                key=key,
                model=model,
                direction=direction.value,
                guard=finding.guard,
                label=finding.label,
                action=action,
                score=round(finding.score, 3),
                path=finding.path,
            )
            if self._findings is not None:
                self._findings.inc(
                    tags={
                        "model": model,
                        "key": key,
                        "guard": finding.guard,
                        "label": finding.label,
                        "action": action,
                        "direction": direction.value,
                    }
                )

    def request(
        self,
        *,
        request_id: str,
        key: str,
        model: str,
        status: int,
        started: float,
        first_s: float | None = None,
        usage: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """One line and one count for a request that has ended. ``started`` is of ``time.monotonic()``."""
        tokens = {kind: (usage or {}).get(f"{kind}_tokens", 0) for kind in ("prompt", "completion")}
        _line(
            "request",
            request_id=request_id,
            key=key,
            model=model,
            status=status,
            duration_s=round(time.monotonic() - started, 4),
            time_to_first_token_s=None if first_s is None else round(first_s, 4),
            prompt_tokens=tokens["prompt"],
            completion_tokens=tokens["completion"],
            **more,
        )
        if self._requests is not None and self._tokens is not None:
            self._requests.inc(tags={"model": model, "key": key, "status": str(status)})
            for kind, count in tokens.items():
                if count:
                    self._tokens.inc(count, tags={"model": model, "key": key, "kind": kind})


def _line(event: str, **fields: Any) -> None:
    logger.info(json.dumps({"event": event, **fields}, ensure_ascii=True))
