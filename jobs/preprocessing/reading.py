"""Raw rows from files: CSV, JSON Lines, Parquet, Arrow and text, each row with its place.

Columns are declared, so every block has one schema. What is wrong with a file or a line becomes a row that is
marked instead of an exception: the driver tells it in one sentence, or puts the line into quarantine.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs.preprocessing.files import SourceFile, opened, opened_stream, told
from jobs.preprocessing.rows import (
    ORDINAL,
    RAW,
    REASON,
    ROW_ID,
    SCORE,
    SPLIT,
    STAGE,
    WHOLE_FILE,
    RowFormat,
    hashed_row_id,
    ordinal,
    raw_schema,
)
from jobs.preprocessing.values import BrokenLine, convert, encodable

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_ROWS = 20_000
#: Blocks of rows end at so many bytes of text too.
BLOCK_BYTES = 16 * 2**20
#: Of a line that is too long to keep, its beginning.
SHOWN_CHARS = 1000
READ, SIZE = "read", "size"


class Parsed(NamedTuple):
    """One line of a file."""

    line: int
    values: Mapping[str, Any] = {}
    #: What is wrong with it, in a sentence that names the file.
    error: str | None = None
    raw: str | None = None
    bytes: int = 0
    #: It is too long, and its values are not there.
    oversize: bool = False


_Lines = Iterator[Parsed]


def read_tables(file: SourceFile, form: RowFormat) -> Iterator[pa.Table]:
    """All rows of one file, in tables of at most :data:`BLOCK_ROWS` rows of the raw schema.

    A failure of the whole file is a marked row at line 0, and the last. A broken line is a row marked with
    the stage ``read``; it is the last too unless the format says ``keep_broken``. A row of more than
    ``max_row_bytes`` is marked with the stage ``size`` and its size in bytes as the score.
    """
    import pyarrow as pa

    schema = raw_schema(form)
    gathered: list[dict[str, Any]] = []
    size = 0
    for row, bytes_ in _rows(file, form):
        gathered.append(row)
        size += bytes_
        if len(gathered) >= BLOCK_ROWS or size >= BLOCK_BYTES:
            yield pa.Table.from_pylist(gathered, schema=schema)
            gathered, size = [], 0
    if gathered:
        yield pa.Table.from_pylist(gathered, schema=schema)


def _rows(file: SourceFile, form: RowFormat) -> Iterator[tuple[dict[str, Any], int]]:
    seen: set[str] = set()
    count = 0
    try:
        for found in _parsed(file, form, seen):
            count += 1
            yield _row(file, form, found), found.bytes
            if found.error is not None and not form.keep_broken:
                return
    except Exception as problem:
        yield _placed(file, WHOLE_FILE, READ, told(file.address, problem)), 0
        return
    missing = [name for name in form.read if name not in seen]
    if not count:
        yield _placed(file, WHOLE_FILE, READ, f"{file.address} is empty: it has no row."), 0
    elif missing and seen:
        yield _placed(file, WHOLE_FILE, READ, _wrong_columns(file, missing, seen)), 0


def _row(file: SourceFile, form: RowFormat, found: Parsed) -> dict[str, Any]:
    if found.oversize or found.bytes > form.max_row_bytes:
        reason = f"larger than {form.max_row_bytes:,} bytes"
        return {**_placed(file, found.line, SIZE, reason, found.raw), SCORE: float(found.bytes)}
    if found.error is not None:
        return _placed(file, found.line, READ, found.error, found.raw)
    row = _placed(file, found.line) | dict(found.values)
    if form.id_column is not None:
        row[ROW_ID] = str(found.values[form.id_column])
    return row


def _placed(
    file: SourceFile, line: int, stage: str | None = None, reason: str | None = None, raw: str | None = None
) -> dict[str, Any]:
    return {
        ROW_ID: hashed_row_id(file.address, line),
        ORDINAL: ordinal(file.number, line),
        SPLIT: file.split,
        STAGE: stage,
        REASON: reason,
        RAW: raw[:SHOWN_CHARS] if raw and stage == SIZE else raw,
    }


def _wrong_columns(file: SourceFile, missing: list[str], found: set[str]) -> str:
    return (
        f"{file.address} has no column {', '.join(missing)}: it has {', '.join(sorted(found)[:20])}; "
        "name its columns in the configuration's 'columns'."
    )


def _parsed(file: SourceFile, form: RowFormat, seen: set[str]) -> _Lines:
    """Every line of the file; adds the columns that it meets to ``seen``."""
    readers = {"csv": _csv, "jsonl": _jsonl, "parquet": _parquet, "arrow": _arrow, "text": _text}
    return readers[file.format](file, form, seen)


def _values(record: Mapping[str, Any], form: RowFormat, *, text: bool) -> dict[str, Any]:
    values = {name: convert(record.get(name), kind, name, text=text) for name, kind in form.columns.items()}
    identity = values[form.id_column] if form.id_column is not None else ""
    if form.id_column is not None and (identity is None or identity != identity or not str(identity).strip()):
        raise BrokenLine(f"no value in the id column {form.id_column}")
    return values


def _csv(file: SourceFile, form: RowFormat, seen: set[str]) -> _Lines:
    csv.field_size_limit(sys.maxsize)  # The default refuses a field of 128 KiB, which a document may exceed.
    with opened_stream(file) as stream:
        reader = csv.reader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), strict=True)
        header = next(reader, None)
        if header is None:
            return
        _refuse_columns(file, form, header)
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
            raw, size = json.dumps(fields, ensure_ascii=False), _size(fields)
            if len(fields) != len(header):
                why = f"{len(fields)} fields, where the header has {len(header)}"
                yield Parsed(line, error=f"{file.address} line {line}: {why}.", raw=raw, bytes=size)
                continue
            record = dict(zip(header, fields, strict=True))
            yield _converted(file, line, record, form, raw, size, text=True)


def _refuse_columns(file: SourceFile, form: RowFormat, names: list[str]) -> None:
    missing = [name for name in form.read if name not in names]
    if missing:
        raise BrokenLine(_wrong_columns(file, missing, set(names)))
    twice = [name for name in form.read if names.count(name) > 1]
    if twice:
        raise BrokenLine(f"{file.address} has more than one column {twice[0]}: rename one.")


def _jsonl(file: SourceFile, form: RowFormat, seen: set[str]) -> _Lines:
    with opened_stream(file) as stream:
        for line, data, size in _lines(stream, form.max_row_bytes):
            text = data.decode("utf-8", "replace")
            if size > form.max_row_bytes:
                yield Parsed(line, raw=text, bytes=size, oversize=True)
                continue
            try:
                record = json.loads(data.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                why = f"{file.address} line {line}: broken JSON ({json_problem(error)})."
                yield Parsed(line, error=why, raw=text, bytes=size)
                continue
            if not isinstance(record, dict):
                kind = "an array" if isinstance(record, list) else f"a {type(record).__name__}"
                why = f"{file.address} line {line}: {kind}, where one JSON object a line is due."
                yield Parsed(line, error=why, raw=text, bytes=size)
                continue
            seen.update(record)
            yield _converted(file, line, record, form, text, size, text=False)


def _lines(stream: io.BufferedReader, max_bytes: int) -> Iterator[tuple[int, bytes, int]]:
    """(number, bytes, size) of lines that are not blank; of longer ones than ``max_bytes`` the beginning."""
    number = 0
    while data := stream.readline(max_bytes + 1):
        number += 1
        size = len(data)
        if size > max_bytes and not data.endswith(b"\n"):
            data = data[:SHOWN_CHARS]
            while rest := stream.readline(max_bytes + 1):
                size += len(rest)
                if rest.endswith(b"\n"):
                    break
        data = (data.removeprefix(codecs.BOM_UTF8) if number == 1 else data).strip()
        if data:
            yield number, data, size


def _text(file: SourceFile, form: RowFormat, seen: set[str]) -> _Lines:
    """Documents in a column ``text``."""
    seen.add("text")
    with opened_stream(file) as stream:
        if form.text_rows == "line":
            found: Iterator[tuple[int, bytes, int]] = _lines(stream, form.max_row_bytes)
        else:
            data = stream.read(form.max_row_bytes + 1)
            size = len(data)
            while size > form.max_row_bytes and (rest := stream.read(BLOCK_BYTES)):
                size += len(rest)
            found = iter([(1, data.removeprefix(codecs.BOM_UTF8), size)] if data.strip() else [])
        for line, data, size in found:
            raw = data[: 4 * SHOWN_CHARS].decode("utf-8", "replace")
            if size > form.max_row_bytes:
                yield Parsed(line, raw=raw, bytes=size, oversize=True)
                continue
            try:
                record = {"text": data.decode("utf-8")}
            except UnicodeDecodeError as error:
                why = f"{file.address} line {line}: byte {error.start + 1} is not UTF-8."
                yield Parsed(line, error=why, raw=raw, bytes=size)
                continue
            yield _converted(file, line, record, form, raw, size, text=False)


def _parquet(file: SourceFile, form: RowFormat, seen: set[str]) -> _Lines:
    import pyarrow.parquet as pq

    with opened(file) as stream:
        parquet = pq.ParquetFile(stream)
        names = parquet.schema_arrow.names
        _refuse_columns(file, form, names)
        seen.update(names)
        rows = _batch_rows(parquet.metadata)
        batches = parquet.iter_batches(batch_size=rows, columns=_columns(form, names))
        yield from _records(file, form, batches)


def _columns(form: RowFormat, names: list[str]) -> list[str]:
    """What to read of a file; of columns that are joined, those that it has."""
    return [name for name in form.columns if name in names]


def _batch_rows(metadata: Any) -> int:
    """So many rows that a batch of them is no larger than a block, by the file's own word."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    widest = max((g.total_byte_size / g.num_rows for g in groups if g.num_rows), default=1.0)
    return int(min(BLOCK_ROWS, max(1, BLOCK_BYTES // max(widest, 1))))


def _arrow(file: SourceFile, form: RowFormat, seen: set[str]) -> _Lines:
    """Arrow's stream format, which ``datasets`` saves to disk, or its file format."""
    import pyarrow as pa

    with opened(file) as stream:
        magic = stream.read(6)
        stream.seek(0)
        reader = pa.ipc.open_file(stream) if magic == b"ARROW1" else pa.ipc.open_stream(stream)
        names = reader.schema.names
        _refuse_columns(file, form, names)
        seen.update(names)
        if magic == b"ARROW1":
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            batches = iter(reader)
        yield from _records(file, form, (batch.select(_columns(form, names)) for batch in batches))


def _records(file: SourceFile, form: RowFormat, batches: Iterator[pa.RecordBatch]) -> _Lines:
    line = 0
    for batch in batches:
        # In slices, so that few rows at a time are Python's.
        step = max(1, min(batch.num_rows, 1000, BLOCK_BYTES * batch.num_rows // max(batch.nbytes, 1)))
        for start in range(0, batch.num_rows, step):
            for record in batch.slice(start, step).to_pylist():
                line += 1
                yield _converted(file, line, record, form, None, _size(record), text=False)


def _size(value: Any) -> int:
    """Bytes of a value: those of its texts in UTF-8, and 8 of whatever else is not null."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "replace"))
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    if isinstance(value, list):
        return sum(map(_size, value))
    return 0 if value is None else 8


def _converted(
    file: SourceFile,
    line: int,
    record: Mapping[str, Any],
    form: RowFormat,
    raw: str | None,
    size: int,
    *,
    text: bool,
) -> Parsed:
    if size > form.max_row_bytes:
        begun = json.dumps({n: str(v)[:SHOWN_CHARS] for n, v in record.items()}, ensure_ascii=False)
        return Parsed(line, raw=encodable(raw or begun), bytes=size, oversize=True)
    try:
        return Parsed(line, _values(record, form, text=text), bytes=size)
    except BrokenLine as problem:
        raw = raw if raw is not None else json.dumps(dict(record), ensure_ascii=False, default=str)
        why = f"{file.address} line {line}: {problem}."
        return Parsed(line, error=why, raw=encodable(raw), bytes=size)


def json_problem(error: Exception) -> str:
    """What is wrong with a line of JSON, in a phrase."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start + 1} is not UTF-8"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
