"""What a gate answers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Severity = Literal["critical", "warning", "info"]


class ExpectationReport(BaseModel):
    """One expectation's outcome, as Great Expectations judged it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: str = Field(description="Great Expectations' name of the expectation.")
    column: str | None = Field(description="Column or columns that it looks at; none for a table's.")
    kwargs: dict[str, Any] = Field(description="Its arguments as the suite gives them.")
    severity: Severity = Field(description="A failed critical one fails the suite; the others only report.")
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
    bad_rows: dict[str, list[str]] = Field(
        default_factory=dict,
        exclude=True,
        description="Row id to the labels of the critical expectations that it breaks; not serialised.",
    )

    @property
    def failed(self) -> list[ExpectationReport]:
        """Critical expectations that failed."""
        return [e for e in self.expectations if not e.success and e.severity == "critical"]

    @property
    def warnings(self) -> list[ExpectationReport]:
        """Failed expectations that only report."""
        return [e for e in self.expectations if not e.success and e.severity != "critical"]
