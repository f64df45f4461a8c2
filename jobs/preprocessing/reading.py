"""Raw rows from files: CSV, JSON Lines and Parquet, with a file and a line for each.

Columns are declared, so every block has one schema. What is wrong with a file or a line becomes a row with
``_error`` set instead of an exception: the driver tells it in one sentence, or puts the line into quarantine.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from jobs.preprocessing.files import SourceFile, opened, opened_stream, told

if TYPE_CHECKING:
    import pyarrow as pa

ColumnType = Literal["string", "int64", "float64", "bool", "messages"]

#: Columns that every raw row has beside the declared ones.
ROW_ID, FILE, SOURCE, LINE, SPLIT, ERROR, RAW = (
    "row_id",
    "_file",
    "_source",
    "_line",
    "_split",
    "_error",
    "_raw",
)
RESERVED = frozenset({ROW_ID, FILE, SOURCE, LINE, SPLIT, ERROR, RAW})
BLOCK_ROWS = 20_000


@dataclass(frozen=True)
class RowFormat:
    """What the rows of all files have in common."""

    columns: Mapping[str, ColumnType]
    #: Declared column whose value is the row id; else it is a hash of source address and line.
    id_column: str | None = None
    #: Read on after a broken line.
    keep_broken: bool = False


class BrokenLine(Exception):
    """What is wrong with a line or a file, in words for the user."""


def arrow_type(kind: ColumnType) -> pa.DataType:
    """Arrow's type for a declared column."""
    import pyarrow as pa

    if kind == "messages":
        return pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    return {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}[kind]


def raw_schema(form: RowFormat) -> pa.Schema:
    """Schema of raw rows: row_id, where the row stands, what is wrong with it, the declared columns."""
    import pyarrow as pa

    text = pa.string()
    fixed = [(ROW_ID, text), (FILE, pa.int32()), (SOURCE, text), (LINE, pa.int64()), (SPLIT, text)]
    declared = [(name, arrow_type(kind)) for name, kind in form.columns.items() if name != ROW_ID]
    return pa.schema([*fixed, (ERROR, text), (RAW, text), *declared])


def hashed_row_id(source: str, line: int) -> str:
    """32 hex digits from the source's address and the row's line in it."""
    return hashlib.sha256(f"{source}\n{line}".encode()).hexdigest()[:32]


def read_tables(file: SourceFile, form: RowFormat) -> Iterator[pa.Table]:
    """All rows of one file, in blocks of at most :data:`BLOCK_ROWS` rows of :func:`raw_schema`.

    A failure of the whole file is a row with ``_error`` at line 0, and the last. A broken line is a row with
    ``_error`` and ``_raw``; it is the last too unless the format says ``keep_broken``.
    """
    import pyarrow as pa

    schema = raw_schema(form)
    gathered: list[dict[str, Any]] = []
    for row in _rows(file, form):
        gathered.append(row)
        if len(gathered) >= BLOCK_ROWS:
            yield pa.Table.from_pylist(gathered, schema=schema)
            gathered = []
    if gathered:
        yield pa.Table.from_pylist(gathered, schema=schema)


def _rows(file: SourceFile, form: RowFormat) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    count = 0
    try:
        for line, values, error, raw in _parsed(file, form, seen):
            count += 1
            row = _placed(file, line, error, raw)
            if error is None:
                row |= values
                if form.id_column is not None:
                    row[ROW_ID] = str(values[form.id_column])
            yield row
            if error is not None and not form.keep_broken:
                return
    except Exception as problem:
        yield _placed(file, 0, told(file.address, problem), None)
        return
    missing = [name for name in form.columns if name not in seen]
    if not count:
        yield _placed(file, 0, f"{file.address} is empty: it has no row.", None)
    elif missing and seen:
        yield _placed(file, 0, _wrong_columns(file, missing, seen), None)


def _placed(file: SourceFile, line: int, error: str | None, raw: str | None) -> dict[str, Any]:
    return {
        ROW_ID: hashed_row_id(file.address, line),
        FILE: file.number,
        SOURCE: file.address,
        LINE: line,
        SPLIT: file.split,
        ERROR: error,
        RAW: raw,
    }


def _wrong_columns(file: SourceFile, missing: list[str], found: set[str]) -> str:
    return (
        f"{file.address} has no column {', '.join(missing)}: it has {', '.join(sorted(found)[:20])}; "
        "name its columns in the configuration's 'columns'."
    )


_Parsed = Iterator[tuple[int, dict[str, Any], str | None, str | None]]


def _parsed(file: SourceFile, form: RowFormat, seen: set[str]) -> _Parsed:
    """(line, values, error, raw line) for each row; adds the columns that it meets to ``seen``."""
    if file.format == "parquet":
        return _parquet(file, form, seen)
    return _csv(file, form, seen) if file.format == "csv" else _jsonl(file, form, seen)


def _values(record: Mapping[str, Any], form: RowFormat, *, text: bool) -> dict[str, Any]:
    values = {name: convert(record.get(name), kind, name, text=text) for name, kind in form.columns.items()}
    if form.id_column is not None and values[form.id_column] is None:
        raise BrokenLine(f"no value in the id column {form.id_column}")
    return values


