"""Lengths of texts as columns that suites may name: ``text.characters``, ``text.words``, ``chat.messages``.

They are those of the profile, so that a suite can compare them with a version before. They are made in a
block when a suite asks for them, and stand in no file.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

UNITS = ("characters", "words", "messages")
_OF = b"length of"


def with_lengths(schema: pa.Schema, named: Iterable[str], conditions: Iterable[str] = ()) -> pa.Schema:
    """The schema with a field for each length of a column of its own that is ``named``, or in a condition."""
    import pyarrow as pa

    asked = "\n".join(conditions)
    lengths = [f"{column}.{unit}" for column in schema.names for unit in UNITS if asked]
    for name in dict.fromkeys([*named, *(name for name in lengths if name in asked)]):
        column, _, unit = str(name).rpartition(".")
        if name not in schema.names and column in schema.names and unit in UNITS:
            schema = schema.append(pa.field(name, pa.int64(), metadata={_OF: column.encode()}))
    return schema


def measured_of(schema: pa.Schema, name: str) -> str:
    """The column that a column's values are made from: most are their own."""
    told = (schema.field(name).metadata or {}).get(_OF)
    return str(told, "utf-8") if told else name


def measured(table: pa.Table, schema: pa.Schema, wanted: Iterable[str]) -> pa.Table:
    """The block with those of the ``wanted`` columns that are lengths.

    A column without such a length gets none: who asks for it hears that there is no such column.
    """
    from cluster.errors import UsageError
    from validation.data.measuring import text_lengths

    for name in wanted:
        column = measured_of(schema, name)
        if column != name and column in table.column_names:
            try:
                lengths = text_lengths(table, column)
            except UsageError:
                continue
            unit = name.rpartition(".")[2]
            if unit in lengths:
                table = table.append_column(schema.field(name), lengths[unit])
    return table
