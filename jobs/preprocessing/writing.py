"""Parquet under the attempt: the splits, and the rows that were kept apart."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.storage import Attempt, ObjectStore, row_digest
from jobs.preprocessing.account import name
from jobs.preprocessing.finishing import FINAL, REPEATS, written
from jobs.preprocessing.reading import READ
from jobs.preprocessing.rows import (
    ORDINAL,
    RAW,
    REASON,
    ROW_ID,
    SCORE,
    STAGE,
    file_of,
    line_of,
    quarantine_schema,
)
from validation.data.personal import LONGEST
from validation.data.profile import ProfileSpec, profile_block

if TYPE_CHECKING:
    import pyarrow as pa

SPLITS, QUARANTINE = ("train", "test"), "quarantine"
#: Rows of each reason that are shown, of a block and in all.
EXAMPLES, SHOWN_CHARS = 2, 500
_QUOTED = re.compile(r"(['\"]).*\1", re.DOTALL)


@dataclass(frozen=True)
class Written:
    """What came of a block."""

    #: Rows by folder, and by stage and reason.
    counts: Counter[str]
    #: A few rows of the quarantine, of each reason.
    examples: Sequence[Mapping[str, Any]] = ()
    #: Partial profile of the rows that were kept.
    profile: bytes = b""


@dataclass(frozen=True)
class Writing:
    """Writes finished blocks; equal blocks get equal names, so that a repeated task leaves nothing twice."""

    store: ObjectStore
    #: Where the attempt's files go.
    prefix: str
    #: The finished columns, in order.
    columns: Sequence[str]
    #: Address of each source file, by its number.
    sources: Sequence[str]
    #: Splits to write, beside the quarantine.
    splits: Sequence[str] = SPLITS
    spec: ProfileSpec | None = None

    def __call__(self, block: pa.Table, bad: Mapping[str, str]) -> tuple[Written, pa.Table]:
        """Write the rows of one block; give what was written, and the digests of those that were kept.

        :param bad: row id to the expectations of the final suite that the row breaks.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        counts: Counter[str] = Counter()
        if not len(block):
            return Written(counts), digests([])
        first = block[ORDINAL][0].as_py()
        refused = pa.array([row_id in bad for row_id in block[ROW_ID].to_pylist()])
        kept = pc.and_(pc.is_null(block[STAGE]), pc.invert(refused))
        finished = block.filter(kept)
        for split in self.splits:
            rows = finished.filter(pc.equal(finished["split"], split))
            self._write(rows.select(written(self.columns)), split, first)
            counts[split] += len(rows)
        apart = list(self._apart(block.filter(pc.invert(kept)), bad))
        self._write(pa.Table.from_pylist(apart, schema=quarantine_schema()), QUARANTINE, first)
        counts[QUARANTINE] += len(apart)
        counts.update(name(row["stage"], kind_of(row["stage"], row["reason"])) for row in apart)
        finished = finished.select(list(self.columns))
        profile = profile_block(self.spec, finished) if self.spec else b""
        return Written(counts, list(_examples(apart)), profile), digests(finished.to_pylist())

    def _apart(self, rows: pa.Table, bad: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        for row in rows.to_pylist():
            why = {"stage": row[STAGE], "reason": row[REASON], "score": row[SCORE], "raw": row[RAW]}
            if row[STAGE] is None:
                finished = {c: row[c] for c in written(self.columns)}
                raw = json.dumps(finished, ensure_ascii=False)
                why = {"stage": FINAL, "reason": bad[row[ROW_ID]], "score": None, "raw": raw}
            repeats = row[REPEATS]
            yield {
                "row_id": row[ROW_ID],
                "source": self.sources[file_of(row[ORDINAL])],
                "line": line_of(row[ORDINAL]),
                "repeats": None if repeats is None else self._place(repeats),
                **why,
            }

    def _place(self, number: int) -> str:
        return f"{self.sources[file_of(number)]} line {line_of(number)}"

    def _write(self, rows: pa.Table, folder: str, first: int) -> None:
        import pyarrow.parquet as pq

        if len(rows):
            sink = io.BytesIO()
            pq.write_table(rows, sink, compression="zstd")
            # A block is no larger than one request, and this client waits for storage that is away.
            self.store.put(f"{self.prefix}{folder}/{first:016x}.parquet", sink.getvalue())


def kind_of(stage: str, reason: str) -> str:
    """The reason without the row's own values, so that there are few to count."""
    return "cannot be read" if stage == READ else _QUOTED.sub("…", reason)


def _examples(apart: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    seen: Counter[tuple[str, str]] = Counter()
    for row in apart:
        why = (row["stage"], kind_of(row["stage"], row["reason"]))
        seen[why] += 1
        if seen[why] <= EXAMPLES:
            shown = {name: row[name] for name in ("row_id", "source", "line", "stage", "reason", "score")}
            # Personal data is masked later, and must not be cut in two before.
            yield {**shown, "text": (row["raw"] or "")[: SHOWN_CHARS + LONGEST]}


def write_empty(attempt: Attempt, folder: str, schema: pa.Schema) -> None:
    """Write one Parquet file that has the columns and no row, so that readers find the folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    attempt.write(f"{folder}/empty.parquet", sink.getvalue().to_pybytes())


def digests(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Id and SHA-256 of every row."""
    import pyarrow as pa

    pairs = [row_digest(row, ROW_ID) for row in rows]
    ids, hashes = [i for i, _ in pairs], [d for _, d in pairs]
    return pa.table({"id": pa.array(ids, pa.string()), "digest": pa.array(hashes, pa.binary(32))})
