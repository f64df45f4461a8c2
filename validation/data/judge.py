"""Great Expectations on one pandas frame, and on many blocks of one dataset.

Everything that touches Great Expectations' classes is here and in :mod:`validation.data.suite`, and
imports it inside functions: the import costs about 8 CPU-seconds in each process that does it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from validation.data.report import ExpectationReport

if TYPE_CHECKING:
    import pandas as pd

#: Each looks at one row at a time: counts over blocks add up, and lists join.
ROW_LOCAL = frozenset(
    f"expect_{name}"
    for name in (
        "column_values_to_not_be_null",
        "column_values_to_be_null",
        "column_values_to_be_between",
        "column_values_to_be_in_set",
        "column_values_to_not_be_in_set",
        "column_value_lengths_to_be_between",
        "column_value_lengths_to_equal",
        "column_values_to_match_regex",
        "column_values_to_not_match_regex",
        "column_values_to_match_regex_list",
        "column_values_to_not_match_regex_list",
        "column_values_to_match_strftime_format",
        "column_values_to_be_dateutil_parseable",
        "column_values_to_be_json_parseable",
        "column_values_to_match_json_schema",
        "column_pair_values_a_to_be_greater_than_b",
        "column_pair_values_to_be_equal",
        "column_pair_values_to_be_in_set",
        "select_column_values_to_be_unique_within_record",
        "multicolumn_sum_to_equal",
        "multicolumn_values_to_be_equal",
    )
)

#: Those among them that read a value as text.
TEXTUAL = frozenset(
    name
    for name in ROW_LOCAL
    if any(part in name for part in ("regex", "length", "strftime", "dateutil", "json"))
)

#: These look at the names of columns only.
SCHEMA = frozenset(
    f"expect_{name}"
    for name in (
        "column_to_exist",
        "table_column_count_to_be_between",
        "table_column_count_to_equal",
        "table_columns_to_match_ordered_list",
        "table_columns_to_match_set",
    )
)

#: These need a whole column at once: they are judged on their own columns, brought together.
WHOLE_COLUMN = frozenset(
    f"expect_{name}"
    for name in (
        "column_values_to_be_unique",
        "column_values_to_be_increasing",
        "column_values_to_be_decreasing",
        "column_value_z_scores_to_be_less_than",
        "column_values_to_be_of_type",
        "column_values_to_be_in_type_list",
        "column_distinct_values_to_be_in_set",
        "column_distinct_values_to_contain_set",
        "column_distinct_values_to_equal_set",
        "column_kl_divergence_to_be_less_than",
        "column_max_to_be_between",
        "column_mean_to_be_between",
        "column_median_to_be_between",
        "column_min_to_be_between",
        "column_most_common_value_to_be_in_set",
        "column_proportion_of_non_null_values_to_be_between",
        "column_proportion_of_unique_values_to_be_between",
        "column_quantile_values_to_be_between",
        "column_stdev_to_be_between",
        "column_sum_to_be_between",
        "column_unique_value_count_to_be_between",
        "compound_columns_to_be_unique",
        "table_row_count_to_be_between",
        "table_row_count_to_equal",
    )
)

MAX_EXAMPLES = 10
_MAX_VALUE_CHARS = 200


class Partial(BaseModel):
    """What one block says about one row-local expectation; sums and joins make the whole."""

    rows: int = 0
    nulls: int = 0
    unexpected: int = 0
    ids: list[str] = Field(default_factory=list)
    examples: list[dict[str, Any]] = Field(default_factory=list)
    error: str | None = None

    def add(self, other: Partial) -> None:
        """Take in a later block."""
        self.rows += other.rows
        self.nulls += other.nulls
        self.unexpected += other.unexpected
        self.ids += other.ids
        self.examples = (self.examples + other.examples)[:MAX_EXAMPLES]
        self.error = self.error or other.error


def columns_of(expectation: Any) -> list[str]:
    """Names of the columns that an expectation reads."""
    kwargs = expectation.configuration.kwargs
    single = [kwargs[key] for key in ("column", "column_A", "column_B") if kwargs.get(key)]
    return [*single, *(kwargs.get("column_list") or [])]


def judge_frame(frame: pd.DataFrame, expectations: Sequence[Any], row_id: str) -> list[dict[str, Any]]:
    """Great Expectations' own result for each expectation, as JSON values, in the given order.

    ``frame`` is the whole data as far as the expectations are concerned.
    """
    from great_expectations.core.expectation_suite import ExpectationSuite

    batch = _batch_definition().get_batch({"dataframe": frame})
    form: dict[str, Any] = {"result_format": "COMPLETE", "partial_unexpected_count": MAX_EXAMPLES}
    if row_id in frame.columns:
        form["unexpected_index_column_names"] = [row_id]
    suite = ExpectationSuite(name="block", expectations=[e.configuration for e in expectations])
    outcome = batch.validate(suite, result_format=form)
    # Results come in another order than the suite's.
    found = {_key(r.expectation_config): r for r in outcome.results}
    return [found[_key(e.configuration)].to_json_dict() for e in expectations]


def partials(frame: pd.DataFrame, expectations: Sequence[Any], row_id: str) -> list[Partial]:
    """Judge one block on row-local expectations."""
    return [_partial(result, frame, row_id) for result in judge_frame(frame, expectations, row_id)]


def merge(blocks: Iterable[Sequence[Partial]], width: int) -> list[Partial]:
    """Add up the partials of all blocks, in block order, for each of ``width`` expectations."""
    total = [Partial() for _ in range(width)]
    for block in blocks:
        for whole, part in zip(total, block, strict=True):
            whole.add(part)
    return total


def report_partial(expectation: Any, whole: Partial) -> ExpectationReport:
    """Let Great Expectations judge the merged counts: its own ``mostly`` rule, its own percentages."""
    metric = expectation.map_metric
    metrics = {
        "table.row_count": whole.rows,
        "column_values.nonnull.unexpected_count": whole.nulls,
        f"{metric}.unexpected_count": whole.unexpected,
        f"{metric}.filtered_row_count": whole.rows - whole.nulls,
        f"{metric}.unexpected_values": [],
        f"{metric}.unexpected_index_list": [],
    }
    if whole.error:
        return _report(expectation, {"success": False, "result": {}}, whole.examples, whole.error)
    configuration = {"result_format": {"result_format": "SUMMARY", "partial_unexpected_count": 0}}
    judged = expectation._validate(metrics=metrics, runtime_configuration=configuration)
    judged = judged if isinstance(judged, dict) else judged.to_json_dict()
    return _report(expectation, judged, whole.examples, None)


def report_whole(
    expectation: Any, judged: dict[str, Any], row_id: str
) -> tuple[ExpectationReport, list[str]]:
    """Read a result of :func:`judge_frame`: the report, and the ids of the unexpected rows."""
    error = _error(judged)
    index = judged["result"].get("unexpected_index_list") or []
    ids = [str(entry[row_id]) for entry in index if row_id in entry]
    return _report(expectation, judged, _examples(index, row_id), error), ids


@cache
def _batch_definition() -> Any:
    import great_expectations as gx
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    # Without this it leaves a folder for a docs site in the temporary directory, in every process.
    stores = InMemoryStoreBackendDefaults(init_temp_docs_sites=False)
    context = gx.get_context(
        mode="ephemeral", project_config=DataContextConfig(store_backend_defaults=stores)
    )
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("blocks").add_dataframe_asset("block")
    return asset.add_batch_definition_whole_dataframe("whole")


def _key(configuration: Any) -> str:
    kwargs = {k: v for k, v in configuration.kwargs.items() if k != "batch_id"}
    return json.dumps([configuration.type, str(configuration.severity), kwargs], sort_keys=True, default=str)


def _partial(judged: dict[str, Any], frame: pd.DataFrame, row_id: str) -> Partial:
    error = _error(judged)
    if error:
        return Partial(rows=len(frame), error=error)
    result = judged["result"]
    index = result.get("unexpected_index_list") or []
    return Partial(
        rows=result["element_count"],
        nulls=result.get("missing_count") or 0,
        unexpected=result["unexpected_count"],
        ids=[str(entry[row_id]) for entry in index if row_id in entry],
        examples=_examples(index, row_id),
    )


def _error(judged: dict[str, Any]) -> str | None:
    """The message of an exception that Great Expectations caught, or None."""
    info = judged.get("exception_info") or {}
    if "raised_exception" in info:
        return _first_line(info["exception_message"]) if info["raised_exception"] else None
    messages = [v.get("exception_message") for v in info.values() if v.get("raised_exception")]
    if messages:
        return _first_line(messages[0])
    result = judged["result"]
    told, listed = result.get("unexpected_count"), result.get("unexpected_index_list") or []
    # A row that is counted but not named could not be kept apart.
    return (
        f"{told} unexpected rows, of which {len(listed)} are named" if told and told != len(listed) else None
    )


def _first_line(message: Any) -> str:
    lines = str(message or "").strip().splitlines()
    return lines[0].strip().rstrip(".")[:300] if lines else "Great Expectations raised an exception"


def _examples(index: Sequence[dict[str, Any]], row_id: str) -> list[dict[str, Any]]:
    examples = []
    for entry in index[:MAX_EXAMPLES]:
        values = {k: _short(v) for k, v in entry.items() if k != row_id}
        examples.append({"row_id": str(entry.get(row_id)), **values})
    return examples


def _short(value: Any) -> Any:
    if hasattr(value, "item"):  # NumPy's scalars, which Great Expectations leaves among the JSON values.
        value = value.item()
    return (
        value[:_MAX_VALUE_CHARS] + "…" if isinstance(value, str) and len(value) > _MAX_VALUE_CHARS else value
    )


def _report(
    expectation: Any, judged: dict[str, Any], examples: list[dict[str, Any]], error: str | None
) -> ExpectationReport:
    result = judged.get("result") or {}
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
        examples=examples,
        error=error,
    )
