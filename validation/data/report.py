"""What a gate answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Severity = Literal["critical", "warning", "info"]


class ExpectationReport(BaseModel):
    """One expectation's outcome, as Great Expectations judged it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: str = Field(description="Great Expectations' name of the expectation.")
    column: str | None = Field(description="Column or columns that it looks at; none for a table's.")
    kwargs: dict[str, Any] = Field(description="Its arguments as the suite gives them.")
    severity: Severity = Field(
        description="A failed critical one fails the suite; a warning is told; info is recorded."
    )
    success: bool = Field(description="Whether it held.")
    element_count: int | None = Field(None, description="Rows looked at.")
    unexpected_count: int | None = Field(
        None, description="Rows that do not hold; row-wise expectations only."
    )
    unexpected_percent: float | None = Field(None, description="Percent of the rows that are not null.")
    observed_value: Any = Field(None, description="The figure seen; aggregate expectations only.")
    examples: list[dict[str, Any]] = Field(
        default_factory=list, description="A few unexpected rows: id and value."
    )
    error: str | None = Field(None, description="Why it could not be judged; such an expectation has failed.")

    @property
    def label(self) -> str:
        """``type(column)``."""
        return f"{self.type}({self.column})" if self.column else self.type

    def describe(self) -> str:
        """The label with what was seen, for a sentence."""
        if self.error:
            return f"{self.label} [{self.error}]"
        if self.unexpected_count is not None:
            return f"{self.label} [{self.unexpected_count} of {self.element_count} rows]"
        if self.observed_value is not None:
            return f"{self.label} [observed {self.observed_value}]"
        return self.label


class GateReport(BaseModel):
    """A suite's outcome on one dataset."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    suite: str = Field(description="The suite's name.")
    suite_digest: str = Field(description="SHA-256 of the suite's content.")
    rows: int = Field(description="Rows judged.")
    success: bool = Field(description="False if a critical expectation failed.")
    expectations: list[ExpectationReport] = Field(
        description="One for each expectation, in the suite's order."
    )
    left_out: list[str] = Field(
        default_factory=list,
        description="Expectations that compare with a version before, and were not judged for want of it.",
    )
    bad_rows: dict[str, list[str]] = Field(
        default_factory=dict,
        exclude=True,
        description="Row id to the labels of the critical expectations that it breaks; not serialised.",
    )
    validation: dict[str, Any] = Field(
        default_factory=dict,
        exclude=True,
        description="Great Expectations' own validation result as JSON values; not serialised.",
    )

    @property
    def failed(self) -> list[ExpectationReport]:
        """Critical expectations that failed."""
        return self.missed("critical")

    @property
    def warnings(self) -> list[ExpectationReport]:
        """Failed expectations that are only told of."""
        return self.missed("warning")

    def told(self, most: int = 5) -> list[str]:
        """For a log, what the suite said: its verdict, and ``most`` of the expectations that do not hold."""
        held = sum(e.success for e in self.expectations)
        verdict = "passed" if self.success else "failed"
        said = f"{held} of {len(self.expectations)} expectations hold for {self.rows} rows"
        missed = [e for severity in get_args(Severity) for e in self.missed(severity)]
        lines = [f"{verdict}: {said}"]
        lines += [f"{e.severity}: {_short(e.describe())} does not hold" for e in missed[:most]]
        lines += [f"and {len(missed) - most} more that do not hold"] if len(missed) > most else []
        return lines + [f"does not judge {left}" for left in self.left_out]

    def missed(self, severity: Severity) -> list[ExpectationReport]:
        """Expectations of a severity that failed."""
        return [e for e in self.expectations if not e.success and e.severity == severity]


_MAX_VALUE_CHARS = 200


def columns_of(expectation: Any) -> list[str]:
    """Names of the columns that an expectation reads."""
    kwargs = expectation.configuration.kwargs
    single = [kwargs[key] for key in ("column", "column_A", "column_B") if kwargs.get(key)]
    return [*single, *(kwargs.get("column_list") or [])]


def label_of(expectation: Any) -> str:
    """``type(column)``."""
    column = ", ".join(columns_of(expectation))
    return f"{expectation.configuration.type}({column})" if column else str(expectation.configuration.type)


def expectation_report(
    expectation: Any, judged: dict[str, Any], row_id: str, max_examples: int
) -> ExpectationReport:
    """Great Expectations' result of one expectation (its JSON values), as a report."""
    result, error = judged.get("result") or {}, _error(judged)
    index = result.get("partial_unexpected_index_list") or []
    return ExpectationReport(
        type=expectation.configuration.type,
        column=", ".join(columns_of(expectation)) or None,
        kwargs=json.loads(json.dumps(dict(expectation.configuration.kwargs), default=str)),
        severity=expectation.configuration.severity.value,
        success=bool(judged["success"]) and error is None,
        element_count=result.get("element_count"),
        unexpected_count=result.get("unexpected_count"),
        unexpected_percent=result.get("unexpected_percent"),
        observed_value=result.get("observed_value"),
        examples=_examples(index[:max_examples], row_id),
        error=error,
    )


def _error(judged: dict[str, Any]) -> str | None:
    """The message of an exception that Great Expectations caught, or None."""
    info = judged.get("exception_info") or {}
    if "raised_exception" in info:
        return _first_line(info["exception_message"]) if info["raised_exception"] else None
    messages = [v.get("exception_message") for v in info.values() if v.get("raised_exception")]
    return _first_line(messages[0]) if messages else None


def _first_line(message: Any) -> str:
    lines = str(message or "").strip().splitlines()
    return lines[0].strip().rstrip(".")[:300] if lines else "Great Expectations raised an exception"


def _examples(index: Sequence[Any], row_id: str) -> list[dict[str, Any]]:
    examples = []
    for entry in index:
        if isinstance(entry, dict):
            values = {k: _short(v) for k, v in entry.items() if k != row_id}
            examples.append({"row_id": str(entry.get(row_id)), **values})
    return examples


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _MAX_VALUE_CHARS:
        return value[:_MAX_VALUE_CHARS] + "…"
    return value
