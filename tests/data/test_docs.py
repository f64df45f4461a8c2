"""The page says what Great Expectations said, in its words, and works without a network."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from cluster.errors import UsageError
from tests.data.in_process import over_blocks
from tests.data.test_card import Page
from validation.data import GateReport
from validation.data.docs import docs_html, suite_docs
from validation.data.gate import conclude, plan_gate
from validation.data.suite import Suite

MARKUP = '<img src="http://evil/x.png">'


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    """A real result, through JSON as a file would keep it."""
    import great_expectations as gx
    import pandas as pd

    expect = gx.expectations
    frame = pd.DataFrame(
        {"row_id": [f"r{i}" for i in range(20)], "text": ["fine"] * 17 + [MARKUP] * 2 + [None]}
    )
    frame["label"] = [0, 1] * 10
    suite = gx.ExpectationSuite(
        name="small",
        expectations=[
            expect.ExpectColumnValuesToNotBeNull(column="text", mostly=0.9, notes="a note"),
            expect.ExpectColumnValuesToNotMatchRegex(column="text", regex="<", severity="warning"),
            expect.ExpectColumnMeanToBeBetween(column="label", min_value=0.7),
            expect.ExpectColumnMaxToBeBetween(column="nothing", max_value=1),
            expect.ExpectColumnKLDivergenceToBeLessThan(
                column="label", partition_object={"values": [0, 1], "weights": [0.9, 0.1]}, threshold=0.1
            ),
            expect.ExpectColumnQuantileValuesToBeBetween(
                column="label", quantile_ranges={"quantiles": [0.5], "value_ranges": [[0, 1]]}
            ),
        ],
    )
    context = gx.get_context(mode="ephemeral")
    asset = context.data_sources.add_pandas("frames").add_dataframe_asset("frame")
    batch = asset.add_batch_definition_whole_dataframe("whole").get_batch({"dataframe": frame})
    form = {"result_format": "COMPLETE", "unexpected_index_column_names": ["row_id"]}
    judged = batch.validate(suite, result_format=form).to_json_dict()
    return dict(json.loads(json.dumps(judged, default=lambda value: value.item())))


def test_the_words_are_great_expectations_own(result: dict[str, Any]) -> None:
    suite = suite_docs("contract", result)
    assert (suite.suite, suite.success) == ("small", False)
    assert {outcome: suite.number(outcome) for outcome in ("held", "failed", "error")} == {
        "held": 2,
        "failed": 3,
        "error": 1,
    }
    said = {e.type: ("".join(w.text for w in e.sentence), e) for e in suite.expectations}
    sentence, regex = said["expect_column_values_to_not_match_regex"]
    assert sentence == "text values must not match this regular expression: <."
    assert regex.unexpected == {MARKUP: 2}
    assert (regex.rows, regex.severity) == (["r17", "r18"], "warning")
    assert regex.counts == {"rows": "20", "missing": "1", "unexpected": "2 (10.5 %)"}
    sentence, nulls = said["expect_column_values_to_not_be_null"]
    assert sentence == "text values must not be null, at least 90 % of the time."
    assert (nulls.observed, nulls.notes) == ("5% unexpected", ["a note"])
    assert said["expect_column_mean_to_be_between"][1].observed == "0.5"
    assert "does not exist" in (said["expect_column_max_to_be_between"][1].error or "")
    divergence, seen = said["expect_column_kl_divergence_to_be_less_than"]
    assert divergence.endswith("must be lower than 0.1. 0 0.9; 1 0.1")
    assert "KL Divergence: ≈0.5108" in seen.observed
    assert "quantiles must be within" in said["expect_column_quantile_values_to_be_between"][0]


def test_the_page_is_whole_without_a_network(result: dict[str, Any]) -> None:
    page = docs_html({"contract": result, "final": result}, "a dataset")
    seen = Page(page)
    assert not seen.fetched
    assert not seen.tags & {"script", "img", "link", "iframe"}
    assert MARKUP in seen.text  # As text.
    assert "text values must not be null, at least 90 % of the time." in seen.text
    assert "2 of 6" in seen.text
    assert MARKUP not in Page(docs_html({"contract": result}, "a dataset", show_values=False)).text
    masked = Page(
        docs_html({"contract": result}, "a dataset", mask=lambda text: text.replace("evil", "***"))
    ).text
    assert MARKUP.replace("evil", "***") in masked
    assert "evil" not in masked


def test_the_page_says_what_the_verdict_is() -> None:
    blocks = [pa.table({"row_id": ["a", "b", "c"], "text": ["one", "two", None]})]
    asked = [
        ("expect_column_to_exist", {"column": "text"}, "critical"),
        ("expect_column_values_to_not_be_null", {"column": "text"}, "warning"),
        ("expect_column_values_to_match_regex", {"column": "text", "regex": "^o"}, "info"),
    ]

    def judged(severe: int) -> GateReport:
        """The three, as many of which are critical as ``severe`` says."""
        entries = [
            {"type": kind, "kwargs": kwargs, "severity": "critical" if n < severe else severity}
            for n, (kind, kwargs, severity) in enumerate(asked)
        ]
        suite = Suite(name="mine", document={"name": "mine", "expectations": entries})
        plan = plan_gate(suite, blocks[0].schema)
        return conclude(plan, [plan.judge_block(b).partial for b in blocks], over_blocks(blocks))

    passed, refused = judged(1), judged(2)
    assert (passed.success, refused.success) == (True, False)
    page = docs_html({"contract": passed.validation}, "a dataset")
    assert "contract: mine passed, with 1 warning and 1 info" in " ".join(Page(page).text.split())
    # Nothing is shown in the colour of a failure.
    shown = page.rpartition("</style>")[2]
    assert 'bad"' not in shown
    assert shown.count('"mark warn">fails') == shown.count('"mark soft">fails') == 1
    listed = [e.severity for e in suite_docs("contract", passed.validation).expectations]
    assert listed == ["warning", "info", "critical"]
    page = Page(docs_html({"contract": refused.validation}, "a dataset")).text
    assert "contract: mine failed: 1 critical" in " ".join(page.split())


ADDRESS = "ann@example.com"


def mask(text: str) -> str:
    return text.replace(ADDRESS, "<EMAIL>").replace("bob@example.com", "<EMAIL>")


def entry(kind: str, result: dict[str, Any], *, error: str | None = None) -> dict[str, Any]:
    return {
        "success": False,
        "expectation_config": {"type": kind, "kwargs": {"column": "text"}},
        "result": result,
        "exception_info": {"raised_exception": error is not None, "exception_message": error},
    }


def test_personal_data_is_masked_wherever_a_row_may_be_quoted() -> None:
    long = "x" * 190 + ADDRESS
    counts = [{"value": v, "count": c} for v, c in ((ADDRESS, 2), ("bob@example.com", 3), (long, 1))]
    result = {
        "partial_unexpected_counts": counts,
        "unexpected_index_column_names": ["row_id"],
        "unexpected_index_list": [{"row_id": ADDRESS}],
    }
    found = {
        "success": False,
        "results": [
            entry("expect_column_values_to_be_in_set", result),
            entry("expect_column_max_to_be_between", {"observed_value": long}),
            entry("expect_column_min_to_be_between", {}, error=long),
        ],
    }
    failed, seen, raised = (
        next(
            e
            for e in suite_docs("contract", found, mask).expectations
            if e.type == item["expectation_config"]["type"]
        )
        for item in found["results"]
    )
    # Values that are masked alike are counted together, and nothing is cut before it is masked.
    assert failed.unexpected == {"<EMAIL>": 5, "x" * 190 + "<EMAIL>": 1}
    assert failed.rows == ["<EMAIL>"]
    assert seen.observed == raised.error == "x" * 190 + "<EMAIL>"
    hidden = Page(docs_html({"contract": found}, "a dataset", show_values=False)).text
    assert "xxx" not in hidden
    assert hidden.count("not shown") == 2


def test_what_is_no_result_is_refused() -> None:
    with pytest.raises(UsageError, match="contract is no validation result"):
        docs_html({"contract": {"success": True}}, "x")
