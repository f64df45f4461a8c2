"""What one pass computes on each block, and how the partial results of two neighbouring blocks join.

A task is small, picklable and hashable: it names what it wants. ``block`` runs in a worker on one block;
``join`` adds a later block's result to an earlier one's and is associative, so that results of any split make
the same whole and nothing grows with the rows, except to a stated limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from validation.data.engine.conditions import KERNELS
from validation.data.engine.frames import Block, Domain, depends_on_nulls, to_frame
from validation.data.engine.shortcuts import unexpected

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

#: Result format COMPLETE names every unexpected row: beyond this it fails, and SUMMARY must be asked for.
MAX_LISTED_ROWS = 1_000_000
#: Rows that are to go, and that no block can mark by itself, are named in the driver: at most so many, and
#: one more that says that there are others.
MAX_NAMED_ROWS = 1_000_000


class Task(Protocol):
    """One thing to be computed over all blocks."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that are read."""

    def block(self, block: Block) -> Any:
        """The result of one block."""

    def join(self, first: Any, second: Any) -> Any:
        """The result of two neighbouring parts."""


class Frozen(dict[str, Any]):
    """A mapping that is a part of a task's identity by its representation."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(repr(sorted(self.items(), key=lambda item: item[0])))


@dataclass(frozen=True, eq=False)
class Known:
    """What earlier passes have found about whole columns; equal only to itself, for it may be large."""

    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Shape:
    """Rows of the table, and which columns have a null; not the domain's, the whole table's."""

    columns: tuple[str, ...]

    def block(self, block: Block) -> tuple[int, frozenset[str]]:
        """Rows, and holed columns."""
        fields = [f for f in block.table.schema if depends_on_nulls(f)]
        return block.table.num_rows, frozenset(f.name for f in fields if block.table[f.name].null_count)

    def join(self, first: Any, second: Any) -> tuple[int, frozenset[str]]:
        """Sum and union."""
        return first[0] + second[0], first[1] | second[1]


@dataclass
class Found:
    """What a condition found in a part of the table."""

    table_rows: int
    rows: int = 0
    unexpected: int = 0
    #: The first unexpected rows: positions in the part, and the columns that results name.
    positions: Any = None
    records: pa.Table | None = None
    #: Identities of the unexpected rows, where they were asked for, up to :data:`MAX_NAMED_ROWS` and one.
    ids: list[str] = field(default_factory=list)
    error: str | None = None
    #: Nulls elsewhere may change the answer.
    provisional: bool = False
    #: Of ordered conditions: the part's first row and its first and last value.
    first: pa.Table | None = None
    last: pa.Table | None = None
    #: Of ordered conditions: columns that had the form of holed ones.
    holed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Condition:
    """A map condition: which rows of a domain are unexpected."""

    metric: str
    domain: Domain
    values: Frozen
    #: Columns that results name beside the domain's own.
    named: tuple[str, ...] = ()
    #: So many unexpected rows are kept; None keeps all up to :data:`MAX_LISTED_ROWS`.
    limit: int | None = 20
    #: Column whose values of all unexpected rows are listed.
    ids: str | None = None
    #: What is known about the whole column, for conditions that need it.
    known: Known | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the domain, of the results, of the ids."""
        ids = (self.ids,) if self.ids else ()
        return tuple(dict.fromkeys([*self.domain.reads, *self.named, *ids]))

    @property
    def shown(self) -> tuple[str, ...]:
        """Columns that results name."""
        return tuple(dict.fromkeys([*self.domain.columns, *self.named]))

    def block(self, block: Block) -> Found:
        """Judge the block's rows."""
        found = Found(block.table.num_rows)
        try:
            positions = self._judged(block, found)
        except Exception as error:  # Whatever a value makes pandas raise is the expectation's outcome.
            found.error = str(error)
            return found
        block.unexpected[self] = positions
        kernel = KERNELS.get(self.metric)
        formless = kernel is not None and kernel.formless and not self.domain.clause
        found.provisional = not formless and block.provisional(self.domain, bool(kernel and kernel.exact))
        found.unexpected = len(positions)
        self._keep(found, block, positions)
        return found

    def _judged(self, block: Block, found: Found) -> Any:
        """Positions of the unexpected rows in the block; ``found`` is told how many rows there are, first.

        A part that fails is heard only if it has rows.
        """
        short = unexpected(self.metric, self.domain, self.values, block.table)
        if short is not None:
            found.rows, positions = short
            return positions
        rows = block.records(self.domain)
        found.rows = len(rows)
        return self._positions(self._unexpected(rows), rows)

    def _unexpected(self, rows: pd.DataFrame) -> Any:
        kernel = KERNELS[self.metric]
        given = (
            rows[list(self.domain.columns)] if len(self.domain.columns) > 1 else rows[self.domain.columns[0]]
        )
        return ~kernel.check(given, self.values, self.known.facts if self.known else {})

    @staticmethod
    def _positions(unexpected: Any, rows: pd.DataFrame) -> Any:
        import numpy as np

        # As Great Expectations counts: whatever is not zero.
        return rows.index.to_numpy()[np.flatnonzero(np.asarray(unexpected))]

    def _keep(self, found: Found, block: Block, positions: Any) -> None:
        limit = MAX_LISTED_ROWS + 1 if self.limit is None else self.limit
        found.positions = positions[:limit].astype("int64")
        if limit:
            found.records = block.table.select(list(self.shown)).take(found.positions)
        if self.ids:
            named = positions[: MAX_NAMED_ROWS + 1]
            found.ids = [str(i) for i in block.table[self.ids].take(named).to_pylist()]

    def join(self, first: Found, second: Found) -> Found:
        """Add the counts, and list the rows of both in order."""
        rows = first.table_rows + second.table_rows
        if not second.rows or (first.error and first.rows):
            # A part without rows has nothing to say while there are others: not even an error.
            kept = first if first.rows or first.table_rows else second
            return replace(kept, table_rows=rows, provisional=first.provisional or second.provisional)
        if not first.rows or second.error:
            return _moved(replace(second, table_rows=rows), first.table_rows)
        return _joined(first, second, MAX_LISTED_ROWS + 1 if self.limit is None else self.limit)


