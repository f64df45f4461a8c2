"""How each metric is computed from tasks: some in the one pass, some in further narrow ones.

A program is a generator in the driver. It yields the tasks that it needs in one pass and gets the facts about
the table with their results; all programs go through the same passes side by side. What it returns is the
metric's value, or a :class:`Reduced` frame on which Great Expectations computes the same value itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from validation.data.engine.aggregates import (
    MAX_VALUES,
    Beyond,
    Counts,
    Extremes,
    Hashes,
    Histogram,
    KeyHistogram,
    KeysBetween,
    Lengths,
    Moments,
    Rows,
    UnsupportedError,
    ValueCounts,
    from_sort_key,
    sort_keys_of,
)
from validation.data.engine.conditions import INFORMED, KERNELS, ORDERED
from validation.data.engine.frames import Domain, to_frame
from validation.data.engine.metrics import CONDITION, Metric, Table
from validation.data.engine.tasks import (
    MAX_NAMED_ROWS,
    Condition,
    Foreign,
    Found,
    Known,
    Ordered,
    Task,
    mapping,
)

if TYPE_CHECKING:
    import pandas as pd

#: So many hashes (16 bytes each) or sort keys (8 bytes each) are in the driver at once.
MAX_HASHES, MAX_KEYS = 8_000_000, 1_000_000


@dataclass(frozen=True)
class Facts:
    """What is known about the table after the first pass."""

    rows: int
    holed: frozenset[str]


@dataclass(frozen=True)
class Reduced:
    """A small column with the same least and greatest, distinct or most common values as the whole one."""

    frame: Any


Answer = tuple[Facts, list[Any]]
Program = Generator[list[Task], Answer, Any]


def program_for(metric: Metric, table: Table) -> Program | None:
    """The program of a metric, or None if this engine does not compute it."""
    if metric.name.endswith(CONDITION):
        return _condition(metric, table)
    make = AGGREGATES.get(metric.name)
    return make(metric, table) if make else None


def _condition(metric: Metric, table: Table) -> Program:
    name = metric.name.removesuffix(CONDITION)
    kernel = KERNELS.get(name)
    domain = table.domain(
        metric, drop_null=kernel.drop_null and "column" in metric.domain if kernel else False
    )
    task = condition_task(metric, table, domain)
    if name in INFORMED:
        return (yield from _informed(metric, table, task))
    facts, (found,) = yield [task]
    if found.provisional and facts.holed & set(domain.reads):
        facts, (found,) = yield [task]
    return found


def condition_task(metric: Metric, table: Table, domain: Domain) -> Condition:
    """The task of a condition metric."""
    name, row_id = metric.name.removesuffix(CONDITION), table.row_id
    kind = Foreign if metric.module else Ordered if name in ORDERED else Condition
    task = kind(
        name,
        domain,
        mapping(metric.values),
        named=table.listing.columns,
        limit=table.listing.limit,
        ids=row_id if metric.key in table.identified else None,
    )
    if isinstance(task, Foreign):
        asked = {k: v for k, v in metric.domain.items() if k not in ("batch_id", "table") and v is not None}
        task = replace(task, module=metric.module or "", asked_of=mapping(asked))
    return task


def _informed(metric: Metric, table: Table, task: Condition) -> Program:
    if task.metric in ("column_values.unique", "compound_columns.unique"):
        return (yield from _unique(task))
    domain = replace(task.domain, drop_null=False)
    method = metric.values.get("method", "iqr")
    if task.metric == "column_values.not_outliers" and method == "iqr":
        low, high = yield from _quantiles(table, domain, [0.25, 0.75], "linear")
        low, high = _finite(low), _finite(high)
        facts: dict[str, Any] = {"low": low, "high": high}
        facts["spread"] = None if low is None or high is None else high - low
    else:
        _, (moments,) = yield [Moments(domain)]
        mean, deviation = _mean(moments), _deviation(moments)
        facts = {"mean": mean, "deviation": deviation}
        facts |= {"low": _finite(mean), "high": _finite(mean), "spread": _finite(deviation)}
    _, (found,) = yield [replace(task, known=Known(facts))]
    return found


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(float(value)) else None


def _unique(task: Condition) -> Program:
    """By hashes: one part of the hash space at a time is in the driver, whatever the number of rows."""
    import numpy as np

    from validation.data.engine.hashing import grouped

    facts, _ = yield []
    buckets = max(1, math.ceil(facts.rows / MAX_HASHES))
    rows, founds = 0, list[Found]()
    for bucket in range(buckets):
        _, (hashes,) = yield [Hashes(task.domain, bucket, buckets)]
        rows += sum(len(part) for part in hashes)
        distinct, counts = grouped(np.concatenate(hashes))
        if (counts > 1).any():
            known = Known({"duplicated": distinct[counts > 1]})
            _, (found,) = yield [replace(task, known=known)]
            if found.error:
                return found
            founds.append(found)
    return _united(founds, Found(facts.rows, rows), task)


def _united(founds: Sequence[Found], whole: Found, task: Condition) -> Found:
    """One answer from those about disjoint sets of rows, in the order of the rows."""
    import numpy as np
    import pyarrow as pa

    if not founds:
        return replace(whole, positions=np.zeros(0, dtype="int64"))
    positions = np.concatenate([found.positions for found in founds])
    order = np.argsort(positions, kind="stable")[: task.limit]
    tables = [found.records for found in founds if found.records is not None]
    records = pa.concat_tables(tables).take(order) if tables else None
    ids = [identity for found in founds for identity in found.ids][: MAX_NAMED_ROWS + 1]
    unexpected = sum(found.unexpected for found in founds)
    return replace(whole, unexpected=unexpected, positions=positions[order], records=records, ids=ids)


def _series(values: Any, table: Table, column: str, facts: Facts) -> pd.Series:
    """A few Arrow values as the whole column's kind of pandas series."""
    import pyarrow as pa

    part = pa.table([values], schema=pa.schema([table.schema.field(column).with_type(values.type)]))
    return to_frame(part, facts.holed)[column]


