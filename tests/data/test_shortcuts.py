"""Arrow's kernels and pandas' find the same rows, whatever texts, patterns and limits are drawn."""

from __future__ import annotations

import math
import re
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from validation.data.engine.frames import Block, Domain
from validation.data.engine.shortcuts import means_the_same, unexpected
from validation.data.engine.tasks import Condition, mapping

LETTERS = st.text(st.sampled_from("ab1_ -.\n\t\x1f\u00e9\u0661\U0001f600"), max_size=6)
TEXTS = st.lists(st.none() | LETTERS, max_size=12)
PARTS = st.sampled_from(
    [
        *("a", "b", "1", "_", ".", "^", "$", "|", r"\d", r"\w", r"\.", "[ab]", "[^a]", "[a-c1]", "(a|b)"),
        *("(?:ab)", "a*", "b+", "1?", "a+?", "a{2}", "a{1,}", "[.$]", "$", "^"),
        *(r"\s", r"\b", "(?i)a", "(?=a)", "a{,2}", "a++", "(?P<n>a)", "[[:alpha:]]", r"\D"),
    ]
)
PATTERNS = st.lists(PARTS, min_size=1, max_size=5).map("".join)
LIMITS = st.none() | st.integers(0, 6) | st.floats(0, 6)
STRICT = st.booleans()
ARGUMENTS = st.one_of(
    st.tuples(st.sampled_from(["column_values.nonnull", "column_values.null"]), st.just({})),
    st.tuples(
        st.sampled_from(["column_values.in_set", "column_values.not_in_set"]),
        st.fixed_dictionaries({"value_set": st.lists(LETTERS | st.none() | st.integers(0, 1), max_size=3)}),
    ),
    st.tuples(
        st.just("column_values.value_length.between"),
        st.fixed_dictionaries(
            {"min_value": LIMITS, "max_value": LIMITS, "strict_min": STRICT, "strict_max": STRICT}
        ),
    ),
    st.tuples(st.just("column_values.value_length.equals"), st.fixed_dictionaries({"value": LIMITS})),
    st.tuples(
        st.sampled_from(["column_values.match_regex", "column_values.not_match_regex"]),
        st.fixed_dictionaries({"regex": PATTERNS}),
    ),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TEXTS, ARGUMENTS, st.sampled_from([pa.string(), pa.large_string()]), st.integers(0, 12))
def test_both_ways_find_the_same_rows(
    texts: list[str | None], asked: tuple[str, dict[str, Any]], kind: Any, cut: int
) -> None:
    metric, values = asked
    chunks = [pa.array(texts[:cut], kind), pa.array(texts[cut:], kind)]
    table = pa.table({"text": pa.chunked_array(chunks)})
    domain = Domain(("text",), drop_null=not metric.endswith("null"))
    found = unexpected(metric, domain, values, table)
    if found is None:
        return
    condition = Condition(metric, domain, mapping(values))
    rows = Block(table).records(domain)
    wanted = condition._positions(condition._unexpected(rows), rows)
    assert (found[0], found[1].tolist()) == (len(rows), wanted.tolist())


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(
        st.none() | st.sampled_from([0.0, -0.0, 1.5, 2.0, 3.0, math.inf, -math.inf, math.nan]), max_size=9
    ),
    st.fixed_dictionaries(
        {"min_value": LIMITS, "max_value": LIMITS, "strict_min": STRICT, "strict_max": STRICT}
    ),
)
def test_both_ways_find_the_same_numbers(numbers: list[float | None], values: dict[str, Any]) -> None:
    table = pa.table({"x": pa.array(numbers, pa.float64())})
    domain = Domain(("x",), drop_null=True)
    found = unexpected("column_values.between", domain, values, table)
    if found is not None:
        condition = Condition("column_values.between", domain, mapping(values))
        rows = Block(table).records(domain)
        wanted = condition._positions(condition._unexpected(rows), rows)
        assert (found[0], found[1].tolist()) == (len(rows), wanted.tolist())


@pytest.mark.parametrize("values", [[1.5, None, float("nan")], [1, None, 2], [True, None], [1, 2]])
def test_nulls_of_other_types_are_pandas_nulls(values: list[Any]) -> None:
    table = pa.table({"x": values})
    frame = table.to_pandas()["x"]
    for metric, wanted in (("nonnull", frame.isnull()), ("null", frame.notnull())):
        found = unexpected(f"column_values.{metric}", Domain(("x",)), {}, table)
        assert found is not None
        assert found[1].tolist() == [n for n, broken in enumerate(wanted) if broken]


def test_a_length_beyond_all_integers_is_left_to_pandas() -> None:
    domain, table = Domain(("x",), drop_null=True), pa.table({"x": ["a"]})
    assert unexpected("column_values.value_length.equals", domain, {"value": 2**70}, table) is None


@pytest.mark.parametrize("pattern", [r"^r\d+$", r"^[a-z_]{2,8}(?:\.\w+)?$", "a|b", r"^\$\{x\}"])
def test_plain_patterns_take_the_short_way(pattern: str) -> None:
    assert means_the_same(pattern)
    found = unexpected(
        "column_values.match_regex", Domain(("x",)), {"regex": pattern}, pa.table({"x": ["r1", "a", "${x}"]})
    )
    assert found is not None
    assert found[1].tolist() == [n for n, x in enumerate(["r1", "a", "${x}"]) if not re.search(pattern, x)]


@pytest.mark.parametrize(
    "pattern",
    [r"\s", r"\bword", "(?i)a", "(?=a)", "a{,2}", "a++", "(?P<n>a)", "[[:alpha:]]", r"\D", "(", "é", "a**"],
)
def test_patterns_that_may_mean_something_else_do_not(pattern: str) -> None:
    assert not means_the_same(pattern)
