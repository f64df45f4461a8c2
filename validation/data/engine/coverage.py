"""Which of Great Expectations' core expectations the engine computes; the README's table is made of this.

``python -m validation.data.engine.coverage`` prints the table.
"""

from __future__ import annotations

EXACT, UNSUPPORTED = "exact", "not supported"

#: Without the leading ``expect_``. How it is computed, for those that are.
_ROWS = "rows of a block"
_PARTS = "parts of a column"
_NUMBERS = "parts of a column; numbers and booleans (pandas adds float32 in float32, this in float64)"
_VALUES = "distinct values, up to 50,000 in a block and 500,000 in all"
_HASHES = "128-bit hashes, a part of the hash space at a time; a second narrow pass names the rows"
_RANKS = (
    "order statistics, by narrow passes over histograms; numbers and times "
    "(not decimals, categories, or booleans with nulls: these fail)"
)
_NAMES = "names and types of columns"

COVERAGE: dict[str, tuple[str, str]] = {
    "column_values_to_be_null": (EXACT, _ROWS),
    "column_values_to_not_be_null": (EXACT, _ROWS),
    "column_values_to_be_between": (EXACT, _ROWS),
    "column_values_to_be_in_set": (EXACT, _ROWS),
    "column_values_to_not_be_in_set": (EXACT, _ROWS),
    "column_value_lengths_to_be_between": (EXACT, _ROWS),
    "column_value_lengths_to_equal": (EXACT, _ROWS),
    "column_values_to_match_regex": (EXACT, _ROWS),
    "column_values_to_not_match_regex": (EXACT, _ROWS),
    "column_values_to_match_regex_list": (EXACT, _ROWS),
    "column_values_to_not_match_regex_list": (EXACT, _ROWS),
    "column_values_to_match_strftime_format": (EXACT, _ROWS),
    "column_values_to_be_dateutil_parseable": (EXACT, _ROWS),
    "column_values_to_be_json_parseable": (EXACT, _ROWS),
    "column_values_to_match_json_schema": (EXACT, _ROWS),
    "column_values_to_be_of_type": (EXACT, f"{_NAMES}, or {_ROWS}"),
    "column_values_to_be_in_type_list": (EXACT, f"{_NAMES}, or {_ROWS}"),
    "column_pair_values_to_be_equal": (EXACT, _ROWS),
    "column_pair_values_a_to_be_greater_than_b": (EXACT, _ROWS),
    "column_pair_values_to_be_in_set": (EXACT, _ROWS),
    "multicolumn_sum_to_equal": (EXACT, _ROWS),
    "multicolumn_values_to_be_equal": (EXACT, _ROWS),
    "select_column_values_to_be_unique_within_record": (EXACT, _ROWS),
    "column_values_to_be_increasing": (EXACT, f"{_ROWS}, and the rows where blocks meet"),
    "column_values_to_be_decreasing": (EXACT, f"{_ROWS}, and the rows where blocks meet"),
    "column_values_to_be_unique": (EXACT, _HASHES),
    "compound_columns_to_be_unique": (EXACT, _HASHES),
    "column_value_z_scores_to_be_less_than": (
        EXACT,
        "mean and deviation, then rows in a second narrow pass; numbers (times fail)",
    ),
    "column_values_to_not_be_outliers": (EXACT, "quartiles or deviation, then rows in a further narrow pass"),
    "column_min_to_be_between": (EXACT, _PARTS),
    "column_max_to_be_between": (EXACT, _PARTS),
    "column_sum_to_be_between": (EXACT, f"{_NUMBERS}; uint64 does not wrap around"),
    "column_mean_to_be_between": (EXACT, _NUMBERS),
    "column_stdev_to_be_between": (EXACT, f"{_NUMBERS}; by Chan's merge"),
    "column_proportion_of_non_null_values_to_be_between": (EXACT, _PARTS),
    "column_median_to_be_between": (EXACT, _RANKS),
    "column_quantile_values_to_be_between": (EXACT, _RANKS),
    "column_unique_value_count_to_be_between": (EXACT, "distinct values; beyond 50,000 of a block, hashes"),
    "column_proportion_of_unique_values_to_be_between": (EXACT, "as the unique value count"),
    "column_distinct_values_to_be_in_set": (EXACT, _VALUES),
    "column_distinct_values_to_contain_set": (EXACT, _VALUES),
    "column_distinct_values_to_equal_set": (EXACT, _VALUES),
    "column_most_common_value_to_be_in_set": (EXACT, _VALUES),
    "column_kl_divergence_to_be_less_than": (EXACT, "histogram on the partition's bins, or distinct values"),
    "table_row_count_to_be_between": (EXACT, _PARTS),
    "table_row_count_to_equal": (EXACT, _PARTS),
    "table_column_count_to_be_between": (EXACT, _NAMES),
    "table_column_count_to_equal": (EXACT, _NAMES),
    "table_columns_to_match_set": (EXACT, _NAMES),
    "table_columns_to_match_ordered_list": (EXACT, _NAMES),
    "column_to_exist": (EXACT, _NAMES),
    "column_type_to_be": (EXACT, _NAMES),
    "column_values_to_match_like_pattern": (UNSUPPORTED, "SQL only, in Great Expectations too"),
    "column_values_to_not_match_like_pattern": (UNSUPPORTED, "SQL only, in Great Expectations too"),
    "column_values_to_match_like_pattern_list": (UNSUPPORTED, "SQL only, in Great Expectations too"),
    "column_values_to_not_match_like_pattern_list": (UNSUPPORTED, "SQL only, in Great Expectations too"),
    "table_row_count_to_equal_other_table": (UNSUPPORTED, "SQL only, in Great Expectations too"),
    "unexpected_rows_expectation": (UNSUPPORTED, "SQL only, in Great Expectations too"),
    "query_results_to_match_comparison": (UNSUPPORTED, "SQL only, in Great Expectations too"),
}


def full_name(name: str) -> str:
    """Great Expectations' name of an expectation."""
    return name if name == "unexpected_rows_expectation" else f"expect_{name}"


def as_markdown() -> str:
    """The table, as it stands in the README."""
    lines = ["| Expectation | Verdict | How |", "| --- | --- | --- |"]
    for name, (status, how) in COVERAGE.items():
        lines.append(f"| `{full_name(name)}` | {status} | {how} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(as_markdown())
