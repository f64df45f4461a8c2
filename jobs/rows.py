"""Rows of a dataset artifact's splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from cluster.contracts import Manifest
from cluster.errors import NotFoundError
from cluster.storage import ArtifactStore
from validation.data.schema import (
    CONVERSATIONS,
    PREFERENCES,
    SUMMARY_KEY,
    Columns,
    describe_schema,
    refuse_schema,
)


@dataclass(frozen=True)
class Row:
    """One conversation; its last message is the assistant's, the completion."""

    row_id: str
    messages: list[dict[str, str]]

    @property
    def length(self) -> int:
        """Characters in all: near enough to tokens for grouping, and known without tokenising."""
        return sum(len(message["content"]) for message in self.messages)


@dataclass(frozen=True)
class Preference:
    """One prompt and two answers to it, of which the chosen one is better."""

    row_id: str
    prompt: list[dict[str, str]]
    chosen: list[dict[str, str]]
    rejected: list[dict[str, str]]

    @property
    def answered(self) -> tuple[Row, Row]:
        """The conversations with the chosen and with the rejected answer."""
        return Row(self.row_id, self.prompt + self.chosen), Row(self.row_id, self.prompt + self.rejected)

    @property
    def length(self) -> int:
        """Characters of both conversations."""
        return sum(row.length for row in self.answered)


_Kind = TypeVar("_Kind", Row, Preference)


def split_files(
    artifacts: ArtifactStore,
    dataset: Manifest,
    split: str,
    needed: Mapping[str, Any] = CONVERSATIONS,
    reader: str = "this job",
) -> list[str]:
    """Paths (``bucket/key``, for pyarrow) of a split's Parquet files.

    Raises NotFoundError if it has none, RefusedError if its schema lacks a needed column or has it otherwise.
    """
    found = artifacts.uris(dataset, split, ".parquet")
    if not found:
        splits = sorted({file.path.partition("/")[0] for file in dataset.files if "/" in file.path})
        raise NotFoundError(f"{dataset.ref} has no split {split!r}; it has {', '.join(splits) or 'none'}.")
    files = [uri.removeprefix("s3://") for uri in found]
    # Versions made before schemas were recorded tell theirs by a file.
    columns = dataset.summary.get(SUMMARY_KEY) or _columns(artifacts, files[0])
    refuse_schema(columns, needed, str(dataset.ref), reader)
    return files


def read_rows(artifacts: ArtifactStore, dataset: Manifest, split: str, reader: str = "this job") -> list[Row]:
    """All rows of a split in row-id order.

    Raises NotFoundError if there is no such split or no row in it, RefusedError if its columns do not fit.
    """
    return _read(Row, CONVERSATIONS, artifacts, dataset, split, reader)


def read_preferences(
    artifacts: ArtifactStore, dataset: Manifest, split: str, reader: str = "this job"
) -> list[Preference]:
    """As :func:`read_rows`, of a split that holds preferences."""
    return _read(Preference, PREFERENCES, artifacts, dataset, split, reader)


def _read(
    kind: type[_Kind],
    needed: Mapping[str, Any],
    artifacts: ArtifactStore,
    dataset: Manifest,
    split: str,
    reader: str,
) -> list[_Kind]:
    """Rows whose fields are the needed columns, by name."""
    import pyarrow.parquet as pq

    rows = list[_Kind]()
    for path in split_files(artifacts, dataset, split, needed, reader):
        with artifacts.store.filesystem().open_input_file(path) as stream:
            file = pq.ParquetFile(stream)
            # Whatever the manifest says, this is what is read.
            name = path.rpartition("/")[2]
            columns = describe_schema(file.schema_arrow)
            refuse_schema(columns, needed, f"{dataset.ref}, {split}/{name},", reader)
            found = file.read(columns=list(needed)).to_pylist()
        rows += [kind(**row) for row in found]
    if not rows:
        raise NotFoundError(f"{dataset.ref} has no rows in split {split!r}.")
    return sorted(rows, key=lambda row: row.row_id)


def _columns(artifacts: ArtifactStore, path: str) -> Columns:
    import pyarrow.parquet as pq

    return describe_schema(pq.read_schema(path, filesystem=artifacts.store.filesystem()))
