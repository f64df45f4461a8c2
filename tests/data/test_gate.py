"""The gate's verdict on blocks against Great Expectations' own on the whole frame."""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cluster.errors import NotFoundError, UsageError
from validation.data import GateReport, Suite, load_suite
from validation.data.report import Severity

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("local_ray")]

EVERYTHING = [
    ("column_values_to_not_be_null", {"column": "text", "mostly": 0.8}),
    ("column_values_to_be_null", {"column": "nothing"}),
    ("column_values_to_be_null", {"column": "text", "mostly": 0.05}),
    ("column_values_to_be_in_set", {"column": "number", "value_set": [1, 2, 3, 4], "mostly": 0.7}),
    ("column_values_to_not_be_in_set", {"column": "text", "value_set": ["bb"]}),
    ("column_values_to_be_between", {"column": "number", "min_value": 2, "max_value": 7, "mostly": 0.5}),
    ("column_values_to_be_between", {"column": "nothing", "min_value": 2}),
    ("column_value_lengths_to_be_between", {"column": "text", "min_value": 2, "max_value": 3}),
    ("column_value_lengths_to_equal", {"column": "row_id", "value": 4}),
    ("column_values_to_match_regex", {"column": "text", "regex": "^a", "mostly": 0.3}),
    ("column_values_to_not_match_regex", {"column": "text", "regex": "c$"}),
    ("column_values_to_match_regex_list", {"column": "text", "regex_list": ["^a", "b"], "match_on": "any"}),
    ("column_values_to_not_match_regex_list", {"column": "text", "regex_list": ["^a", "zz"]}),
    ("column_values_to_be_json_parseable", {"column": "json", "mostly": 0.5}),
    ("column_values_to_match_json_schema", {"column": "valid", "json_schema": {"type": "integer"}}),
    (
        "column_values_to_match_strftime_format",
        {"column": "day", "strftime_format": "%Y-%m-%d", "mostly": 0.5},
    ),
    ("column_values_to_be_dateutil_parseable", {"column": "day", "mostly": 0.5}),
    (
        "column_pair_values_a_to_be_greater_than_b",
        {"column_A": "number", "column_B": "other", "or_equal": True},
    ),
    ("column_pair_values_to_be_equal", {"column_A": "number", "column_B": "other", "mostly": 0.1}),
    (
        "column_pair_values_to_be_in_set",
        {"column_A": "number", "column_B": "other", "value_pairs_set": [[1, 1]]},
    ),
    ("select_column_values_to_be_unique_within_record", {"column_list": ["number", "other"]}),
    ("multicolumn_sum_to_equal", {"column_list": ["number", "other"], "sum_total": 9}),
    ("column_values_to_be_unique", {"column": "row_id"}),
    ("column_values_to_be_unique", {"column": "text", "mostly": 0.4}),
    ("compound_columns_to_be_unique", {"column_list": ["text", "number"]}),
    ("column_mean_to_be_between", {"column": "number", "min_value": 3, "max_value": 6}),
    ("column_median_to_be_between", {"column": "real", "min_value": 0, "max_value": 1}),
    ("column_stdev_to_be_between", {"column": "real", "min_value": 0.2, "max_value": 0.3}),
    ("column_min_to_be_between", {"column": "number", "min_value": 0}),
    ("column_max_to_be_between", {"column": "number", "max_value": 8}),
    ("column_sum_to_be_between", {"column": "other", "min_value": 10}),
    ("column_unique_value_count_to_be_between", {"column": "text", "min_value": 3}),
    ("column_proportion_of_unique_values_to_be_between", {"column": "text", "max_value": 0.5}),
    ("column_distinct_values_to_be_in_set", {"column": "text", "value_set": ["a", "ab", "bb", "abc"]}),
    ("column_distinct_values_to_contain_set", {"column": "text", "value_set": ["a", "zebra"]}),
    ("column_most_common_value_to_be_in_set", {"column": "other", "value_set": [0, 1, 2]}),
    (
        "column_quantile_values_to_be_between",
        {"column": "number", "quantile_ranges": {"quantiles": [0.5], "value_ranges": [[3, 6]]}},
    ),
    ("table_row_count_to_be_between", {"min_value": 1, "max_value": 250}),
    ("table_columns_to_match_set", {"column_set": ["row_id", "text"], "exact_match": False}),
    ("table_column_count_to_equal", {"value": 9}),
    ("column_to_exist", {"column": "text"}),
    ("column_to_exist", {"column": "absent"}),
]


