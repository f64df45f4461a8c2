"""Every result of the engine against Great Expectations on the whole frame, whatever the data and the blocks.

`--conformance-cases N` draws more (the default is what CI has time for), `--conformance-ray N` sends so many
through Ray Data.
"""

from __future__ import annotations

import math
from datetime import date, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from validation.data import suite as suite_module
from validation.data.engine import aggregates, programs
from validation.data.engine.coverage import COVERAGE, EXACT, as_markdown, full_name
from validation.data.suite import Suite

FORMATS = ("BOOLEAN_ONLY", "BASIC", "SUMMARY", "COMPLETE")
WORDS = [
    "a",
    "ab",
    "abc",
    "ß",
    "日本",
    "e\u0301",
    "🙂",
    "",
    " ",
    "7",
    "7.0",
    "2024-02-29",
    '{"a": 1}',
    "null",
    "NaN",
]
DAYS = [date(2024, 2, 29), date(1970, 1, 1), date(2030, 12, 31)]
MOMENTS = [datetime(2024, 2, 29, 12, 30), datetime(1969, 7, 20), datetime(2030, 1, 1)]
NUMBERS, TEXTS = ("int", "small", "real", "skew", "huge"), ("text", "other_text", "json", "day_text")
COLUMNS = (*NUMBERS, *TEXTS, "flag", "date", "moment", "nothing")


def types() -> dict[str, Any]:
    import pyarrow as pa

    text = pa.string()
    return {
        "row_id": text,
        "int": pa.int64(),
        "small": pa.int16(),
        "real": pa.float64(),
        "skew": pa.float64(),
        "huge": pa.int64(),
        "text": text,
        "other_text": text,
        "json": text,
        "day_text": text,
        "flag": pa.bool_(),
        "date": pa.date32(),
        "moment": pa.timestamp("ns"),
        "nothing": pa.float64(),
    }


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(-3, 9),
    "small": st.integers(-3, 9),
    "real": st.sampled_from([0.0, -0.0, 0.5, 1.5, 2.0, 3.25, -7.5, 1e9, math.inf, math.nan]),
    "skew": st.one_of(st.just(1.0), st.just(1.0), st.floats(-1e6, 1e6, width=32)),
    "huge": st.sampled_from([2**53, 2**53 + 1, -(2**53) - 1, 2**57 + 1, 0, 1]),
    "text": st.sampled_from(WORDS),
    "other_text": st.sampled_from(WORDS[:5]),
    "json": st.sampled_from(['{"a": 1}', "[1]", "3", '"x"']),
    "day_text": st.sampled_from(["2024-02-29", "1970-01-01", "x", "30.13."]),
    "flag": st.booleans(),
    "date": st.sampled_from(DAYS),
    "moment": st.sampled_from(MOMENTS),
    "nothing": st.none(),
}


@st.composite
def tables(draw: Any) -> Any:
    """A table of every type, with as many nulls as is drawn for each column, and its blocks."""
    import pyarrow as pa

    rows = draw(st.sampled_from([0, 1, 2, 3, 7, 20, 33]))
    data: dict[str, list[Any]] = {"row_id": [f"r{i}" for i in range(rows)]}
    for name in COLUMNS:
        kind = draw(st.sampled_from(["full", "full", "holes", "one hole", "empty", "constant"]))
        value = VALUES[name] if kind != "holes" else st.one_of(st.none(), VALUES[name])
        if kind == "empty":
            value = st.none()
        if kind == "constant":
            value = st.just(draw(VALUES[name]))
        data[name] = draw(st.lists(value, min_size=rows, max_size=rows))
        if kind == "one hole" and rows:
            data[name][draw(st.integers(0, rows - 1))] = None
    table = pa.table({name: pa.array(data[name], kind) for name, kind in types().items()})
    cuts = sorted(draw(st.lists(st.integers(0, rows), max_size=6)))
    return table, [table.slice(a, b - a) for a, b in pairwise([0, *cuts, rows])]


