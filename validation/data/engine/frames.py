"""Arrow blocks as the pandas frames that Great Expectations would see on the whole table.

Pandas has no integers beside a null: such a column becomes one of floats, and a boolean one becomes one of
objects. So what a block looks like depends on nulls in *other* blocks. A column whose form depends on that
and that has a null somewhere is called *holed*; what judged a block before this was known says so, and is
judged again if it made a difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

#: Integers up to this size are the same as floats.
EXACT_IN_FLOAT = 2**53


@dataclass(frozen=True)
class Domain:
    """The rows and columns that one metric looks at, in Great Expectations' sense."""

    columns: tuple[str, ...] = ()
    #: A pandas query: Great Expectations' ``row_condition``.
    clause: str | None = None
    parser: str | None = None
    #: Of pairs and lists of columns: which nulls take a row out.
    ignore: str | None = None
    #: Rows whose (only) column is null are no part of the domain.
    drop_null: bool = False
    #: Columns that ``clause`` reads.
    asked: tuple[str, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """All columns that are needed to know the domain."""
        return tuple(dict.fromkeys([*self.columns, *self.asked]))


class Block:
    """One block and its frames, each made once.

    ``holed`` are the table's holed columns, or None as long as nobody knows them: then a block's own nulls
    decide.
    """

    def __init__(self, table: pa.Table, holed: frozenset[str] | None = None) -> None:
        self.table, self.holed = table, holed
        self._series: dict[str, pd.Series] = {}
        self._domains: dict[Domain, pd.DataFrame] = {}
        #: Positions of the unexpected rows by the key of a condition, for the caller of the block.
        self.unexpected: dict[Any, Any] = {}

    def series(self, column: str) -> pd.Series:
        """A column as Great Expectations would see it."""
        if column not in self._series:
            if column not in self.table.column_names:
                # Great Expectations' own words.
                raise LookupError(f'Error: The column "{column}" in BatchData does not exist.')
            frame = to_frame(self.table.select([column]), self.holed or frozenset())
            self._series[column] = frame[column]
        return self._series[column]

    def records(self, domain: Domain) -> pd.DataFrame:
        """The domain's rows; their index is the position in the block."""
        if domain not in self._domains:
            self._domains[domain] = self._records(domain)
        return self._domains[domain]

    def _records(self, domain: Domain) -> pd.DataFrame:
        import pandas as pd

        data = pd.DataFrame({name: self.series(name) for name in domain.reads}, copy=False)
        if domain.clause:
            parser = {"parser": domain.parser} if domain.parser else {}
            data = data.query(domain.clause, **parser)
        columns = list(domain.columns)
        if domain.ignore in ("both_values_are_missing", "all_values_are_missing"):
            data = data.dropna(axis=0, how="all", subset=columns)
        elif domain.ignore in ("either_value_is_missing", "any_value_is_missing"):
            data = data.dropna(axis=0, how="any", subset=columns)
        if domain.drop_null:
            present = data[columns[0]].notnull()
            if not present.all():
                data = data[present]
        return data

    def provisional(self, domain: Domain, exact: bool) -> bool:
        """Whether nulls elsewhere might change what these columns look like, and with it a verdict.

        ``exact`` says that the verdict only compares values, so that small integers may well be floats.
        """
        if self.holed is not None:
            return False
        return any(self._provisional(name, exact) for name in domain.reads)

    def _provisional(self, name: str, exact: bool) -> bool:
        import pyarrow as pa
        import pyarrow.compute as pc

        if name not in self.table.column_names or not depends_on_nulls(self.table.schema.field(name)):
            return False
        column = self.table[name]
        if column.null_count or not len(column):
            return False
        if not exact or pa.types.is_boolean(column.type):
            return True
        if column.type.bit_width <= 32:
            return False
        ends = pc.min_max(column).as_py()
        return bool(ends["min"] < -EXACT_IN_FLOAT or ends["max"] > EXACT_IN_FLOAT)


def depends_on_nulls(field: pa.Field) -> bool:
    """Whether pandas' form of a column depends on its nulls."""
    import pyarrow as pa

    return bool(field.nullable and (pa.types.is_integer(field.type) or pa.types.is_boolean(field.type)))


def to_frame(table: pa.Table, holed: frozenset[str]) -> pd.DataFrame:
    """The frame of a part of a table whose holed columns are known."""
    import pyarrow as pa

    frame = table.to_pandas(ignore_metadata=True)
    for field in table.schema:
        if field.name in holed:
            wanted: Any = "float64" if pa.types.is_integer(field.type) else object
            if frame[field.name].dtype != wanted:
                frame[field.name] = frame[field.name].astype(wanted)
    return frame


def aligned(table: pa.Table, schema: pa.Schema, columns: Sequence[str]) -> pa.Table:
    """The needed columns of a block with the dataset's own types.

    A block without any value has Arrow's null type, one without nulls may have others than its neighbours.
    """
    import pyarrow as pa

    chosen, fields = [], []
    for name in columns:
        if name not in table.column_names:
            continue
        column, wanted = table[name], schema.field(name)
        if wanted.type != column.type:
            # What cannot be cast is left as it is: it is judged as what it is.
            with suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
                column = column.cast(wanted.type)
        chosen.append(column)
        fields.append(wanted if wanted.type == column.type else pa.field(name, column.type))
    if not chosen:  # An Arrow table without columns has no rows: keep their number in one.
        return pa.table({"_rows": pa.nulls(table.num_rows)})
    return pa.table(chosen, schema=pa.schema(fields))