def suite_of(expectations: list[tuple[str, dict[str, Any]]], severity: str = "critical") -> Suite:
    entries = [{"type": f"expect_{name}", "kwargs": kw, "severity": severity} for name, kw in expectations]
    return Suite("tested", {"name": "tested", "expectations": entries})


def frame(rows: int, seed: int) -> pd.DataFrame:
    chance = random.Random(seed)
    text = [chance.choice(["a", "ab", "abc", "bb", "bbbc", None]) for _ in range(rows)]
    number = [chance.choice([None, *range(10)]) for _ in range(rows)]
    return pd.DataFrame(
        {
            "row_id": [f"r{i:03}" for i in range(rows)],
            "text": pd.array(text, dtype=object),
            "number": pd.array(number, dtype="Int64"),
            "other": [chance.randrange(10) for _ in range(rows)],
            "real": [chance.random() for _ in range(rows)],
            "nothing": pd.array([None] * rows, dtype="Int64"),
            "valid": pd.array([chance.choice(["1", '"x"', None]) for _ in range(rows)], dtype=object),
            "json": pd.array([chance.choice(["1", "{", '"x"', None]) for _ in range(rows)], dtype=object),
            "day": pd.array(
                [chance.choice(["2024-02-29", "30.13.", None]) for _ in range(rows)], dtype=object
            ),
        }
    )


def dataset(whole: pd.DataFrame, seed: int, blocks: int) -> Any:
    """Blocks of random sizes, some of them empty, with one Arrow schema."""
    import pyarrow as pa
    import ray.data

    table = pa.Table.from_pandas(whole, schema=schema(), preserve_index=False)
    chance = random.Random(seed)
    cuts = sorted(chance.choices(range(len(whole) + 1), k=blocks - 1))
    edges = [0, *cuts, len(whole)]
    return ray.data.from_arrow([table.slice(a, b - a) for a, b in pairwise(edges)])


def schema() -> Any:
    import pyarrow as pa

    text, whole = pa.string(), pa.int64()
    names = {"row_id": text, "text": text, "number": whole, "other": whole, "real": pa.float64()}
    return pa.schema(list((names | {"nothing": whole, "valid": text, "json": text, "day": text}).items()))


def on_whole_frame(whole: pd.DataFrame, suite: Suite) -> list[dict[str, Any]]:
    """Great Expectations as its documentation has it, one expectation at a time."""
    import great_expectations as gx
    import pyarrow as pa
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("whole").add_dataframe_asset("frame")
    # As pandas reads it from a file: an integer column with a null is one of floats.
    table = pa.Table.from_pandas(whole, schema=schema(), preserve_index=False)
    read = table.to_pandas(ignore_metadata=True)
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": read})
    form = {"result_format": "COMPLETE", "unexpected_index_column_names": ["row_id"]}
    return [batch.validate(e, result_format=form).to_json_dict() for e in suite.build()]


def assert_equal(report: GateReport, expected: list[dict[str, Any]]) -> None:
    assert len(report.expectations) == len(expected)
    bad: dict[str, set[str]] = {}
    for found, wanted in zip(report.expectations, expected, strict=True):
        result = wanted["result"]
        assert found.error is None, found
        assert found.success == wanted["success"], (found, result)
        assert found.unexpected_count == result.get("unexpected_count"), (found, result)
        assert found.unexpected_percent == pytest.approx(result.get("unexpected_percent"), nan_ok=True)
        assert found.element_count == result.get("element_count"), (found, result)
        if isinstance(result.get("observed_value"), float):
            assert found.observed_value == pytest.approx(result["observed_value"], nan_ok=True)
        else:
            assert found.observed_value == result.get("observed_value"), found
        for entry in result.get("unexpected_index_list") or []:
            bad.setdefault(entry["row_id"], set()).add(found.label)
    assert {row: set(labels) for row, labels in report.bad_rows.items()} == bad


