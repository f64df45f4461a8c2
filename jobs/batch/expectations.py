"""What is known of a right answer before any model was asked: an expected label, a JSON schema."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import RefusedError, UsageError
from cluster.storage import canonical_json
from jobs.batch.rows import BatchRequest
from jobs.batch.sampling import RequestConfig
from jobs.batch.source import Source

#: What ``response_format: {type: json_object}`` asks for.
_ANY_OBJECT = {"type": "object"}


@dataclass
class Expectations:
    """Of all rows of a source, by row id."""

    #: The right label; none for all if labels were not given, or rows have no expected answer.
    labels: dict[str, str] = field(default_factory=dict)
    #: Which check the row's answer must pass, as an index of ``checks``; -1 if it may be any text.
    forms: dict[str, int] = field(default_factory=dict)
    #: Whether an answer is valid JSON of a schema; None where the schema cannot be followed here.
    checks: list[Callable[[str], bool] | None] = field(default_factory=list)
    #: Rows that have an expected answer, scored or not.
    answered: int = 0

    @property
    def rows(self) -> int:
        """All rows."""
        return len(self.forms)

    def of_form(self, row_id: str, answer: str) -> bool | None:
        """Whether the answer is JSON as the row asked; None if it did not ask, or nobody can tell."""
        form = self.forms[row_id]
        check = self.checks[form] if form >= 0 else None
        return check(answer) if check else None


def read_expectations(source: Source, fill: RequestConfig | None, labels: Sequence[str]) -> Expectations:
    """Read the source once; some hundred bytes a row stay in memory.

    Raises UsageError for a row that cannot be asked or that names its model, RefusedError if ``labels`` are
    given and a row's expected answer is missing or none of them.
    """
    from validation.models import read_label

    found, known = Expectations(), dict[bytes, int]()
    for request in source.requests():
        if "model" in request.body:
            raise UsageError(
                f"Row {request.custom_id} names the model {request.body['model']!r}: leave model out of the"
                " bodies to compare models on them; nothing was run."
            )
        found.answered += request.expected is not None
        if labels:
            label = read_label(request.expected, labels) if request.expected is not None else None
            if label is None:
                raise _unlabelled(request, labels)
            found.labels[request.row_id] = label
        body = fill.fill(request) if fill else request.body
        found.forms[request.row_id] = _form(body.get("response_format"), known, found.checks)
    return found


def _unlabelled(request: BatchRequest, labels: Sequence[str]) -> RefusedError:
    what = "has no expected answer" if request.expected is None else "expects an answer that is no label"
    return RefusedError(
        f"Row {request.row_id} {what} (labels: {', '.join(labels)}): a dataset's rows end with it, for"
        " Parquet and CSV name source.expected_column; or leave comparison.labels out. Nothing was run."
    )


def _form(
    response_format: dict[str, Any] | None,
    known: dict[bytes, int],
    checks: list[Callable[[str], bool] | None],
) -> int:
    if not response_format or response_format.get("type") not in ("json_object", "json_schema"):
        return -1
    key = canonical_json(response_format)
    if key not in known:
        known[key] = len(checks)
        checks.append(_check((response_format.get("json_schema") or {}).get("schema") or _ANY_OBJECT))
    return known[key]


def _check(schema: dict[str, Any]) -> Callable[[str], bool] | None:
    from validation.guards.inline.json_schema import json_schema_check

    try:
        judge = json_schema_check(schema, fenced=False)
    except ValueError:  # An engine may know more of schemas than is safe to follow here.
        return None
    return lambda answer: not judge(answer)