def _moved(found: Found, by: int) -> Found:
    return replace(found, positions=found.positions + by if found.positions is not None else None)


def _joined(first: Found, second: Found, limit: int) -> Found:
    import numpy as np

    later = _moved(second, first.table_rows)
    room = max(0, limit - len(first.positions))
    records = first.records
    if room and later.records is not None and len(later.positions):
        records = _together([first.records, later.records.slice(0, room)])
    return replace(
        first,
        table_rows=first.table_rows + second.table_rows,
        rows=first.rows + second.rows,
        unexpected=first.unexpected + second.unexpected,
        positions=np.concatenate([first.positions, later.positions[:room]]),
        records=records,
        ids=(first.ids + second.ids)[: MAX_NAMED_ROWS + 1],
        provisional=first.provisional or second.provisional,
        last=second.last,
        holed=first.holed | second.holed,
    )


def _together(tables: Any) -> pa.Table:
    import pyarrow as pa

    return pa.concat_tables(tables, promote_options="permissive")


@dataclass(frozen=True)
class Ordered(Condition):
    """A condition on each row and the one before it: parts also say how they begin and end."""

    def block(self, block: Block) -> Found:
        """Judge the block's rows; the first has none before it."""
        found = super().block(block)
        if found.rows and not found.error:
            index = block.records(self.domain).index
            names = list(self.columns)
            found.first = block.table.select(names).take([int(index[0])])
            found.first = found.first.append_column("_position", [[int(index[0])]])
            found.last = block.table.select(list(self.domain.columns)).take([int(index[-1])])
            found.holed = Shape(()).block(block)[1] if block.holed is None else block.holed
        return found

    def join(self, first: Found, second: Found) -> Found:
        """Judge the second part's first row against the first part's last."""
        if first.rows and second.rows and not first.error and not second.error:
            second = self._at_border(first, second)
        joined = super().join(first, second)
        if first.rows and second.rows and not joined.error:
            joined = replace(joined, first=first.first, last=second.last)
        elif joined.first is not None and joined is not first and not first.rows:
            at = joined.first["_position"][0].as_py() + first.table_rows
            moved = joined.first.drop_columns(["_position"]).append_column("_position", [[at]])
            joined = replace(joined, first=moved)
        return joined

    def _at_border(self, first: Found, second: Found) -> Found:
        import numpy as np

        assert first.last is not None
        assert second.first is not None
        two = _together([first.last, second.first.select(list(self.domain.columns))])
        try:
            if not self._unexpected(to_frame(two, first.holed | second.holed))[1]:
                return second
        except Exception as error:
            return replace(second, error=str(error))
        at = np.array([second.first["_position"][0].as_py()], dtype="int64")
        records = second.records
        if records is not None:
            records = _together([second.first.select(list(self.shown)), records])
        ids = [str(second.first[self.ids][0].as_py()), *second.ids] if self.ids else second.ids
        positions = np.concatenate([at, second.positions])
        return replace(
            second, unexpected=second.unexpected + 1, positions=positions, records=records, ids=ids
        )


@dataclass(frozen=True)
class Foreign(Condition):
    """A user's own map condition: Great Expectations computes it on each block, imported in the worker."""

    module: str = ""
    #: The domain as Great Expectations' metric has it.
    asked_of: Frozen = field(default_factory=Frozen)

    def block(self, block: Block) -> Found:
        """Judge the block's rows; the domain is what Great Expectations' mask covers."""
        found = Found(block.table.num_rows)
        try:
            mask = self._mask(block)
            found.rows = len(mask)
            positions = self._positions(mask, mask.to_frame())
        except Exception as error:
            found.error = str(error)
            # Whether there was a row to fail on is unknown: only a block without any has none.
            found.rows = block.table.num_rows
            return found
        block.unexpected[self] = positions
        found.provisional = block.provisional(self.domain, exact=False)
        found.unexpected = len(positions)
        self._keep(found, block, positions)
        return found

    def _mask(self, block: Block) -> Any:
        import importlib

        from great_expectations.execution_engine import PandasExecutionEngine
        from great_expectations.validator.metric_configuration import MetricConfiguration
        from great_expectations.validator.metrics_calculator import MetricsCalculator

        importlib.import_module(self.module)
        frame = block.records(Domain(self.domain.reads))
        calculator = MetricsCalculator(PandasExecutionEngine(batch_data_dict={"block": frame}), False)
        metric = MetricConfiguration(
            f"{self.metric}.condition", {**self.asked_of, "batch_id": "block"}, dict(self.values)
        )
        values, failed = calculator.compute_metrics(
            [metric], runtime_configuration={"catch_exceptions": True}
        )
        if metric.id not in values:
            raise RuntimeError(next(iter(failed.values()))["exception_info"].exception_message)
        return values[metric.id][0]


def mapping(values: Mapping[str, Any]) -> Frozen:
    """A task's argument."""
    return Frozen(values)
