"""Parquet under the attempt: the splits, and the rows that were kept apart."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.storage import Attempt, ObjectStore, row_digest
from jobs.preprocessing.reading import ERROR, LINE, RAW, ROW_ID, SOURCE

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data


@dataclass(frozen=True)
class Reason:
    """Why a row is kept apart, and at which stage."""

    stage: str
    reason: str


def quarantine_schema() -> pa.Schema:
    """row_id, source file, line, stage, reason, and the raw row as JSON (a broken line itself)."""
    import pyarrow as pa

    text = pa.string()
    return pa.schema(
        [
            ("row_id", text),
            ("source", text),
            ("line", pa.int64()),
            ("stage", text),
            ("reason", text),
            ("raw", text),
        ]
    )


def write_quarantine(
    attempt: Attempt,
    store: ObjectStore,
    raw: ray.data.Dataset,
    reasons: Mapping[str, Reason],
    columns: Sequence[str],
    num_cpus: float,
) -> None:
    """Write the raw rows in ``reasons`` to ``quarantine/``; one file without rows if there are none."""
    if not reasons:
        write_empty(attempt, "quarantine", quarantine_schema())
        return
    import ray

    known = ray.put(dict(reasons))

    def kept_apart(block: pa.Table) -> pa.Table:
        import pyarrow as pa
        import ray

        reasons = ray.get(known)
        rows = []
        for row in block.to_pylist():
            why = reasons.get(row[ROW_ID])
            if why is None:
                continue
            raw_row = row[RAW] if row[ERROR] else json.dumps({c: row[c] for c in columns}, ensure_ascii=False)
            place = {"row_id": row[ROW_ID], "source": row[SOURCE], "line": row[LINE]}
            rows.append({**place, "stage": why.stage, "reason": why.reason, "raw": raw_row})
        return pa.Table.from_pylist(rows, schema=quarantine_schema())

    found = raw.map_batches(kept_apart, batch_format="pyarrow", batch_size=None, num_cpus=num_cpus)
    write_parquet(attempt, store, found, "quarantine", num_cpus)


def write_parquet(
    attempt: Attempt, store: ObjectStore, dataset: ray.data.Dataset, folder: str, num_cpus: float
) -> None:
    """Write a dataset below the attempt, one file for each block that is not empty."""
    dataset.write_parquet(
        f"{store.bucket}/{attempt.prefix}{folder}",
        filesystem=store.filesystem(),
        ray_remote_args={"num_cpus": num_cpus},
    )


def write_empty(attempt: Attempt, folder: str, schema: pa.Schema) -> None:
    """Write one Parquet file that has the columns and no row, so that readers find the folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    attempt.write(f"{folder}/empty.parquet", sink.getvalue().to_pybytes())


def block_digests(block: pa.Table) -> pa.Table:
    """Id and SHA-256 of every row of a block; the driver merges them to the data digest."""
    import pyarrow as pa

    pairs = [row_digest(row, ROW_ID) for row in block.to_pylist()]
    return pa.table(
        {
            "id": pa.array([identity for identity, _ in pairs], pa.string()),
            "digest": pa.array([digest for _, digest in pairs], pa.binary()),
        }
    )
