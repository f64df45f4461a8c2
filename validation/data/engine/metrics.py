"""Great Expectations' metrics as plain values: what a suite needs, without Great Expectations' classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from validation.data.engine.aggregates import UnsupportedError
from validation.data.engine.clauses import columns_in, whole_table_parts
from validation.data.engine.conditions import KERNELS
from validation.data.engine.frames import Domain

CONDITION, MAP = ".condition", ".map"

#: What a condition is made of: its program has used them, and nobody else asks.
INNER = frozenset({"column.outlier_statistics"})

#: Great Expectations derives these from a condition's unexpected rows: the condition's frame is all it takes.
LISTED = (".unexpected_values", ".unexpected_index_list", ".unexpected_index_query", ".unexpected_rows")
COUNTED = (".unexpected_count", ".filtered_row_count")

#: Great Expectations derives these from other metrics, or from the names and types of columns.
DERIVED = frozenset(
    {
        "table.columns",
        "table.column_types",
        "table.column_count",
        "column.unique_proportion",
        "column.non_null_proportion",
        "column.descriptive_stats",
        "column_values.null.count",
        "column_values.nonnull.count",
        "column_values.match_regex.count",
        "column_values.not_match_regex.count",
    }
)


@dataclass(frozen=True)
class Metric:
    """One metric to be computed, with its domain and its arguments as Great Expectations names them."""

    name: str
    domain: Mapping[str, Any]
    values: Mapping[str, Any]
    #: Module that registers a user's own condition metric; Great Expectations itself runs it in the workers.
    module: str | None = None
    #: Filled in where ``row_condition`` is no plain query.
    clause: str | None = None
    #: Why it cannot be computed.
    refused: str | None = None

    @cached_property
    def key(self) -> str:
        """Identity of the metric, whatever batch it is asked of."""
        return metric_key(self.name, self.domain, self.values)


def metric_key(name: str, domain: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """Identity of a metric by what it is computed from."""
    told = {k: v for k, v in domain.items() if k != "batch_id" and v is not None}
    return json.dumps([name, told, dict(values or {})], sort_keys=True, default=repr)


@dataclass(frozen=True)
class Listing:
    """How much of unexpected rows a result format names."""

    limit: int | None = 20
    columns: tuple[str, ...] = ()

    @classmethod
    def of(cls, result_format: Mapping[str, Any], names: tuple[str, ...]) -> Listing:
        """For Great Expectations' result format."""
        form, partial = (
            result_format.get("result_format"),
            int(result_format.get("partial_unexpected_count", 20)),
        )
        query = result_format.get("return_unexpected_index_query")
        limit: int | None = None if query else partial
        if form == "BOOLEAN_ONLY" and not query:
            limit = 0
        elif form == "COMPLETE" or result_format.get("exclude_unexpected_values"):
            limit = None  # Without values Great Expectations lists the identities of all rows, in any format.
        columns = tuple(result_format.get("unexpected_index_column_names") or ())
        if result_format.get("include_unexpected_rows"):
            columns = names
        return cls(limit, tuple(c for c in columns if c in names))


@dataclass(frozen=True)
class Table:
    """What every program knows of the table before anything is computed."""

    schema: Any  # pyarrow.Schema
    listing: Listing = field(default_factory=Listing)
    #: Column whose values identify rows, for conditions whose unexpected rows are to be listed whole.
    row_id: str | None = None
    #: Keys of the conditions of which all unexpected rows are identified.
    identified: frozenset[str] = frozenset()
    #: Columns whose pandas type somebody asks for, so that their nulls must be known.
    typed: tuple[str, ...] = ()

    def domain(self, metric: Metric, drop_null: bool = False) -> Domain:
        """The metric's domain. Raises UnsupportedError with Great Expectations' words when there is none."""
        kwargs, names = metric.domain, self.schema.names
        if kwargs.get("table"):
            raise UnsupportedError("the engine has one table: another one cannot be named")
        if kwargs.get("column") is not None:
            columns: tuple[str, ...] = (kwargs["column"],)
        elif kwargs.get("column_A") is not None:
            columns = (kwargs["column_A"], kwargs["column_B"])
        else:
            columns = tuple(kwargs.get("column_list") or ())
            if columns and len(columns) < 2:
                raise UnsupportedError("column_list must contain at least 2 columns")
        for column in columns:
            if column not in names:
                raise UnsupportedError(f'Error: The column "{column}" in BatchData does not exist.')
        clause = metric.clause
        parts = ", ".join(whole_table_parts(clause)) if clause else ""
        if parts:
            raise UnsupportedError(
                f"row_condition {clause!r} may look at more than one row at a time: {parts}"
            )
        parser = kwargs.get("condition_parser") if isinstance(kwargs.get("row_condition"), str) else None
        asked = columns_in(clause, names) if clause else ()
        ignore = kwargs.get("ignore_row_if") if len(columns) > 1 else None
        return Domain(columns, clause, parser, ignore, drop_null, asked)


def condition_of(name: str) -> str | None:
    """The condition metric that a metric's name belongs to, such as ``column_values.between``."""
    for suffix in (CONDITION, *COUNTED, *LISTED):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return None


def is_known_condition(name: str) -> bool:
    """Whether this engine has its own kernel for it."""
    return name in KERNELS
