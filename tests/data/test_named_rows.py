"""Rows that only the whole column shows as bad are named in the driver, up to a limit that is told."""

from __future__ import annotations

import pyarrow as pa
import pytest

from cluster.errors import RefusedError
from tests.data.in_process import over_blocks
from validation.data import GateReport, Suite
from validation.data import gate as gates
from validation.data.engine import programs, tasks


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (gates, programs, tasks):
        monkeypatch.setattr(module, "MAX_NAMED_ROWS", 3)


def judged(name: str, mostly: float, repeated: int, severity: str = "critical") -> GateReport:
    keys = ["same"] * repeated + [f"k{n}" for n in range(20 - repeated)]
    table = pa.table({"row_id": [f"r{n}" for n in range(20)], "key": keys})
    blocks = [table.slice(start, 3) for start in range(0, 20, 3)]
    entry = {"type": name, "kwargs": {"column": "key", "mostly": mostly}, "severity": severity}
    suite = Suite("s", {"name": "s", "expectations": [entry]})
    plan = gates.plan_gate(suite, table.schema, drop=("critical", "warning"))
    return gates.conclude(plan, [plan.judge_block(b).partial for b in blocks], over_blocks(blocks))


def test_as_many_as_the_limit_are_named() -> None:
    report = judged("expect_column_values_to_be_unique", 0.5, 3)
    assert report.success
    assert sorted(report.bad_rows) == ["r0", "r1", "r2"]


def test_more_are_refused_if_they_were_to_be_dropped() -> None:
    with pytest.raises(RefusedError) as caught:
        judged("expect_column_values_to_be_unique", 0.5, 7)
    assert "suite s: 7 rows break expect_column_values_to_be_unique(key)" in str(caught.value)
    assert "make the expectation a warning" in str(caught.value)


def test_rows_that_a_failed_warning_drops_are_all_named_or_none_is() -> None:
    assert len(judged("expect_column_values_to_be_unique", 1, 3, "warning").bad_rows) == 3
    with pytest.raises(RefusedError):
        judged("expect_column_values_to_be_unique", 1, 7, "warning")


def test_a_suite_that_fails_names_the_first_ones() -> None:
    report = judged("expect_column_values_to_be_unique", 1, 7)
    assert not report.success
    assert report.expectations[0].unexpected_count == 7
    assert list(report.bad_rows) == ["r0", "r1", "r2"]