column = st.sampled_from(COLUMNS)
number = st.sampled_from(NUMBERS)
added = st.sampled_from([name for name in COLUMNS if name not in ("date", "moment")])
lined = st.sampled_from([*NUMBERS, *TEXTS, "nothing"])
ranked = st.sampled_from([name for name in COLUMNS if name != "flag"])
mostly = st.sampled_from([1.0, 0.9, 0.5, 0.1])
pattern = st.sampled_from([r"^a", r"\d", r"^\d+$", "ß|日", r"\.0$", r"(?i)A(?=b)"])
yes = st.booleans()
conditions = st.sampled_from(
    [
        "int > 2",
        "text == 'a'",
        "real < 1.5 and int >= 0",
        "small in [1, 2, 3]",
        "text.isnull()",
        "`int` > 100",
        {"type": "comparison", "column": {"name": "small"}, "operator": ">", "parameter": 1},
        {"type": "nullity", "column": {"name": "text"}, "is_null": False},
    ]
)


def bounds(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """One bound or both in order, perhaps strict."""
    pair = st.tuples(values, values).map(sorted)
    made = st.one_of(
        pair.map(lambda p: {"min_value": p[0], "max_value": p[1]}),
        values.map(lambda v: {"min_value": v}),
        values.map(lambda v: {"max_value": v}),
    )
    return st.tuples(made, yes, yes).map(
        lambda t: {
            **t[0],
            **({"strict_min": True} if t[1] and "min_value" in t[0] else {}),
            **({"strict_max": True} if t[2] and "max_value" in t[0] else {}),
        }
    )


def merged(*parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(*parts).map(lambda found: {k: v for part in found for k, v in part.items()})


def having(**parts: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {k: v if isinstance(v, st.SearchStrategy) else st.just(v) for k, v in parts.items()}
    )


figures = bounds(st.sampled_from([-10, 0, 1, 2, 3.5, 100]))
counts = bounds(st.integers(0, 20)).map(lambda d: {k: v for k, v in d.items() if "strict" not in k})
shares = bounds(st.sampled_from([0.0, 0.25, 0.5, 1.0]))
on_column = having(column=column)
value_set = st.one_of(
    st.lists(st.integers(-1, 5), min_size=1, max_size=4),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=4),
    st.just([0.5, 1, 2.0]),
    st.just([True]),
)
two = st.lists(number, min_size=2, max_size=2, unique=True)
columns = st.lists(column, min_size=2, max_size=3, unique=True)
ignore_pair = st.sampled_from(["both_values_are_missing", "either_value_is_missing", "neither"])
ignore_list = st.sampled_from(["all_values_are_missing", "any_value_is_missing", "never"])
share = having(mostly=mostly)

#: For each expectation that is said to be exact, how to draw its arguments.
ARGUMENTS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "column_values_to_be_null": merged(on_column, share),
    "column_values_to_not_be_null": merged(on_column, share),
    "column_values_to_be_between": merged(
        on_column, share, bounds(st.sampled_from([-3, 0, 1, 2.5, 7, 2**53 + 1]))
    ),
    "column_values_to_be_in_set": merged(on_column, share, having(value_set=value_set)),
    "column_values_to_not_be_in_set": merged(on_column, share, having(value_set=value_set)),
    "column_value_lengths_to_be_between": merged(on_column, share, counts),
    "column_value_lengths_to_equal": merged(on_column, share, having(value=st.integers(0, 4))),
    "column_values_to_match_regex": merged(on_column, share, having(regex=pattern)),
    "column_values_to_not_match_regex": merged(on_column, share, having(regex=pattern)),
    "column_values_to_match_regex_list": merged(
        on_column,
        share,
        having(
            regex_list=st.lists(pattern, min_size=1, max_size=2), match_on=st.sampled_from(["any", "all"])
        ),
    ),
    "column_values_to_not_match_regex_list": merged(
        on_column, share, having(regex_list=st.lists(pattern, min_size=1, max_size=2))
    ),
    "column_values_to_match_strftime_format": merged(
        having(column=st.sampled_from(["day_text", "text", "int"])), share, having(strftime_format="%Y-%m-%d")
    ),
    "column_values_to_be_dateutil_parseable": merged(having(column=st.sampled_from([*TEXTS, "int"])), share),
    "column_values_to_be_json_parseable": merged(on_column, share),
    "column_values_to_match_json_schema": merged(
        having(column=st.sampled_from(["json", "text", "int"])),
        share,
        having(json_schema={"type": "integer"}),
    ),
    "column_values_to_be_of_type": merged(
        on_column,
        having(type_=st.sampled_from(["int", "str", "float64", "int64", "object", "bool", "datetime64[ns]"])),
    ),
    "column_values_to_be_in_type_list": merged(
        on_column, having(type_list=st.sampled_from([["int", "str"], ["float64", "bool"], ["StringDtype"]]))
    ),
    "column_type_to_be": merged(
        on_column, having(type_=st.sampled_from(["int64", "float64", "object", "str"]))
    ),
    "column_values_to_be_unique": merged(on_column, share),
    "compound_columns_to_be_unique": having(column_list=columns, ignore_row_if=ignore_list),
    "column_values_to_be_increasing": merged(on_column, share, having(strictly=yes)),
    "column_values_to_be_decreasing": merged(on_column, share, having(strictly=yes)),
    "column_value_z_scores_to_be_less_than": merged(
        having(column=added), share, having(threshold=st.sampled_from([0.5, 1.5, 3]), double_sided=yes)
    ),
    "column_values_to_not_be_outliers": merged(
        having(column=lined),
        share,
        having(method=st.sampled_from(["iqr", "std"]), multiplier=st.sampled_from([0.5, 1.5])),
    ),
    "column_pair_values_to_be_equal": having(
        column_A=column, column_B=column, ignore_row_if=ignore_pair, mostly=mostly
    ),
    "column_pair_values_a_to_be_greater_than_b": having(
        column_A=column, column_B=column, or_equal=yes, ignore_row_if=ignore_pair, mostly=mostly
    ),
    "column_pair_values_to_be_in_set": having(
        column_A=st.sampled_from(["int", "text", "real"]),
        column_B=st.sampled_from(["small", "other_text"]),
        value_pairs_set=[[1, 1], ["a", "a"], [None, 2], [0.5, 3]],
        ignore_row_if=ignore_pair,
        mostly=mostly,
    ),
    "multicolumn_sum_to_equal": having(
        column_list=two, sum_total=st.integers(0, 6), ignore_row_if=ignore_list
    ),
    "multicolumn_values_to_be_equal": having(column_list=columns, ignore_row_if=ignore_list),
    "select_column_values_to_be_unique_within_record": having(column_list=columns, ignore_row_if=ignore_list),
    "column_min_to_be_between": merged(on_column, figures),
    "column_max_to_be_between": merged(on_column, figures),
    "column_mean_to_be_between": merged(having(column=added), figures),
    "column_sum_to_be_between": merged(having(column=added), figures),
    "column_stdev_to_be_between": merged(having(column=added), bounds(st.sampled_from([0, 1, 2.5]))),
    "column_median_to_be_between": merged(having(column=ranked), figures),
    "column_quantile_values_to_be_between": merged(
        having(
            column=ranked,
            quantile_ranges={
                "quantiles": [0.0, 0.3, 0.5, 1.0],
                "value_ranges": [[0, 5], [None, 3], [1, 4], [2, None]],
            },
            allow_relative_error=st.sampled_from([False, "linear", "lower", "higher", "midpoint", "nearest"]),
        )
    ),
    "column_unique_value_count_to_be_between": merged(on_column, counts),
    "column_proportion_of_unique_values_to_be_between": merged(on_column, shares),
    "column_proportion_of_non_null_values_to_be_between": merged(on_column, shares),
    "column_distinct_values_to_be_in_set": merged(on_column, having(value_set=value_set)),
    "column_distinct_values_to_contain_set": merged(on_column, having(value_set=value_set)),
    "column_distinct_values_to_equal_set": merged(on_column, having(value_set=value_set)),
    "column_most_common_value_to_be_in_set": merged(on_column, having(value_set=value_set, ties_okay=yes)),
    "column_kl_divergence_to_be_less_than": st.one_of(
        having(
            column=number,
            threshold=st.sampled_from([0.1, 5]),
            tail_weight_holdout=st.sampled_from([0, 0.1]),
            partition_object={"bins": [0, 1, 2, 5, 10], "weights": [0.25, 0.25, 0.25, 0.25]},
        ),
        having(
            column=st.sampled_from(["other_text", "small"]),
            threshold=0.5,
            tail_weight_holdout=0.1,
            partition_object={"values": ["a", "ab", "abc"], "weights": [0.5, 0.25, 0.25]},
        ),
    ),
    "table_row_count_to_be_between": counts,
    "table_row_count_to_equal": having(value=st.sampled_from([0, 1, 7])),
    "table_column_count_to_be_between": counts,
    "table_column_count_to_equal": having(value=st.integers(12, 15)),
    "table_columns_to_match_set": having(column_set=st.just(["row_id", "int"]), exact_match=yes),
    "table_columns_to_match_ordered_list": having(column_list=st.sampled_from([["row_id", "int"], ["int"]])),
    "column_to_exist": having(column=st.sampled_from(["int", "absent"])),
}
CONDITIONED = [
    name
    for name in ARGUMENTS
    if name.startswith(
        (
            "column_values",
            "column_value_",
            "column_m",
            "column_pair_values_to_be_equal",
            "multicolumn_sum",
            "column_unique",
        )
    )
]