@pytest.mark.parametrize(("seed", "rows", "blocks"), [(1, 200, 7), (2, 37, 12), (3, 1, 3)])
def test_equals_great_expectations_on_the_whole_frame(seed: int, rows: int, blocks: int) -> None:
    from validation.data.gate import gate

    whole, suite = frame(rows, seed), suite_of(EVERYTHING)
    assert_equal(gate(dataset(whole, seed, blocks), suite), on_whole_frame(whole, suite))


def test_no_row_at_all_holds_vacuously_as_on_the_whole_frame() -> None:
    from validation.data.gate import gate

    whole, suite = frame(0, 5), suite_of(EVERYTHING[:4])
    report = gate(dataset(whole, 5, 3), suite)
    assert [e.success for e in report.expectations] == [e["success"] for e in on_whole_frame(whole, suite)]
    assert report.rows == 0


def test_a_value_reads_the_same_wherever_blocks_end() -> None:
    # Pandas makes 7 to "7.0" where the column has a null: in the whole table, not in one block of it.
    import pyarrow as pa
    import ray.data

    from validation.data.gate import gate

    suite = suite_of([("column_values_to_match_regex", {"column": "n", "regex": r"^\d+$"})])
    for values, holds in (([7, None, 8, 9, None, 10], False), ([7, 1, 8, 9, 2, 10], True)):
        table = pa.table({"row_id": [str(i) for i in range(6)], "n": pa.array(values, pa.int64())})
        for cuts in ([0, 6], [0, 1, 6], range(7)):
            blocks = [table.slice(a, b - a) for a, b in pairwise(cuts)]
            report = gate(ray.data.from_arrow(blocks), suite)
            assert report.success == holds
            assert set(report.bad_rows) == (set() if holds else {"0", "2", "3", "5"})


