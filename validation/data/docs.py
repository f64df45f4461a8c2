"""Great Expectations' verdicts as one page that works without a network.

Its own Data Docs take their style, script and icons from elsewhere, and need the script to unfold. The words
are the same: each expectation's sentence and observed value come from Great Expectations' own renderer.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import UsageError
from validation.data.card import templates, visible

#: Unexpected values, and ids of rows, shown of one expectation.
MAX_SHOWN = 10
_PARAMETER = re.compile(r"\$(\w+)")
#: In place of what may quote a row.
HIDDEN = "not shown"
Outcome = Literal["held", "failed", "error"]
Mask = Callable[[str], str]
#: Colours of an expectation that does not hold, by severity.
MARKS = {"critical": "bad", "warning": "warn", "info": "soft"}


class DocsModel(BaseModel):
    """The common base: strict about keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Word(DocsModel):
    """A stretch of a sentence; what the suite put in stands out."""

    text: str = Field(description="As it is shown.")
    value: bool = Field(description="Whether it comes from the suite rather than from the wording.")


class ExpectationDocs(DocsModel):
    """One expectation on the page."""

    type: str = Field(description="Great Expectations' name of it.")
    column: str = Field(description="Column or columns; empty for a table's.")
    sentence: list[Word] = Field(description="What is expected, in Great Expectations' words.")
    observed: str = Field(
        description="What was seen, in Great Expectations' words; -- where it says nothing."
    )
    severity: str = Field(description="critical, warning or info.")
    outcome: Outcome = Field(description="Whether it held, failed, or could not be judged.")
    error: str | None = Field(None, description="Why it could not be judged.")
    counts: dict[str, str] = Field(default_factory=dict, description="Rows looked at, missing, unexpected.")
    unexpected: dict[str, int | None] = Field(
        default_factory=dict, description="A few unexpected values to how often they occur, where known."
    )
    rows: list[str] = Field(default_factory=list, description="Ids of a few unexpected rows.")
    notes: list[str] = Field(default_factory=list, description="The suite's notes on it.")

    @property
    def mark(self) -> str:
        """The page's colour of the outcome, which is as bad as the severity says."""
        return "good" if self.outcome == "held" else MARKS.get(self.severity, "bad")


class SuiteDocs(DocsModel):
    """One validation result on the page."""

    stage: str = Field(description="Which gate: contract, final, ...")
    suite: str = Field(description="The suite's name.")
    success: bool = Field(description="Whether every critical expectation holds: the gate's verdict.")
    run_at: str = Field("", description="When, as Great Expectations tells.")
    expectations: list[ExpectationDocs] = Field(
        description="Failed ones first, the most severe before others."
    )
    left_out: list[str] = Field(
        default_factory=list, description="Those that found no version before to compare with."
    )

    def number(self, outcome: Outcome) -> int:
        """How many ended so."""
        return sum(e.outcome == outcome for e in self.expectations)

    @property
    def verdict(self) -> str:
        """In words: ``passed, with 1 warning and 1 info``."""
        missed = Counter(e.severity for e in self.expectations if e.outcome != "held")
        if not self.success:
            return f"failed: {missed['critical']} critical"
        plural = "" if missed["warning"] == 1 else "s"
        words = {"warning": f"warning{plural}", "info": "info"}
        told = [f"{missed[kind]} {word}" for kind, word in words.items() if missed[kind]]
        return f"passed, with {' and '.join(told)}" if told else "passed"

    @property
    def mark(self) -> str:
        """The page's colour of the verdict."""
        if not self.success:
            return "bad"
        return "warn" if any(e.mark == "warn" for e in self.expectations) else "good"