@st.composite
def expectations(draw: Any) -> dict[str, Any]:
    name = draw(st.sampled_from(sorted(ARGUMENTS)))
    kwargs = dict(draw(ARGUMENTS[name]))
    if name in CONDITIONED and draw(st.integers(0, 4)) == 0:
        kwargs["row_condition"] = draw(conditions)
        kwargs |= {"condition_parser": "pandas"} if isinstance(kwargs["row_condition"], str) else {}
    if "column" in kwargs and name.startswith("column_values") and draw(st.integers(0, 40)) == 0:
        kwargs["column"] = "absent"
    return {"type": f"expect_{name}", "kwargs": kwargs}


def suite_of(entries: list[dict[str, Any]]) -> Suite:
    return Suite("drawn", {"name": "drawn", "expectations": entries})


def on_whole_frame(table: Any, suite: Suite, result_format: dict[str, Any]) -> list[dict[str, Any]]:
    """Great Expectations as its documentation has it."""
    import uuid

    from great_expectations.core.expectation_suite import ExpectationSuite

    from validation.data.engine.execution import _context

    context, name = _context(), uuid.uuid4().hex
    try:
        asset = context.data_sources.add_pandas(name).add_dataframe_asset("rows")
        frame = table.to_pandas(ignore_metadata=True)
        batch = asset.add_batch_definition_whole_dataframe("rows").get_batch({"dataframe": frame})
        whole = ExpectationSuite(name="whole")
        whole.expectations = suite.build()
        for number, expectation in enumerate(whole.expectations):
            expectation.id = str(number)
        outcome = batch.validate(whole, result_format=dict(result_format))
    finally:
        context.data_sources.delete(name)
    found = {result.expectation_config.id: result.to_json_dict() for result in outcome.results}
    return [found[str(number)] for number in range(len(whole.expectations))]


