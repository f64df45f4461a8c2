"""The audit: one row a request in the table ``audit`` (:mod:`cluster.records.schema` says what a column is).

Every request that asks for a generation is in it: answered, blocked, refused, failed, cancelled, and those
whose key was not accepted. Of a batch's row it is each try: ``attempt`` says which, and they share a request
id. Left out are only attempts that are throttled after too many wrong keys: who guesses keys must not fill
the disk. A row holds no text unless the policy's ``record_text`` says so, and then only what the guards let
through.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from cluster.contracts import Action, Direction, Finding
from cluster.records import line, subject_hash
from deployments.gateway.metrics import guard_times
from deployments.gateway.record import CLIENT_LEFT, RequestRecord
from deployments.gateway.sink import RecordSink


class Audit:
    """An observer that writes the audit."""

    def __init__(self, sink: RecordSink, max_text_characters: int) -> None:
        self._sink, self._longest = sink, max_text_characters

    def ended(self, record: RequestRecord) -> None:
        """Put the request's row."""
        if record.key is None and record.status == 429:
            return
        policy = record.policy
        row = common(record) | texts(record, self._longest)
        row["policy"] = policy.name if policy else None
        row["policy_digest"] = policy.digest if policy else None
        row["error_code"] = record.error_code
        row["findings"] = findings(record.findings)
        row["guard_times"] = [
            {"guard": guard, "direction": direction.value, "seconds": seconds}
            for direction, guard, seconds in guard_times(record)
        ]
        row["attempt"] = record.attempt
        row["prompt_template"] = record.prompt
        row["admitted_s"], row["guarded_s"] = record.admitted_s, record.guarded_s
        row["sent_s"] = record.sent_s
        row["cost"] = None if record.cost is None else float(record.cost)
        self._sink.put("audit", line("audit", row))


def common(record: RequestRecord) -> dict[str, Any]:
    """The columns that audit and traffic share, texts excepted."""
    key, target = record.key, record.target
    return {
        "request_id": record.request_id,
        "time": moment(record.started_at),
        "key_id": key.id if key else None,
        "team": key.team if key else None,
        "tenant": key.tenant if key else None,
        "users": [subject_hash("user", key.team, user) for user in record.users] if key else [],
        "endpoint": record.endpoint,
        "model": record.model,
        "target_model": target.model if target else None,
        "model_version": target.model_version if target else None,
        "model_digest": target.digest if target else None,
        "stream": record.stream,
        "status": record.status,
        "outcome": outcome(record),
        "prompt_tokens": int(record.usage.get("prompt_tokens") or 0),
        "completion_tokens": int(record.usage.get("completion_tokens") or 0),
        "duration_s": record.ended_s,
        "time_to_first_token_s": record.first_s,
    }


def outcome(record: RequestRecord) -> str:
    """What became of the request, in one word."""
    if record.status == CLIENT_LEFT:
        return "cancelled"
    if any(finding.action is Action.BLOCK and not finding.shadow for _, finding in record.findings):
        return "blocked"
    if record.status >= 500:
        return "failed"
    return "refused" if record.status >= 400 else "ok"


def findings(found: list[tuple[Direction, Finding]]) -> list[dict[str, Any]]:
    """Findings as a row has them."""
    return [
        {
            "guard": finding.guard,
            "label": finding.label,
            "action": finding.action.value,
            "shadow": finding.shadow,
            "direction": direction.value,
            "score": finding.score,
            "path": finding.path,
        }
        for direction, finding in found
    ]


def keeps_text(record: RequestRecord) -> bool:
    """Whether the policy lets texts of this request be recorded."""
    return record.policy is not None and record.policy.record_text == "redacted"


def texts(record: RequestRecord, longest: int) -> dict[str, str]:
    """``prompt`` and ``answer``, as JSON cut at ``longest`` code points, if the policy allows them.

    Where reversible redactions were put back for the client, or text left before guards that object to it had
    judged it, what was let out is not redacted: the answer is left out then.
    """
    if not keeps_text(record):
        return {}
    found = {}
    if record.judged is not None:
        found["prompt"] = _json(prompt_of(record.judged))[:longest]
    if record.released is not None and not (_restored(record) or _left_unjudged(record)):
        choices = record.released.choices()
        found["answer"] = _json([choice.get("message", choice.get("text")) for choice in choices])[:longest]
    return found


def prompt_of(judged: dict[str, Any]) -> Any:
    """What the request says: its messages, its prompt or its input."""
    return next((judged[name] for name in ("messages", "prompt", "input") if name in judged), None)


def moment(when: datetime) -> str:
    """A time as a row has it."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _restored(record: RequestRecord) -> bool:
    policy = record.policy
    reversible = {spec.name for spec in policy.guards if getattr(spec, "reversible", False)} if policy else ()
    return any(
        direction is Direction.INPUT and finding.guard in reversible for direction, finding in record.findings
    )


def _left_unjudged(record: RequestRecord) -> bool:
    """Whether a stream let out text that a guard of mode ``stream_first`` refused too late, or never saw."""
    policy = record.policy
    if policy is None or not record.stream:
        return False
    late = any(
        guard.changes and guard.on in (Direction.OUTPUT, "both") and policy.stream_of(guard) == "stream_first"
        for guard in policy.guards
    )
    return late and (
        record.status != 200
        or any(
            direction is Direction.OUTPUT and not finding.shadow and finding.action is not Action.FLAG
            for direction, finding in record.findings
        )
    )


def _json(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))