def docs_html(
    results: Mapping[str, Mapping[str, Any]],
    title: str,
    *,
    mask: Mask = str,
    show_values: bool = True,
) -> str:
    """``docs.html`` of validation results, for the driver: it imports Great Expectations.

    :param results: name of the gate to its result as ``to_json_dict()`` gives it.
    :param mask: makes personal data in a value unreadable: raw rows are judged before theirs is masked.
    :param show_values: False leaves out unexpected values, what was observed if it is text, and the messages
        of exceptions, which may quote values.

    Raises UsageError for what is no validation result.
    """
    suites = [suite_docs(name, result, mask, show_values=show_values) for name, result in results.items()]
    template = templates(autoescape=True).get_template("docs.html.jinja")
    return visible(str(template.render(title=title, suites=suites, made_at=datetime.now(UTC))))


def suite_docs(
    stage: str, result: Mapping[str, Any], mask: Mask = str, *, show_values: bool = True
) -> SuiteDocs:
    """One validation result, in Great Expectations' words. Raises UsageError for what is none."""
    if not isinstance(result.get("results"), Sequence) or "success" not in result:
        raise UsageError(f"The result of {stage} is no validation result: it has no success and results.")
    found = [_expectation(entry, mask, show_values=show_values) for entry in result["results"]]
    # Great Expectations' own success counts warnings and infos as failures; the gate does not.
    passed = all(e.outcome == "held" for e in found if e.severity not in ("warning", "info"))
    order = {"bad": 0, "warn": 1, "soft": 2, "good": 3}
    run_id = (result.get("meta") or {}).get("run_id") or {}
    return SuiteDocs(
        stage=stage,
        suite=result.get("suite_name") or (result.get("meta") or {}).get("expectation_suite_name") or stage,
        success=passed,
        run_at=str(run_id.get("run_time") or "")[:19].replace("T", " ") if isinstance(run_id, dict) else "",
        expectations=sorted(found, key=lambda e: (order[e.mark], e.column, e.type)),
        left_out=[str(told) for told in (result.get("meta") or {}).get("left_out") or []],
    )


def _expectation(entry: Mapping[str, Any], mask: Mask, *, show_values: bool) -> ExpectationDocs:
    configuration, result = entry["expectation_config"], entry.get("result") or {}
    kwargs, error = configuration["kwargs"], _error(entry.get("exception_info") or {})
    columns = [kwargs[k] for k in ("column", "column_A", "column_B") if kwargs.get(k)]
    columns += kwargs.get("column_list") or kwargs.get("column_set") or []
    sentence, observed = _rendered(entry, mask)
    if not show_values:
        observed = HIDDEN if _has_text([result.get("observed_value"), result.get("details")]) else observed
        error = HIDDEN if error else None
    outcome: Outcome = "error" if error else "held" if entry["success"] else "failed"
    notes = (configuration.get("meta") or {}).get("notes") or configuration.get("notes") or []
    return ExpectationDocs(
        type=configuration["type"],
        column=", ".join(str(c) for c in columns) if "column_set" not in kwargs else "",
        sentence=sentence,
        observed="" if error else observed,
        severity=str(configuration.get("severity") or "critical"),
        outcome=outcome,
        error=_shown(error, mask) if error else None,
        counts=_counts(result),
        unexpected=_unexpected(result, mask) if show_values and not entry["success"] else {},
        rows=_rows(result, mask) if not entry["success"] else [],
        notes=[str(n) for n in (notes if isinstance(notes, list) else [notes])],
    )


def _rendered(entry: Mapping[str, Any], mask: Mask) -> tuple[list[Word], str]:
    """What was expected and what was seen, by Great Expectations' own inline renderer."""
    from great_expectations.core.expectation_validation_result import ExpectationValidationResult
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
    from great_expectations.render.renderer.inline_renderer import InlineRenderer

    known = ("type", "kwargs", "meta", "severity", "description", "notes", "id")
    configuration = {k: v for k, v in entry["expectation_config"].items() if k in known}
    judged = ExpectationValidationResult(
        success=bool(entry["success"]),
        expectation_config=ExpectationConfiguration(**configuration),
        # Rendering asks for neither values nor ids, of which there may be many.
        result={
            k: v for k, v in (entry.get("result") or {}).items() if "_list" not in k and "_counts" not in k
        },
        meta=dict(entry.get("meta") or {}),
        exception_info=entry.get("exception_info"),
    )
    sentence, observed = [Word(text=configuration["type"], value=False)], "--"
    for block in InlineRenderer(render_object=judged).get_rendered_content():
        value = block.to_json_dict()["value"]
        if block.name.startswith("atomic.prescriptive"):
            sentence = _words(value) or sentence
        elif block.name.startswith("atomic.diagnostic.observed_value"):
            words = _words(value, mask)
            observed = mask("".join(word.text for word in words))
    return sentence, observed