def _reduced(values: Any, table: Table, column: str, facts: Facts) -> Reduced:
    return Reduced(_series(values, table, column, facts).to_frame())


def _extremes(metric: Metric, table: Table) -> Program:
    import pyarrow as pa

    domain = table.domain(metric)
    facts, (ends, counts) = yield [Extremes(domain), Counts(domain)]
    if counts[0] > counts[1]:
        ends = pa.concat_arrays([ends, pa.nulls(1, ends.type)])
    return _reduced(ends, table, domain.columns[0], facts)


def _mean(moments: Any) -> float:
    return float("nan") if not moments[0] else moments[1] / moments[0]


def _deviation(moments: Any) -> float:
    return float("nan") if moments[0] < 2 else math.sqrt(moments[3] / (moments[0] - 1))


def _moments(metric: Metric, table: Table) -> Program:
    import pyarrow as pa

    domain = table.domain(metric)
    facts, (moments,) = yield [Moments(domain)]
    if metric.name == "column.mean":
        return _mean(moments)
    if metric.name == "column.standard_deviation":
        return _deviation(moments)
    kind = table.schema.field(domain.columns[0]).type
    holed = domain.columns[0] in facts.holed and not pa.types.is_boolean(kind)
    return float(moments[1]) if holed or pa.types.is_floating(kind) else moments[1]


def _non_null(metric: Metric, table: Table) -> Program:
    _, (counts,) = yield [Counts(table.domain(metric))]
    return counts[1]


def _row_count(metric: Metric, table: Table) -> Program:
    domain = replace(table.domain(replace(metric, domain=_without_columns(metric.domain))), columns=())
    if not domain.clause:
        facts, _ = yield []
        return facts.rows
    if not domain.asked:
        raise UnsupportedError(f"row_condition {domain.clause!r} reads no column")
    _, (rows,) = yield [Rows(domain)]
    return rows


def _without_columns(domain: Any) -> dict[str, Any]:
    return {k: v for k, v in domain.items() if not k.startswith("column")}


