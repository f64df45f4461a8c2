"""Sorting of more rows than memory shall hold."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterator
from typing import IO, Self

#: Pairs in memory at a time; some hundred bytes each.
ROWS_PER_RUN = 20_000
_ROWS_PER_READ = 512


class SortedSpill:
    """Pairs of a text and bytes, read back in order; sorted runs of them stand in files without a name.

    So nothing stays on the disk, however the process ends. Read one iterator at a time.
    """

    def __init__(self, rows_per_run: int = ROWS_PER_RUN) -> None:
        self._rows_per_run = rows_per_run
        self._waiting: list[tuple[str, bytes]] = []
        self._runs: list[IO[bytes]] = []
        self.count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for run in self._runs:
            run.close()

    def add(self, key: str, value: bytes = b"") -> None:
        """Take one pair. Equal keys are all kept, in the order of their values."""
        self._waiting.append((key, value))
        self.count += 1
        if len(self._waiting) >= self._rows_per_run:
            self._spill()

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        self._waiting.sort()
        return heapq.merge(*(_read(run) for run in self._runs), self._waiting)

    def _spill(self) -> None:
        import pyarrow as pa

        self._waiting.sort()
        keys, values = zip(*self._waiting, strict=True)
        table = pa.table({"key": pa.array(keys, pa.string()), "value": pa.array(values, pa.binary())})
        run = tempfile.TemporaryFile(prefix="manta-sort-")  # noqa: SIM115 - closed with the whole.
        with pa.ipc.new_stream(run, table.schema) as writer:
            writer.write_table(table, max_chunksize=_ROWS_PER_READ)
        self._runs.append(run)
        self._waiting = []


def _read(run: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    import pyarrow as pa

    run.seek(0)
    for batch in pa.ipc.open_stream(run):
        yield from zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)


def difference(asked: SortedSpill, found: SortedSpill) -> str | None:
    """Why the found keys are not exactly the asked ones, in words; None if they are."""
    missing, extra, shown = 0, 0, list[str]()
    for key, wanted, there in _counts(asked, found):
        if wanted == there:
            continue
        missing += max(0, wanted - there)
        extra += max(0, there - wanted)
        if len(shown) < 3:
            shown.append(key)
    if not shown:
        return None
    return f"{missing} rows have no result, {extra} too many or unasked ({', '.join(shown)})"


def _counts(asked: SortedSpill, found: SortedSpill) -> Iterator[tuple[str, int, int]]:
    """Each key with how often it stands in either."""
    sides = heapq.merge(((key, 0) for key, _ in asked), ((key, 1) for key, _ in found))
    current, counts = None, [0, 0]
    for key, side in sides:
        if key != current:
            if current is not None:
                yield current, counts[0], counts[1]
            current, counts = key, [0, 0]
        counts[side] += 1
    if current is not None:
        yield current, counts[0], counts[1]
