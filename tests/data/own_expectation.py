"""An expectation as a user writes it: Great Expectations' own classes, nothing of ours."""

from __future__ import annotations

from typing import Any

from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import ColumnMapExpectation
from great_expectations.expectations.metrics import ColumnMapMetricProvider, column_condition_partial


class ColumnValuesShouted(ColumnMapMetricProvider):
    condition_metric_name = "column_values.shouted"

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: Any, **kwargs: Any) -> Any:
        return column.str.isupper()


class ExpectColumnValuesToBeShouted(ColumnMapExpectation):
    """Expect text in capitals."""

    map_metric = "column_values.shouted"