def _words(value: Mapping[str, Any], mask: Mask = str) -> list[Word]:
    """A rendered template with its parameters filled in, then the figures of its table or graph."""
    told = value.get("header", {}).get("value", value)
    template, parameters = told.get("template") or "", told.get("params") or {}
    words, end = [], 0
    for match in _PARAMETER.finditer(template):
        if match[1] in parameters:
            words.append(Word(text=template[end : match.start()], value=False))
            words.append(Word(text=_shown(parameters[match[1]].get("value"), mask), value=True))
            end = match.end()
    words.append(Word(text=template[end:], value=False))
    rows = [[_shown(cell["value"], mask) for cell in row] for row in value.get("table") or []]
    for points in (value.get("graph") or {}).get("datasets", {}).values():
        rows += [[_shown(figure, mask) for figure in point.values()] for point in points]
    figures = "; ".join(" ".join(row) for row in rows[:MAX_SHOWN]) + (" …" if len(rows) > MAX_SHOWN else "")
    words.append(Word(text=f" {figures}" if template and figures else figures, value=False))
    return [word for word in words if word.text]


def _counts(result: Mapping[str, Any]) -> dict[str, str]:
    counts = {}
    names = {"rows": "element_count", "missing": "missing_count", "unexpected": "unexpected_count"}
    for label, name in names.items():
        if isinstance(result.get(name), int | float):
            counts[label] = f"{result[name]:,}"
    percent = result.get("unexpected_percent")
    if percent and "unexpected" in counts:
        counts["unexpected"] += f" ({percent:.3g} %)"
    return counts


def _unexpected(result: Mapping[str, Any], mask: Mask) -> dict[str, int | None]:
    counted = [item for item in result.get("partial_unexpected_counts") or [] if "count" in item]
    listed = [] if counted else result.get("partial_unexpected_list") or []
    values = [(item["value"], item["count"]) for item in counted] + [(value, None) for value in listed]
    found: dict[str, int | None] = {}
    for value, count in values[:MAX_SHOWN]:
        shown = _shown(value, mask)
        # Values that are masked alike are one.
        found[shown] = None if count is None else count + (found.get(shown) or 0)
    return found


def _rows(result: Mapping[str, Any], mask: Mask) -> list[str]:
    """Ids of unexpected rows: the columns that the result format asked for as an index."""
    columns = result.get("unexpected_index_column_names") or []
    index = result.get("unexpected_index_list") or result.get("partial_unexpected_index_list") or []
    named = [item for item in index[:MAX_SHOWN] if isinstance(item, Mapping)]
    return [", ".join(_shown(item.get(column), mask) for column in columns) for item in named if columns]


def _error(info: Mapping[str, Any]) -> str | None:
    """Great Expectations tells of one exception, or of one for each metric."""
    entries = [info] if "raised_exception" in info else [v for v in info.values() if isinstance(v, Mapping)]
    for entry in entries:
        if entry.get("raised_exception"):
            return str(entry.get("exception_message") or "Great Expectations raised an exception")
    return None


def _has_text(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_text, value.values()))
    return any(map(_has_text, value)) if isinstance(value, list | tuple) else isinstance(value, str)


def _shown(value: Any, mask: Mask) -> str:
    """Masked before it is cut: half an address is not recognised as one."""
    return _cut(mask(_text(value)))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _cut(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