def test_a_block_marks_its_rows_without_great_expectations(tmp_path: Path) -> None:
    import pyarrow as pa

    from validation.data.gate import plan_gate

    entries = [
        ("column_values_to_not_be_null", {"column": "text", "mostly": 0.1}),
        ("column_values_to_be_in_set", {"column": "other", "value_set": [1, 2], "mostly": 0.1}),
    ]
    table = pa.table({"row_id": ["a", "b", "c"], "text": ["x", None, None], "other": [1, 2, 3]})
    plan = plan_gate(suite_of(entries), table.schema)
    assert set(plan.columns) == {"row_id", "text", "other"}
    (tmp_path / "plan").write_bytes(pickle.dumps((plan, table)))
    code = (
        "import pickle, sys\n"
        f"plan, table = pickle.load(open({str(tmp_path / 'plan')!r}, 'rb'))\n"
        "print(plan.judge_block(table).reasons)\n"
        "assert 'great_expectations' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    null = "expect_column_values_to_not_be_null(text)"
    assert eval(done.stdout) == [None, null, f"{null}; expect_column_values_to_be_in_set(other)"]


def test_rows_that_only_the_whole_column_shows_as_bad_are_named_at_the_end() -> None:
    import pyarrow as pa
    import ray.data

    from validation.data.engine.rounds import partials_of
    from validation.data.gate import finish_gate, plan_gate

    entries = [
        ("column_values_to_be_unique", {"column": "key", "mostly": 0.1}),
        ("column_values_to_be_increasing", {"column": "n", "mostly": 0.1}),
        ("column_values_to_not_be_null", {"column": "key", "mostly": 0.1}),
    ]
    table = pa.table(
        {"row_id": list("abcdef"), "key": ["x", "y", "x", None, "z", "z"], "n": [1, 2, 2, 5, 4, 9]}
    )
    dataset = ray.data.from_arrow([table.slice(0, 2), table.slice(2, 0), table.slice(2, 2), table.slice(4)])
    plan = plan_gate(suite_of(entries), table.schema)
    partials = partials_of(dataset.select_columns(plan.columns), plan.first, 0.5)
    report = finish_gate(plan, partials, dataset.select_columns)
    unique, rising = "expect_column_values_to_be_unique(key)", "expect_column_values_to_be_increasing(n)"
    # The row without a key was marked by its block already.
    assert report.bad_rows == {"a": [unique], "c": [unique], "e": [unique, rising], "f": [unique]}
    assert report.validation["results"][0]["result"]["unexpected_count"] == 4
    json.dumps(report.validation)


def test_only_critical_failures_fail_the_suite_and_quarantine() -> None:
    from validation.data.gate import gate

    whole = frame(50, 6)
    severities: tuple[Severity, ...] = ("warning", "info")
    for severity in severities:
        report = gate(dataset(whole, 6, 3), suite_of(EVERYTHING, severity))
        assert report.success
        assert not report.failed
        assert report.missed(severity)
        assert report.bad_rows == {}
    assert not gate(dataset(whole, 6, 3), suite_of(EVERYTHING)).success


def test_a_missing_column_fails_its_expectation_and_says_so() -> None:
    from validation.data.gate import gate

    suite = suite_of([("column_values_to_be_unique", {"column": "absent"})])
    report = gate(dataset(frame(10, 7), 7, 2), suite)
    assert not report.success
    assert 'The column "absent" in BatchData does not exist' in report.failed[0].describe()


def test_an_exception_in_an_expectation_fails_it_and_says_so() -> None:
    from validation.data.gate import gate

    # Great Expectations parses every value, and raises at the first that is no JSON.
    suite = suite_of([("column_values_to_match_json_schema", {"column": "json", "json_schema": {}})])
    report = gate(dataset(frame(30, 8), 8, 2), suite)
    assert not report.success
    assert "Expecting property name" in str(report.failed[0].error)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (
            {
                "type": "expect_column_values_to_not_be_null",
                "kwargs": {"column": "text", "mostly": {"$PARAMETER": "p"}},
            },
            "$PARAMETER",
        ),
        (
            {
                "type": "expect_column_kl_divergence_to_be_less_than",
                "kwargs": {"column": "real", "threshold": 1},
            },
            "on blocks",
        ),
        ({"type": "expect_nonsense", "kwargs": {}}, "expect_nonsense not found"),
        (
            {"type": "expect_column_values_to_not_mach_regex", "kwargs": {}},
            "did you mean expect_column_values_to_not_match_regex?",
        ),
        ({"type": "expect_column_values_to_not_be_null", "kwargs": {}}, "column"),
        ({"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "text", "frob": 1}}, "frob"),
        (
            {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "a"}, "severity": "hi"},
            "severity",
        ),
    ],
)
def test_what_cannot_be_judged_is_refused_by_name(entry: dict[str, Any], words: str) -> None:
    from validation.data.gate import gate

    # Great Expectations itself drops some of these with a log line, and the suite would pass.
    with pytest.raises(UsageError) as caught:
        gate(dataset(frame(5, 9), 9, 2), Suite("s", {"name": "s", "expectations": [entry]}))
    assert entry["type"] in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("table_row_count_to_equal_other_table", {"other_table_name": "t"}, "another one cannot be named"),
        ("column_sum_to_be_between", {"column": "text", "min_value": 1}, "sum"),
        (
            "column_values_to_not_be_null",
            {"column": "text", "row_condition": "other > other.mean()", "condition_parser": "pandas"},
            "mean",
        ),
        *(
            (
                "column_values_to_not_be_null",
                {"column": "text", "row_condition": clause, "condition_parser": "pandas"},
                f"may look at more than one row at a time: {part}",
            )
            for clause, part in [
                ("other in text", "other in text"),
                ("other < other.size", "other.size"),
                ("other == 1 & text == text.iloc[0]", "text.iloc[0]"),
                ("text.isin(other)", "text.isin(other)"),
                ("text.get(0) == 'a'", "get"),
            ]
        ),
    ],
)
def test_what_is_not_computed_fails_as_great_expectations_own_exception(
    name: str, kwargs: dict[str, Any], words: str
) -> None:
    from validation.data.gate import gate

    sound = ("column_values_to_not_be_null", {"column": "row_id"})
    report = gate(dataset(frame(9, 10), 10, 2), suite_of([(name, kwargs), sound]))
    assert [e.success for e in report.expectations] == [False, True]
    assert words in str(report.expectations[0].error)
    assert report.bad_rows == {}


