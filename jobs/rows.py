"""Rows of a dataset artifact's splits."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.contracts import Manifest
from cluster.errors import NotFoundError
from cluster.storage import ArtifactStore


@dataclass(frozen=True)
class Row:
    """One conversation; its last message is the assistant's, the completion."""

    row_id: str
    messages: list[dict[str, str]]

    @property
    def length(self) -> int:
        """Characters in all: near enough to tokens for grouping, and known without tokenising."""
        return sum(len(message["content"]) for message in self.messages)


def split_files(artifacts: ArtifactStore, dataset: Manifest, split: str) -> list[str]:
    """Paths (``bucket/key``, for pyarrow) of a split's Parquet files. Raises NotFoundError if it has none."""
    found = artifacts.uris(dataset, split, ".parquet")
    if not found:
        splits = sorted({file.path.partition("/")[0] for file in dataset.files if "/" in file.path})
        raise NotFoundError(f"{dataset.ref} has no split {split!r}; it has {', '.join(splits) or 'none'}.")
    return [uri.removeprefix("s3://") for uri in found]


def read_rows(artifacts: ArtifactStore, dataset: Manifest, split: str) -> list[Row]:
    """All rows of a split in row-id order. Raises NotFoundError if there is no such split or no row in it."""
    import pyarrow.parquet as pq

    files, filesystem = split_files(artifacts, dataset, split), artifacts.store.filesystem()
    rows = [
        Row(row["row_id"], row["messages"])
        for file in files
        for row in pq.read_table(file, columns=["row_id", "messages"], filesystem=filesystem).to_pylist()
    ]
    if not rows:
        raise NotFoundError(f"{dataset.ref} has no rows in split {split!r}.")
    return sorted(rows, key=lambda row: row.row_id)