def _told(counts: Any, domain: Domain) -> Any:
    if counts is None:
        raise UnsupportedError(
            f"column {domain.columns[0]} has more distinct values than the {MAX_VALUES} that are compared"
        )
    return counts


def _distinct(metric: Metric, table: Table) -> Program:
    import pyarrow as pa

    domain = table.domain(metric)
    facts, (counts, rows) = yield [ValueCounts(domain), Counts(domain)]
    values = _told(counts, domain)["value"].combine_chunks()
    if rows[0] > rows[1]:
        values = pa.concat_arrays([values, pa.nulls(1, values.type)])
    return _reduced(values, table, domain.columns[0], facts)


def _distinct_count(metric: Metric, table: Table) -> Program:
    import numpy as np

    from validation.data.engine.hashing import grouped

    domain = table.domain(metric)
    facts, (counts,) = yield [ValueCounts(domain)]
    if counts is not None:
        column = _series(counts["value"].combine_chunks(), table, domain.columns[0], facts)
        return int(column.nunique())
    number, buckets = 0, max(1, math.ceil(facts.rows / MAX_HASHES))
    for bucket in range(buckets):
        _, (hashes,) = yield [Hashes(replace(domain, drop_null=True), bucket, buckets)]
        number += len(grouped(np.concatenate(hashes))[0])
    return number


def _most_common(metric: Metric, table: Table) -> Program:
    import pyarrow.compute as pc

    domain = table.domain(metric)
    facts, (counts,) = yield [ValueCounts(domain)]
    counts = _told(counts, domain)
    most = counts.filter(pc.equal(counts["count"], pc.max(counts["count"])))
    return _reduced(most["value"].combine_chunks(), table, domain.columns[0], facts)


def _value_counts(metric: Metric, table: Table) -> Program:
    import pandas as pd

    if metric.values.get("sort", "value") != "value" or metric.values.get("collate") is not None:
        raise UnsupportedError("value counts are only sorted by value")
    domain = table.domain(metric)
    facts, (counts,) = yield [ValueCounts(domain)]
    counts = _told(counts, domain)
    values = _series(counts["value"].combine_chunks(), table, domain.columns[0], facts)
    told = pd.Series(counts["count"].to_numpy(), index=pd.Index(values, name="value"), name="count")
    return told.groupby(level=0).sum().sort_index() if told.index.has_duplicates else told.sort_index()


def _histogram(metric: Metric, table: Table) -> Program:
    domain = table.domain(metric)
    _, (counts,) = yield [Histogram(domain, tuple(metric.values["bins"]))]
    return list(counts)


def _beyond(metric: Metric, table: Table) -> Program:
    import numpy as np

    low, high = metric.values.get("min_value"), metric.values.get("max_value")
    if (low is None) == (high is None):
        raise UnsupportedError("column_values.between.count with both bounds or none is not supported")
    strict = metric.values.get("strict_min"), metric.values.get("strict_max")
    _, (count,) = yield [Beyond(table.domain(metric), low, high, strict)]
    return np.int64(count)  # Great Expectations divides it by zero where there is no row.


def _lengths(metric: Metric, table: Table) -> Program:
    _, (lengths,) = yield [Lengths(table.domain(metric, drop_null=True))]
    if lengths is None:
        return float("nan")
    return lengths[0] if metric.name.endswith("min") else lengths[1]


def _quantile_values(metric: Metric, table: Table) -> Program:
    interpolation = metric.values.get("allow_relative_error") or "nearest"
    options = ("linear", "lower", "higher", "midpoint", "nearest")
    if interpolation not in options:
        raise UnsupportedError(
            "If specified for pandas, allow_relative_error must be one an allowed value for the "
            f"'interpolation'parameter of .quantile() (one of {options})"
        )
    domain = table.domain(metric)
    return (yield from _quantiles(table, domain, list(metric.values["quantiles"]), interpolation))


