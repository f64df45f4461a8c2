"""Ship the spool: every closed segment becomes Parquet files in storage, and is deleted then.

    python -m cluster.records.ship SPOOL

Gateways start this as a short-lived process, so that neither its memory nor its work is theirs; by hand
it brings home what a stopped machine left behind. A segment's files have names that follow from its own, and
are written whole and once (``If-None-Match: *``): who is killed before the segment is deleted ships it again
without doubling a row, and without bringing back what an erasure has taken out meanwhile.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.errors import MantaError
from cluster.locks import file_lock
from cluster.records.layout import UNKNOWN_TEAM, file_key
from cluster.records.schema import TABLES
from cluster.records.spool import Segment, segments, sweep
from cluster.settings import load_settings
from cluster.storage import ObjectStore

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)
#: Bytes of a segment that are read at a time: what bounds this process's memory.
_BLOCK = 32 * 1024 * 1024
#: Tries a request: an outage is waited for between runs, not in them.
_TRIES = 3


def ship(root: Path, store: ObjectStore) -> int:
    """Ship all that is closed at ``root``, dead writers' open segments included; how many rows went.

    Others that ship the same spool wait meanwhile. Raises UnavailableError or AccessError if storage does not
    answer: what was not shipped stays.
    """
    rows = 0
    with file_lock(root / "ship.lock"):
        for segment in segments(root):
            rows += _ship(segment, store)
            segment.path.unlink()
        sweep(root)
    return rows


def _ship(segment: Segment, store: ObjectStore) -> int:
    rows = 0
    with segment.path.open("rb") as file:
        for part, lines in enumerate(_blocks(file)):
            table = _parse(segment, part, lines)
            for team, day, own in _partitions(table):
                key = file_key(team, segment.table, day, f"{segment.name}-{part}")
                store.put_if_absent(key, to_parquet(own))
            rows += len(table)
    return rows


def to_parquet(table: pa.Table) -> bytes:
    """A whole Parquet file."""
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _blocks(file: io.BufferedReader) -> Iterator[bytes]:
    """The file in blocks of whole lines; a last line without an end was never finished and is left out."""
    while block := file.read(_BLOCK):
        block += file.readline()
        if not block.endswith(b"\n"):
            block = block[: block.rfind(b"\n") + 1]
        if block:
            yield block


def _parse(segment: Segment, part: int, lines: bytes) -> pa.Table:
    """The rows. Lines that are none are kept beside the spool and told: they must not hold up others."""
    import pyarrow as pa

    schema = TABLES[segment.table].arrow()
    try:
        return _read(lines, schema)
    except pa.ArrowInvalid:
        good, bad = [], []
        for line in lines.splitlines(keepends=True):
            try:
                _read(line, schema)
                good.append(line)
            except pa.ArrowInvalid:
                bad.append(line)
        kept = segment.path.parents[1] / f"{segment.name}-{part}.{segment.table}.rejected"
        kept.write_bytes(b"".join(bad))
        logger.error("%d lines of %s are no records: they are kept in %s.", len(bad), segment.path, kept)
        return _read(b"".join(good), schema) if good else schema.empty_table()


def _read(lines: bytes, schema: pa.Schema) -> pa.Table:
    import pyarrow.json as pj

    parse = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    read = pj.ReadOptions(block_size=len(lines) + 1, use_threads=False)
    return pj.read_json(io.BytesIO(lines), read, parse).cast(schema)


def _partitions(table: pa.Table) -> Iterator[tuple[str, str, pa.Table]]:
    """Team, day and rows of each file. Rows without a team have a place of their own."""
    import pyarrow as pa
    import pyarrow.compute as pc

    teams = pc.fill_null(table["team"], UNKNOWN_TEAM)
    days = pc.strftime(pc.fill_null(table["time"], pa.scalar(0, table["time"].type)), "%Y-%m-%d")
    found = pa.table({"team": teams, "day": days})
    for pair in found.group_by(["team", "day"], use_threads=False).aggregate([]).to_pylist():
        mine = pc.and_(pc.equal(teams, pair["team"]), pc.equal(days, pair["day"]))
        yield pair["team"], pair["day"], table.filter(mine)


def main() -> int:
    """The command. Exits with 1, and one sentence, if storage does not answer."""
    os.nice(10)  # Requests go first.
    try:
        storage = load_settings().storage
        patient = storage.model_copy(update={"max_attempts": min(_TRIES, storage.max_attempts)})
        print(ship(Path(sys.argv[1]), ObjectStore(storage.bucket, patient)))
    except MantaError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
