"""A source file that changes after its fingerprint was taken is noticed; one written anew alike is not."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.preprocessing.files import SourceFile, fingerprint_files, source_file
from jobs.preprocessing.reading import read_tables
from jobs.preprocessing.rows import REASON, STAGE, RowFormat

FORM = RowFormat({"text": "string"})


def fingerprinted(path: Path) -> SourceFile:
    (file,) = fingerprint_files([source_file(str(path), 0, None)])
    return file


def write(path: Path, texts: list[str]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": texts}), path)
        return
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)


def read(file: SourceFile) -> list[dict[str, Any]]:
    return [row for table in read_tables(file, FORM) for row in table.to_pylist()]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_a_file_that_changed_before_it_was_read_fails_in_one_sentence(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, ["one", "two"])
    file = fingerprinted(tmp_path / name)
    assert [row["text"] for row in read(file)] == ["one", "two"]
    write(tmp_path / name, ["one", "two", "three"])
    (row,) = read(file)
    assert row[STAGE] == "read"
    assert row[REASON] == (
        f"{tmp_path / name} has changed since the job began and took its fingerprint: run the job again."
    )


def test_equal_bytes_that_were_written_anew_are_no_change(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ["one"])
    file = fingerprinted(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").unlink()
    write(tmp_path / "a.jsonl", ["one"])
    assert [row["text"] for row in read(file)] == ["one"]


def test_a_file_that_grows_while_it_is_read_fails_too(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, [f"row {number}" for number in range(25_000)])
    tables = read_tables(fingerprinted(path), FORM)
    assert next(tables)[STAGE].null_count == 20_000
    with path.open("a") as stream:
        stream.write('{"text": "late"}\n')
    assert "has changed since the job began" in [t for table in tables for t in table[REASON].to_pylist()][-1]


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ["one"])
    file = fingerprinted(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").unlink()
    (row,) = read(file)
    assert (
        row[REASON]
        == f"{tmp_path / 'a.jsonl'}: no such file; sources are local paths, s3:// addresses or globs."
    )