def _csv(file: SourceFile, form: RowFormat, seen: set[str]) -> _Parsed:
    csv.field_size_limit(sys.maxsize)  # The default refuses a field of 128 KiB, which a document may exceed.
    with opened_stream(file) as stream:
        reader = csv.reader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), strict=True)
        header = next(reader, None)
        if header is None:
            return
        missing = [name for name in form.columns if name not in header]
        if missing:
            raise BrokenLine(_wrong_columns(file, missing, set(header)))
        twice = [name for name in form.columns if header.count(name) > 1]
        if twice:
            raise BrokenLine(f"{file.address} has more than one column {twice[0]}: rename one.")
        seen.update(header)
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                # Behind an open quote nothing says where the next row begins: the rest cannot be read.
                raise BrokenLine(f"{file.address} line {line}: broken CSV ({error}).") from None
            if fields is None:
                return
            if not fields:
                continue  # A blank line.
            raw = json.dumps(fields, ensure_ascii=False)
            if len(fields) != len(header):
                why = f"{len(fields)} fields, where the header has {len(header)}"
                yield line, {}, f"{file.address} line {line}: {why}.", raw
                continue
            yield _converted(file, line, dict(zip(header, fields, strict=True)), form, raw, text=True)


def _jsonl(file: SourceFile, form: RowFormat, seen: set[str]) -> _Parsed:
    with opened_stream(file) as stream:
        for line, data in enumerate(stream, start=1):
            data = (data.removeprefix(codecs.BOM_UTF8) if line == 1 else data).strip()
            if not data:
                continue
            text = data.decode("utf-8", "replace")
            try:
                record = json.loads(data.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                yield line, {}, f"{file.address} line {line}: broken JSON ({_json_problem(error)}).", text
                continue
            if not isinstance(record, dict):
                kind = "an array" if isinstance(record, list) else f"a {type(record).__name__}"
                yield (
                    line,
                    {},
                    f"{file.address} line {line}: {kind}, where one JSON object a line is due.",
                    text,
                )
                continue
            seen.update(record)
            yield _converted(file, line, record, form, text, text=False)


def _parquet(file: SourceFile, form: RowFormat, seen: set[str]) -> _Parsed:
    import pyarrow.parquet as pq

    with opened(file) as stream:
        parquet = pq.ParquetFile(stream)
        names = parquet.schema_arrow.names
        missing = [name for name in form.columns if name not in names]
        if missing:
            raise BrokenLine(_wrong_columns(file, missing, set(names)))
        seen.update(names)
        line = 0
        for batch in parquet.iter_batches(batch_size=BLOCK_ROWS, columns=list(form.columns)):
            for record in batch.to_pylist():
                line += 1
                yield _converted(file, line, record, form, None, text=False)


def _converted(
    file: SourceFile, line: int, record: Mapping[str, Any], form: RowFormat, raw: str | None, *, text: bool
) -> tuple[int, dict[str, Any], str | None, str | None]:
    try:
        return line, _values(record, form, text=text), None, None
    except BrokenLine as problem:
        raw = raw if raw is not None else json.dumps(dict(record), ensure_ascii=False, default=str)
        return line, {}, f"{file.address} line {line}: {problem}.", _encodable(raw)


def convert(value: Any, kind: ColumnType, name: str, *, text: bool) -> Any:
    """Check ``value`` against a declared type; with ``text`` it is a CSV field and is read, '' being null.

    Raises BrokenLine.
    """
    if value is None or (text and value == ""):
        return None
    if kind == "string":
        if not isinstance(value, str):
            raise BrokenLine(f"{name} is {_shown(value)}, not a string")
        if _encodable(value) != value:
            raise BrokenLine(f"{name} holds half of a surrogate pair, which is no text")
        return value
    if kind == "messages":
        return _messages(_from_json(value) if text else value, name)
    if kind == "bool":
        return _bool(value, name, text=text)
    return _number(value, kind, name, text=text)


def _number(value: Any, kind: str, name: str, *, text: bool) -> int | float:
    if isinstance(value, bool) or (isinstance(value, str) and not text):
        raise BrokenLine(f"{name} is {_shown(value)}, not {kind}")
    try:
        number = float(value) if kind == "float64" else int(value)
        # A JSON 1.5 is no integer; neither is what needs more than 64 bits.
        if kind == "int64" and (number != (value if not text else number) or not -(2**63) <= number < 2**63):
            raise ValueError
    except (ValueError, TypeError, OverflowError):
        raise BrokenLine(f"{name} is {_shown(value)}, not {kind}") from None
    return number


def _bool(value: Any, name: str, *, text: bool) -> bool:
    if isinstance(value, bool):
        return value
    known = {"true": True, "1": True, "false": False, "0": False}
    if text and value.strip().lower() in known:
        return known[value.strip().lower()]
    raise BrokenLine(f"{name} is {_shown(value)}, not bool")


def _messages(value: Any, name: str) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise BrokenLine(f"{name} is {_shown(value)}, not a list of messages")
    messages = []
    for item in value:
        role, content = (item.get("role"), item.get("content")) if isinstance(item, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise BrokenLine(f"{name} has a message without a role and a content of text")
        if _encodable(role + content) != role + content:
            raise BrokenLine(f"{name} holds half of a surrogate pair, which is no text")
        messages.append({"role": role, "content": content})
    return messages


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # No list, and told as such.


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _json_problem(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start + 1} is not UTF-8"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