def test_a_users_own_expectation_is_judged_in_the_workers() -> None:
    from tests.data.own_expectation import ExpectColumnValuesToBeShouted
    from validation.data.gate import gate

    assert ExpectColumnValuesToBeShouted.map_metric == "column_values.shouted"
    suite = suite_of([("column_values_to_be_shouted", {"column": "text", "mostly": 0.4})])
    whole = frame(60, 11)
    whole["text"] = [t.upper() if isinstance(t, str) and i % 2 else t for i, t in enumerate(whole["text"])]
    assert_equal(gate(dataset(whole, 11, 2), suite), on_whole_frame(whole, suite))


def test_dates_of_a_suite_and_durations_of_the_data() -> None:
    import pyarrow as pa

    from tests.data.in_process import over_blocks
    from validation.data.gate import conclude, plan_gate

    first, second = timedelta(seconds=1), date(2023, 1, 1)
    table = pa.table({"row_id": ["a", "b"], "day": [date(2024, 1, 1), second], "took": [first, None]})
    took = {"column": "took", "value_set": ["x"]}
    entries: list[dict[str, Any]] = [
        {
            "type": "expect_column_values_to_be_between",
            "kwargs": {"column": "day", "min_value": date(2024, 1, 1)},
        },
        {"type": "expect_column_values_to_be_in_set", "kwargs": took},
        {"type": "expect_column_distinct_values_to_be_in_set", "kwargs": took},
    ]
    suite = Suite("s", {"name": "s", "expectations": entries})
    assert suite.digest != Suite("s", {"name": "s", "expectations": entries[:2]}).digest
    plan = plan_gate(suite, table.schema)
    report = conclude(plan, [plan.judge_block(table).partial], over_blocks([table]))
    examples = [expectation.examples for expectation in report.expectations[:2]]
    assert examples == [[{"row_id": "b", "day": "2023-01-01"}], [{"row_id": "a", "took": "0 days 00:00:01"}]]
    assert [expectation.error for expectation in report.expectations] == [None, None, None]
    assert "0 days 00:00:01" in report.model_dump_json()


def test_suites_are_great_expectations_own_files(tmp_path: Path) -> None:
    from great_expectations.core.expectation_suite import ExpectationSuite
    from great_expectations.expectations import ExpectColumnValuesToNotBeNull

    suite = ExpectationSuite(
        "mine", expectations=[ExpectColumnValuesToNotBeNull(column="text", severity="info")]
    )
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(suite.to_json_dict()))
    built = load_suite(str(path)).build()
    assert [e.configuration.to_json_dict() for e in built] == [
        e.configuration.to_json_dict() for e in suite.expectations
    ]


@pytest.mark.parametrize("name", ["messages", "prompt-shield", "prompt-shield-raw"])
def test_shipped_suites_build(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name
    assert len(suite.build()) == len(suite.document["expectations"])


def test_a_suite_that_is_not_there() -> None:
    with pytest.raises(NotFoundError, match=r"nowhere.*messages"):
        load_suite("nowhere")