def raised(result: dict[str, Any]) -> list[str]:
    info = result.get("exception_info") or {}
    infos = [info] if "raised_exception" in info else list(info.values())
    return sorted(str(i["exception_message"]) for i in infos if i["raised_exception"])


def plain(value: Any) -> Any:
    """JSON values that compare: NumPy's scalars as Python's, NaN as itself."""
    if hasattr(value, "item"):
        value = value.item()
    if hasattr(value, "to_dict"):  # Unexpected rows are a frame.
        value = value.to_dict("records")
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return "NaN" if isinstance(value, float) and math.isnan(value) else value


def assert_same(found: Any, wanted: Any, where: str) -> None:
    if isinstance(wanted, dict):
        assert isinstance(found, dict), where
        assert found.keys() == wanted.keys(), where
        for key in wanted:
            assert_same(found[key], wanted[key], f"{where}.{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), (where, found, wanted)
        for number, pair in enumerate(zip(found, wanted, strict=True)):
            assert_same(*pair, f"{where}[{number}]")
    elif isinstance(wanted, float) and isinstance(found, float) and not isinstance(wanted, bool):
        # Sums of floats depend on their order in the last digits.
        assert math.isclose(found, wanted, rel_tol=1e-9, abs_tol=1e-12), (where, found, wanted)
    else:
        assert type(found) is type(wanted), (where, found, wanted)
        assert found == wanted, (where, found, wanted)


def check(entry: dict[str, Any], found: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
    where = f"{where} {entry}"
    if raised(wanted):
        # The words may differ, but where Great Expectations fails, so does the engine.
        assert raised(found), (where, raised(wanted), found)
        assert found["success"] is False
        return
    assert not raised(found), (where, raised(found), wanted)
    result, expected = plain(found.get("result") or {}), plain(wanted.get("result") or {})
    for unordered in ("partial_missing_list",):  # Great Expectations lists a set.
        for told in (result, expected):
            if unordered in told:
                told[unordered] = sorted(told[unordered], key=repr)
    assert bool(found["success"]) == bool(wanted["success"]), (where, result, expected)
    assert_same(result, expected, where)


def result_format(form: str, named: bool, extra: str | None = None) -> dict[str, Any]:
    made: dict[str, Any] = {"result_format": form, "partial_unexpected_count": 5}
    made |= {extra: True} if extra else {}
    return made | ({"unexpected_index_column_names": ["row_id"]} if named else {})


def in_process(table: Any, blocks: list[Any], suite: Suite, form: dict[str, Any]) -> list[dict[str, Any]]:
    from tests.data.in_process import over_blocks
    from validation.data.gate import conclude, plan_gate

    plan = plan_gate(suite, table.schema, "row_id", result_format=form)
    report = conclude(plan, [plan.judge_block(block).partial for block in blocks], over_blocks(blocks))
    assert report.rows == len(table)
    found: list[dict[str, Any]] = report.validation["results"]
    return found


def through_ray(table: Any, blocks: list[Any], suite: Suite, form: dict[str, Any]) -> list[dict[str, Any]]:
    import ray.data

    from validation.data.engine.rounds import partials_of
    from validation.data.gate import finish_gate, plan_gate

    dataset = ray.data.from_arrow(blocks)
    plan = plan_gate(suite, table.schema, "row_id", result_format=form)
    partials = partials_of(dataset.select_columns(plan.columns), plan.first, 0.5)
    found: list[dict[str, Any]] = finish_gate(plan, partials, dataset.select_columns).validation["results"]
    return found


def compare(case: Any, entries: list[dict[str, Any]], form: dict[str, Any], run: Any) -> None:
    table, blocks = case
    suite = suite_of(entries)
    wanted = on_whole_frame(table, suite, form)
    for entry, found, expected in zip(entries, run(table, blocks, suite, form), wanted, strict=True):
        check(entry, found, expected, str(form))


def drawing(cases: int) -> Any:
    return settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        print_blob=True,
    )


suites = st.lists(expectations(), min_size=8, max_size=16, unique_by=repr)
extras = st.sampled_from(
    [None, None, "include_unexpected_rows", "return_unexpected_index_query", "exclude_unexpected_values"]
)
forms = st.builds(result_format, st.sampled_from(FORMATS), yes, extras)


@pytest.mark.timeout(0)  # As many cases as are asked for.
@pytest.mark.parametrize("narrow", [False, True], ids=["", "narrow"])
def test_equals_great_expectations_on_the_whole_frame(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, narrow: bool
) -> None:
    if narrow:  # As if rows were many: hashes in several parts, ranks by several histograms.
        monkeypatch.setattr(programs, "MAX_HASHES", 5)
        monkeypatch.setattr(programs, "MAX_KEYS", 3)

    @drawing(int(request.config.getoption("--conformance-cases")) // 2)
    @given(tables(), suites, forms)
    def conforms(case: Any, entries: list[dict[str, Any]], form: dict[str, Any]) -> None:
        compare(case, entries, form, in_process)

    conforms()


@pytest.mark.timeout(0)
@pytest.mark.integration
@pytest.mark.usefixtures("local_ray")
def test_equals_it_through_ray(request: pytest.FixtureRequest) -> None:
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False

    @drawing(int(request.config.getoption("--conformance-ray")))
    @given(tables(), st.lists(expectations(), min_size=20, max_size=30, unique_by=repr), forms)
    def conforms(case: Any, entries: list[dict[str, Any]], form: dict[str, Any]) -> None:
        compare(case, entries, form, through_ray)

    conforms()


def test_every_expectation_said_to_be_exact_is_drawn() -> None:
    assert set(ARGUMENTS) == {name for name, (status, _) in COVERAGE.items() if status == EXACT}


def test_every_core_expectation_is_in_the_table() -> None:
    from great_expectations.expectations import core
    from great_expectations.expectations.expectation import Expectation

    kinds = [k for k in vars(core).values() if isinstance(k, type) and issubclass(k, Expectation)]
    names = {k.expectation_type for k in kinds if not k.is_abstract()}
    assert names == {full_name(name) for name in COVERAGE}


def test_the_readme_has_the_table() -> None:
    assert as_markdown() in (Path(suite_module.__file__).parent / "README.md").read_text(encoding="utf-8")


def test_distinct_values_beyond_what_a_block_tells_are_counted_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import pyarrow as pa

    monkeypatch.setattr(aggregates, "MAX_BLOCK_VALUES", 10)
    monkeypatch.setattr(programs, "MAX_HASHES", 50)
    values = [f"w{i % 170}" if i % 7 else None for i in range(400)]
    table = pa.table({"row_id": [str(i) for i in range(400)], "text": values})
    entries = [
        {
            "type": "expect_column_unique_value_count_to_be_between",
            "kwargs": {"column": "text", "min_value": 1},
        },
        {
            "type": "expect_column_distinct_values_to_be_in_set",
            "kwargs": {"column": "text", "value_set": ["a"]},
        },
    ]
    blocks = [table.slice(at, 50) for at in range(0, 400, 50)]
    found = in_process(table, blocks, suite_of(entries), result_format("BASIC", True))
    assert found[0]["result"]["observed_value"] == len(set(values) - {None})
    # A set that is not told cannot be compared: no number, but an error.
    assert "more distinct values" in raised(found[1])[0]


@pytest.mark.parametrize("clause", [None, "kind == 'a'"])
def test_a_block_that_cannot_be_judged_is_heard_beside_blocks_without_rows(clause: str | None) -> None:
    kwargs: dict[str, Any] = {"column": "word", "min_value": 1, "max_value": 3}
    if clause:
        kwargs |= {"row_condition": clause, "condition_parser": "pandas"}
    suite = suite_of([{"type": "expect_column_values_to_be_between", "kwargs": kwargs}])
    import pyarrow as pa

    table = pa.table({"row_id": ["1", "2", "3"], "kind": ["a"] * 3, "word": [None, "x", None]})
    blocks = [table.slice(at, 1) for at in range(3)]
    (found,) = in_process(table, blocks, suite, result_format("BASIC", True))
    assert raised(found) == [
        "Column values, min_value, and max_value must either be None or of the same type."
    ]
