"""Suites whose parameters are figures of the version before: values, verdicts, and what is refused."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import UsageError
from tests.data.in_process import over_blocks
from validation.data import GateReport, Suite, load_suite
from validation.data.docs import docs_html
from validation.data.gate import conclude, plan_gate
from validation.data.previous import STATISTICS, Previous, parameters
from validation.data.profile import NUMBERS, Profile, ProfileSpec, merge_profiles, profile_block

SPEC = ProfileSpec(split=None, texts=["text"], numbers={"score": NUMBERS}, categories=["label"])
SCHEMA = pa.schema(
    [("row_id", pa.string()), ("text", pa.string()), ("score", pa.float64()), ("label", pa.int64())]
)


def table(rows: int, seed: int = 1, words: int = 20, middle: float = 0.5, labels: int = 2) -> pa.Table:
    draw = random.Random(seed)
    texts = [" ".join(["word"] * draw.randint(words // 2, words)) for _ in range(rows)]
    return pa.table(
        {
            "row_id": [f"r{n}" for n in range(rows)],
            "text": [None if n % 50 == 7 else text for n, text in enumerate(texts)],
            "score": [draw.gauss(middle, 0.1) for _ in range(rows)],
            "label": [n % labels for n in range(rows)],
        },
        schema=SCHEMA,
    )


def profile(data: pa.Table, cuts: int = 3) -> Profile:
    step = -(-len(data) // cuts)
    return merge_profiles(SPEC, [profile_block(SPEC, data.slice(n * step, step)) for n in range(cuts)])


def suite_of(*entries: tuple[str, dict[str, Any]]) -> Suite:
    made = [{"type": f"expect_{name}", "kwargs": kwargs} for name, kwargs in entries]
    return Suite("drift", {"name": "drift", "expectations": made})


def parameter(expression: str) -> dict[str, str]:
    return {"$PARAMETER": expression}


def judged(suite: Suite, data: pa.Table, previous: Previous | None) -> GateReport:
    plan = plan_gate(suite, data.schema, previous=previous)
    blocks = [data.slice(0, 11), data.slice(11, 0), data.slice(11)]
    report = conclude(plan, [plan.judge_block(block).partial for block in blocks], over_blocks(blocks))
    assert not [e.error for e in report.expectations if e.error]
    return report


BEFORE = Previous("default/dataset/d@1", profile(table(1000)), {"input": 1100, "quarantined": 100})
DRIFT = suite_of(
    ("table_row_count_to_be_between", {"min_value": parameter("trunc(previous_rows * 0.9)")}),
    (
        "column_mean_to_be_between",
        {
            "column": "score",
            "min_value": parameter("previous_score_mean - 0.1"),
            "max_value": parameter("previous_score_mean + 0.1"),
        },
    ),
    (
        "column_median_to_be_between",
        {"column": "text.words", "min_value": parameter("previous_text_words_p05")},
    ),
    (
        "column_distinct_values_to_be_in_set",
        {"column": "label", "value_set": parameter("previous_label_values")},
    ),
    (
        "column_kl_divergence_to_be_less_than",
        {
            "column": "text.characters",
            "partition_object": parameter("previous_text_characters_partition"),
            "threshold": 0.2,
        },
    ),
    (
        "column_kl_divergence_to_be_less_than",
        {
            "column": "label",
            "partition_object": parameter("previous_label_value_partition"),
            "threshold": 0.1,
            "tail_weight_holdout": 0.01,
        },
    ),
    (
        "column_values_to_not_be_null",
        {"column": "text", "mostly": parameter("1 - previous_text_characters_null_share - 0.01")},
    ),
)


def test_more_of_the_same_holds() -> None:
    report = judged(DRIFT, table(950, seed=2), BEFORE)
    assert [e.label for e in report.expectations if not e.success] == []
    assert report.left_out == []
    count, mean = report.expectations[:2]
    assert count.kwargs["min_value"] == 900
    assert mean.kwargs["min_value"] == pytest.approx(0.4, abs=0.02)
    page = docs_html({"final": report.validation}, "d")
    assert "Compared with trunc(previous_rows * 0.9), of default/dataset/d@1." in page


@pytest.mark.parametrize(
    ("changed", "broken"),
    [
        (table(800, seed=3), {0}),
        (table(950, seed=3, middle=0.8), {1}),
        (table(950, seed=3, words=60), {4}),
        (table(950, seed=3, words=4), {2, 4}),
        (table(950, seed=3, labels=3), {3, 5}),
        (table(950).set_column(1, "text", [[None] * 50 + ["word"] * 900]), {2, 4, 6}),
    ],
)
def test_what_changed_breaks_its_expectation_and_no_other(changed: pa.Table, broken: set[int]) -> None:
    report = judged(DRIFT, changed.cast(SCHEMA), BEFORE)
    assert {n for n, e in enumerate(report.expectations) if not e.success} == broken
    assert not report.success


def test_a_first_version_has_nothing_to_be_compared_with() -> None:
    alone = ("column_values_to_be_unique", {"column": "row_id"})
    suite = suite_of(
        *[(e["type"].removeprefix("expect_"), e["kwargs"]) for e in DRIFT.document["expectations"]], alone
    )
    report = judged(suite, table(60), None)
    assert [e.type for e in report.expectations] == ["expect_column_values_to_be_unique"]
    assert len(report.left_out) == 7
    assert report.left_out[1] == "expect_column_mean_to_be_between(score): no version before"
    assert "not judged" in docs_html({"final": report.validation}, "d")
    # What a suite is known by does not depend on what it is compared with.
    assert judged(DRIFT, table(60), None).suite_digest == judged(DRIFT, table(60), BEFORE).suite_digest


def untold(entry: tuple[str, dict[str, Any]], data: pa.Table, previous: Previous) -> str:
    """What a suite is refused with whose figure the version before does not tell."""
    with pytest.raises(UsageError) as caught:
        plan_gate(suite_of(entry), data.schema, previous=previous)
    return str(caught.value)


def test_a_column_that_the_version_before_lacks_is_refused() -> None:
    data = table(60).append_column("new", pa.array(range(60), pa.int64()))
    entry = ("column_max_to_be_between", {"column": "new", "max_value": parameter("previous_new_maximum")})
    assert untold(entry, data, BEFORE).startswith(
        "suite drift: expectation 1 (expect_column_max_to_be_between(new)): default/dataset/d@1 does not "
        "tell previous_new_maximum: the column is new there"
    )
    # A first version has nothing to lack.
    assert judged(suite_of(entry), data, None).left_out


def test_more_categories_than_are_counted_are_refused() -> None:
    spec = ProfileSpec(split=None, categories=["label"], max_categories=3)
    many = merge_profiles(spec, [profile_block(spec, table(60, labels=9))])
    entry = (
        "column_distinct_values_to_be_in_set",
        {"column": "label", "value_set": parameter("previous_label_values")},
    )
    assert "x does not tell previous_label_values" in untold(entry, table(60), Previous("x", many))


@pytest.mark.parametrize("scores", [[2.0**20] * 5, [-(2.0**20)] * 5, [0.0, 2.0**20, 2.0**21], [3.0]])
def test_data_at_the_edges_of_all_bins_is_like_itself(scores: list[float]) -> None:
    data = pa.table({"row_id": [f"r{n}" for n in range(len(scores))], "score": scores})
    spec = ProfileSpec(split=None, numbers={"score": NUMBERS})
    before = Previous("x", merge_profiles(spec, [profile_block(spec, data)]))
    kwargs = {"column": "score", "partition_object": parameter("previous_score_partition"), "threshold": 0.6}
    assert judged(suite_of(("column_kl_divergence_to_be_less_than", kwargs)), data, before).success


@pytest.mark.parametrize("scores", [[1.0, math.inf, -math.inf], [1e300, -1e300, 1e308]])
def test_what_is_not_finite_is_not_told(scores: list[float]) -> None:
    spec = ProfileSpec(split=None, numbers={"score": NUMBERS})
    before = Previous("x", merge_profiles(spec, [profile_block(spec, pa.table({"score": scores}))]))
    told = [value for value in parameters(before, SCHEMA).values() if isinstance(value, float)]
    assert "previous_score_median" in parameters(before, SCHEMA)
    assert all(map(math.isfinite, told))


@pytest.mark.parametrize("before", [["cat", "dog"], ["true"], ["3.5"]])
def test_categories_of_another_type_are_refused(before: list[str]) -> None:
    spec = ProfileSpec(split=None, categories=["label"])
    profile = merge_profiles(spec, [profile_block(spec, pa.table({"label": before}))])
    entry = (
        "column_distinct_values_to_be_in_set",
        {"column": "label", "value_set": parameter("previous_label_values")},
    )
    assert "x does not tell previous_label_values" in untold(entry, table(60), Previous("x", profile))


@pytest.mark.parametrize(
    ("condition", "parser"),
    [('col("text.words") > 2', "great_expectations"), ("`text.words` > 2", "pandas")],
)
def test_a_length_that_only_a_row_condition_names_is_made(condition: str, parser: str) -> None:
    kwargs = {"column": "label", "row_condition": condition, "condition_parser": parser}
    data = table(60)
    (found,) = judged(suite_of(("column_values_to_not_be_null", kwargs)), data, None).expectations
    assert found.success
    assert found.element_count == sum(t is not None for t in data["text"].to_pylist())


def test_messages_without_text_have_no_lengths_and_stop_nobody_else() -> None:
    parts = pa.list_(pa.struct([("content", pa.list_(pa.string()))]))
    chat = pa.array([[{"content": ["a"]}], None], parts)
    data = pa.table({"row_id": ["a", "b"], "chat": chat, "number": [1, 2]})
    suite = suite_of(
        ("column_max_to_be_between", {"column": "chat.words", "max_value": 2}),
        ("column_max_to_be_between", {"column": "number", "max_value": 2}),
    )
    plan = plan_gate(suite, data.schema)
    report = conclude(plan, [plan.judge_block(data).partial], over_blocks([data]))
    assert [(e.success, bool(e.error)) for e in report.expectations] == [(False, True), (True, False)]


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        (
            "previous_scores_mean",
            "$PARAMETER 'previous_scores_mean' is nothing that the version before tells",
        ),
        ("previous_score_average", "one of mean, minimum"),
        ("previous_score_words_mean", "'previous_score_words_mean' is nothing"),
        ("previous_text_mean", "'previous_text_mean' is nothing"),
        ("rows * 2", "'rows * 2' is nothing"),
        ("previous_rows *", "has no value"),
        ("previous_rows / 0", "has no value"),
    ],
)
def test_an_unknown_parameter_is_refused_by_name(expression: str, words: str) -> None:
    suite = suite_of(("table_row_count_to_be_between", {"min_value": parameter(expression)}))
    for previous in (BEFORE, None) if "has no value" not in words else (BEFORE,):
        with pytest.raises(UsageError) as caught:
            plan_gate(suite, SCHEMA, previous=previous)
        assert words in str(caught.value)
        assert "suite drift: expectation 1 (expect_table_row_count_to_be_between)" in str(caught.value)


def test_every_figure_is_that_of_the_data_before() -> None:
    data = table(1000)
    found, scores = parameters(BEFORE, SCHEMA), sorted(data["score"].to_pylist())
    assert found["previous_rows"] == 1000
    assert (found["previous_input_rows"], found["previous_quarantined_rows"]) == (1100, 100)
    assert found["previous_score_mean"] == pytest.approx(sum(scores) / 1000)
    assert (found["previous_score_minimum"], found["previous_score_maximum"]) == (scores[0], scores[-1])
    assert found["previous_score_median"] == pytest.approx(scores[500], rel=0.05)
    assert found["previous_text_characters_null_share"] == 0.02
    assert sorted(found["previous_label_values"]) == [0, 1]
    weights = found["previous_score_partition"]
    # No wider than the data.
    assert 0.5 * scores[0] < weights["bins"][0] <= scores[0] < scores[-1] < weights["bins"][-1]
    assert sum(weights["weights"]) + sum(weights["tail_weights"]) == pytest.approx(1)
    assert len(weights["weights"]) == len(weights["bins"]) - 1
    assert {name.rpartition("_score_")[2] for name in found if "_score_" in name} <= set(STATISTICS)


@settings(deadline=None)
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30), st.integers(0, 30)
)
def test_the_mean_of_floats_is_exact_however_they_are_split(values: list[float], cut: int) -> None:
    spec = ProfileSpec(split=None, numbers={"x": [0.0, 1.0]})
    blocks = [pa.table({"x": pa.array(part, pa.float64())}) for part in (values[:cut], values[cut:])]
    histogram = merge_profiles(spec, [profile_block(spec, block) for block in blocks]).histograms["x"]
    assert histogram.mean == float(sum(map(Fraction, values)) / len(values))
    assert math.isfinite(histogram.mean)


def test_suites_that_compare_are_refused_where_columns_are_written_alike() -> None:
    spec = ProfileSpec(split=None, numbers={"a b": [0.0, 1.0], "a_b": [0.0, 1.0]})
    block = pa.table({"a b": [0.5], "a_b": [0.6]})
    before = Previous("x", merge_profiles(spec, [profile_block(spec, block)]))
    assert set(parameters(before, block.schema)) == {"previous_rows"}


def test_the_shipped_suite_takes_a_profile_of_plain_documents() -> None:
    spec = ProfileSpec(texts=["text"])
    data = table(100).append_column("split", [["train"] * 100])
    before = Previous("x", merge_profiles(spec, [profile_block(spec, data)]))
    assert judged(load_suite("documents-drift"), data, before).success
    longer = table(100, words=200).append_column("split", [["train"] * 100])
    report = judged(load_suite("documents-drift"), longer, before)
    assert [e.column for e in report.failed] == ["text.characters"]
    assert [e.column for e in report.warnings] == ["text.words"]
