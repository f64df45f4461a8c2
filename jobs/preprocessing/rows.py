"""Columns and schemas of rows on their way: as they are read, as they are marked, as they are finished.

A row that is refused stays where it is, marked with a stage, a reason and a score, until splits and
quarantine are written. An ordinal tells rows apart in 8 bytes: ``file << 40 | line << 8 | copy``, so that the
place of a row can be told from it. It has room for 8 million files of 4 billion lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pyarrow as pa

ColumnType = Literal["string", "int64", "float64", "bool", "messages"]

#: Columns that every row has beside the declared ones.
ROW_ID, ORDINAL, SPLIT, STAGE, REASON, SCORE, RAW = (
    "row_id",
    "_ordinal",
    "_split",
    "_stage",
    "_reason",
    "_score",
    "_raw",
)
#: Of marked rows: what duplicates are found by, and what a block has to say (in its first row).
KEY, ANSWER, BANDS, SUMMARY, GATE = "_key", "_answer", "_bands", "_summary", "_gate"
RESERVED = frozenset({ROW_ID, ORDINAL, SPLIT, STAGE, REASON, SCORE, RAW, KEY, ANSWER, BANDS, SUMMARY, GATE})

KEY_BYTES = 16
#: A row with this line stands for its whole file, which cannot be read.
WHOLE_FILE = 0
_LINE_BITS, _COPY_BITS = 32, 8


@dataclass(frozen=True)
class RowFormat:
    """What the rows of all files have in common."""

    columns: Mapping[str, ColumnType]
    #: Declared column whose value is the row id; else it is a hash of source address and line.
    id_column: str | None = None
    #: Read on after a broken line.
    keep_broken: bool = False
    #: A row that takes more bytes than this is kept apart.
    max_row_bytes: int = 16 * 2**20
    #: Whether a text file is one document, or one a line.
    text_rows: Literal["line", "file"] = "line"
    #: Declared columns that the files need not have: they come from somewhere else.
    joined: frozenset[str] = frozenset()

    @property
    def read(self) -> dict[str, ColumnType]:
        """The declared columns that files hold."""
        return {name: kind for name, kind in self.columns.items() if name not in self.joined}


def ordinal(file: int, line: int, copy: int = 0) -> int:
    """8 bytes that tell a row apart, and sort as files and lines do."""
    return file << (_LINE_BITS + _COPY_BITS) | line << _COPY_BITS | copy


def file_of(number: int) -> int:
    """Number of the row's file."""
    return int(number >> (_LINE_BITS + _COPY_BITS))


def line_of(number: int) -> int:
    """The row's line in its file."""
    return int(number >> _COPY_BITS & (2**_LINE_BITS - 1))


def is_copy(number: int) -> bool:
    """Whether augmentation made the row."""
    return bool(number & (2**_COPY_BITS - 1))


def origin(row_id: str, number: int) -> str:
    """The id of the row that was read: of a copy, that of the row which it was made of."""
    return row_id.rpartition("#")[0] if is_copy(number) else row_id


def rows_by_file(ordinals: pa.ChunkedArray) -> dict[str, int]:
    """How many rows were read of each file, by its number; copies that augmentation made do not count."""
    import numpy as np

    numbers = ordinals.to_numpy()
    read = numbers[numbers & np.uint64(2**_COPY_BITS - 1) == 0]
    files, counts = np.unique(read >> np.uint64(_LINE_BITS + _COPY_BITS), return_counts=True)
    return {str(file): int(count) for file, count in zip(files, counts, strict=True)}


def hashed_row_id(source: str, line: int) -> str:
    """32 hex digits from the source's address and the row's line in it."""
    return hashlib.sha256(f"{source}\n{line}".encode()).hexdigest()[:32]


def arrow_type(kind: ColumnType) -> pa.DataType:
    """Arrow's type for a declared column."""
    import pyarrow as pa

    if kind == "messages":
        return pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    return {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}[kind]


def declared_fields(form: RowFormat) -> list[tuple[str, pa.DataType]]:
    """Name and type of each declared column."""
    return [(name, arrow_type(kind)) for name, kind in form.columns.items() if name != ROW_ID]


def raw_schema(form: RowFormat) -> pa.Schema:
    """Rows as they are read: id and place, what is wrong with one already, the declared columns."""
    import pyarrow as pa

    text = pa.string()
    fixed = [(ROW_ID, text), (ORDINAL, pa.uint64()), (SPLIT, text)]
    marks = [(STAGE, text), (REASON, text), (SCORE, pa.float64()), (RAW, text)]
    return pa.schema([*fixed, *marks, *declared_fields(form)])


def contract_schema(form: RowFormat) -> pa.Schema:
    """What a contract judges: row ids and declared columns."""
    import pyarrow as pa

    return pa.schema([(ROW_ID, pa.string()), *declared_fields(form)])


def marked_schema(form: RowFormat) -> pa.Schema:
    """Rows after the pass that looks at each alone."""
    import pyarrow as pa

    keys = [(KEY, pa.binary(KEY_BYTES)), (ANSWER, pa.uint64()), (BANDS, pa.binary())]
    schema = raw_schema(form)
    for name, kind in [*keys, (SUMMARY, pa.binary()), (GATE, pa.large_binary())]:
        schema = schema.append(pa.field(name, kind))
    return schema


def quarantine_schema() -> pa.Schema:
    """Why a row is kept apart, and the row as JSON (a line that cannot be read: itself)."""
    import pyarrow as pa

    text = pa.string()
    names = {"row_id": text, "source": text, "line": pa.int64(), "stage": text, "reason": text}
    return pa.schema([*names.items(), ("score", pa.float64()), ("repeats", text), ("raw", text)])
