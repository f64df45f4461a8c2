"""One's own Parquet, JSON Lines and CSV files as tables of one schema, with an id for each row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from cluster.errors import NotFoundError, RefusedError, UsageError
from jobs.preprocessing.files import SourceFile, find_files, opened, opened_stream, source_file, told
from jobs.preprocessing.reading import json_problem

BATCH_ROWS = 10_000
READ = ("parquet", "jsonl", "csv")
ROW_ID = "row_id"
#: What jobs write beside the data of a folder.
_BESIDE = ("profile.json", "checks.json", "manifest.json", "parts.json")


def data_files(address: str) -> list[SourceFile]:
    """The files that a path, an ``s3://`` address, a folder or a glob names; none if there is none.

    Raises UsageError for those of a format that is not judged as it is.
    """
    try:
        names = find_files(address)
    except NotFoundError:
        return []
    files = [source_file(n, 0, None) for n in names if len(names) == 1 or not n.endswith(_BESIDE)]
    for file in files:
        if file.format not in READ:
            raise UsageError(f"{file.address} is no Parquet, JSON Lines or CSV file, which can be judged.")
    return files


def schema_of(files: Sequence[SourceFile]) -> pa.Schema:
    """What the columns of all files have in common. Files of text are read to their end for it.

    Raises RefusedError in one sentence for what cannot be read, or brought together.
    """
    found = [schema for file in files for schema in _schemas(file)]
    try:
        whole = pa.unify_schemas([schema.remove_metadata() for schema in found], promote_options="permissive")
    except pa.ArrowException as problem:
        names = ", ".join(file.address for file in files[:3])
        why = " ".join(str(problem).split()).rstrip(".")
        raise RefusedError(f"{names}: a column holds values of several types ({why}).") from None
    # A column that is null throughout has no type of its own.
    return pa.schema([pa.field(f.name, pa.string()) if pa.types.is_null(f.type) else f for f in whole])


def own_tables(file: SourceFile, schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of a file in small tables; one without ``row_id`` gets ``<address>:<number of the row>``."""
    number = 0
    with _plainly(file):
        for table in _tables(file, schema):
            columns = {
                f.name: table[f.name].cast(f.type)
                if f.name in table.column_names
                else pa.nulls(table.num_rows, f.type)
                for f in schema
            }
            if ROW_ID not in columns:
                ids = [f"{file.address}:{number + place}" for place in range(1, table.num_rows + 1)]
                columns = {ROW_ID: pa.array(ids, pa.string()), **columns}
            number += table.num_rows
            yield pa.table(columns)


def _schemas(file: SourceFile) -> Iterator[pa.Schema]:
    with _plainly(file):
        if file.format == "parquet":
            with opened(file) as stream:
                yield pq.read_schema(stream)
        elif file.format == "csv":
            for table in _csv(file):
                yield table.schema
        else:
            for rows in _records(file):
                names = dict.fromkeys(name for row in rows for name in row)
                yield pa.schema([(name, pa.array([row.get(name) for row in rows]).type) for name in names])


def _tables(file: SourceFile, schema: pa.Schema) -> Iterator[pa.Table]:
    if file.format == "parquet":
        with opened(file) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(BATCH_ROWS):
                yield pa.Table.from_batches([batch])
    elif file.format == "csv":
        yield from _csv(file)
    else:
        for rows in _records(file):
            yield pa.Table.from_pylist(rows, schema=schema)


def _csv(file: SourceFile) -> Iterator[pa.Table]:
    """As the preprocessing job reads CSV: only an empty field is null, and times are text."""
    with opened_stream(file) as stream:
        first = _csv_reader(stream, {}).schema
    kinds = {f.name: pa.string() for f in first if pa.types.is_temporal(f.type) or pa.types.is_null(f.type)}
    with opened_stream(file) as stream:
        for batch in _csv_reader(stream, kinds):
            yield pa.Table.from_batches([batch])


def _csv_reader(stream: IO[bytes], kinds: dict[str, pa.DataType]) -> pc.CSVStreamingReader:
    convert = pc.ConvertOptions(column_types=kinds, null_values=[""], strings_can_be_null=True)
    return pc.open_csv(
        stream,
        read_options=pc.ReadOptions(block_size=16 * 2**20),
        parse_options=pc.ParseOptions(newlines_in_values=True),
        convert_options=convert,
    )


def _records(file: SourceFile) -> Iterator[list[dict[str, Any]]]:
    with opened_stream(file) as stream:
        rows = _objects(file, stream)
        while some := list(islice(rows, BATCH_ROWS)):
            yield some


def _objects(file: SourceFile, stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(stream, start=1):
        text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        if not text:
            continue
        try:
            row = json.loads(text)
        except ValueError as problem:
            raise RefusedError(
                f"{file.address} line {number}: broken JSON ({json_problem(problem)})."
            ) from None
        if not isinstance(row, dict):
            raise RefusedError(f"{file.address} line {number}: one JSON object a line is due.")
        yield row


@contextmanager
def _plainly(file: SourceFile) -> Iterator[None]:
    """What cannot be read is told in one sentence."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as problem:
        raise RefusedError(told(file.address, problem)) from None