def _quantiles(table: Table, domain: Domain, quantiles: Sequence[float], interpolation: str) -> Program:
    """Exact ones: order statistics by narrowing histograms of sort keys."""
    import numpy as np
    import pandas as pd

    facts, (ends, counts) = yield [Extremes(domain), Counts(domain)]
    kind = _series(ends, table, domain.columns[0], facts)
    if not counts[1]:
        return kind.quantile(list(quantiles), interpolation=interpolation).tolist()
    at = (counts[1] - 1) * np.true_divide(np.asarray(quantiles, dtype=np.float64) * 100, 100)
    at = np.around(at) if interpolation == "nearest" else at
    ranks = sorted({int(rank) for rank in [*np.floor(at), *np.ceil(at)]})
    values = yield from _order_statistics(domain, kind, counts[1], ranks)
    found = []
    for place in at:
        low = int(np.floor(place))
        pair = pd.Series([values[low], values[int(np.ceil(place))]]).astype(kind.dtype)
        found.extend(pair.quantile([float(place) - low], interpolation=interpolation).tolist())
    return found


def _median(metric: Metric, table: Table) -> Program:
    import pandas as pd

    domain = table.domain(metric)
    facts, (ends, counts) = yield [Extremes(domain), Counts(domain)]
    kind = _series(ends, table, domain.columns[0], facts)
    if not counts[1]:
        return kind.median()
    middle = sorted({(counts[1] - 1) // 2, counts[1] // 2})
    values = yield from _order_statistics(domain, kind, counts[1], middle)
    return pd.Series([values[rank] for rank in middle]).astype(kind.dtype).median()


def _order_statistics(domain: Domain, ends: pd.Series, count: int, ranks: Sequence[int]) -> Program:
    """Values by rank. Each pass leaves a 65,536th of the range; few enough keys are then brought together."""
    import numpy as np

    first, last = (int(key) for key in sort_keys_of(ends[ends.notnull()].to_numpy(), ends.dtype))
    ranges = dict.fromkeys(ranks, (first, last, 0, count))
    while sum(n for _, _, _, n in set(ranges.values())) > MAX_KEYS:
        wide = sorted({(low, high) for low, high, _, _ in ranges.values() if low < high})
        if not wide:
            break
        steps = {(low, high): max(0, (high - low).bit_length() - 16) for low, high in wide}
        _, (histogram,) = yield [KeyHistogram(domain, tuple((low, steps[low, high]) for low, high in wide))]
        for rank, (low, high, below, _) in ranges.items():
            if low == high:
                continue
            counts, bits = histogram[wide.index((low, high))], steps[low, high]
            step = int(np.searchsorted(np.cumsum(counts), rank - below, side="right"))
            below += int(counts[:step].sum())
            start = low + (step << bits)
            ranges[rank] = (start, min(high, start + (1 << bits) - 1), below, int(counts[step]))
    open_ = sorted({(low, high) for low, high, _, _ in ranges.values() if low < high})
    keys: Any = np.zeros(0, dtype=np.uint64)
    if open_:
        _, (parts,) = yield [KeysBetween(domain, tuple(open_))]
        keys = np.sort(np.concatenate(parts))
    found = {}
    for rank, (low, high, below, _) in ranges.items():
        start = int(np.searchsorted(keys, np.uint64(low)))
        key = low if low == high else int(keys[start + rank - below])
        found[rank] = from_sort_key(key, ends.dtype)
    return found


AGGREGATES: dict[str, Callable[[Metric, Table], Program]] = {
    "table.row_count": _row_count,
    "column.min": _extremes,
    "column.max": _extremes,
    "column.sum": _moments,
    "column.mean": _moments,
    "column.standard_deviation": _moments,
    "column.non_null_count": _non_null,
    "column.median": _median,
    "column.quantile_values": _quantile_values,
    "column.most_common_value": _most_common,
    "column.value_counts": _value_counts,
    "column.histogram": _histogram,
    "column.distinct_values": _distinct,
    "column.distinct_values.count": _distinct_count,
    "column.distinct_values.not_in_set": _distinct,
    "column.distinct_values.not_in_set.count": _distinct,
    "column.distinct_values.missing_from_column": _distinct,
    "column.distinct_values.missing_from_column.count": _distinct,
    "column_values.between.count": _beyond,
    "column_values.length.min": _lengths,
    "column_values.length.max": _lengths,
}
