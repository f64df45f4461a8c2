"""The data digest of more rows than one process holds: sorted by row id in ranges, range after range."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_RANGE = 2_000_000
_SAMPLES = 200


def merged_digest(tables: Sequence[Any], rows: int, num_cpus: float) -> str:
    """What :func:`cluster.storage.merge_row_digests` gives for all rows, however they lie in the tables.

    ``tables`` are references to tables of ids and digests; only 32 bytes a row of one range are ever here.
    """
    import ray

    ranges = max(1, -(-rows // ROWS_PER_RANGE))
    join, sample = ray.remote(num_cpus=num_cpus)(_in_order), ray.remote(num_cpus=num_cpus)(_sample)
    found = [sample.remote(table) for table in tables] if ranges > 1 else []
    borders = _borders(ray.get(found), ranges)
    if not borders:
        parts = [join.remote(*tables)]
    else:
        cut = ray.remote(num_cpus=num_cpus, num_returns=len(borders) + 1)(_cut)
        pieces = [cut.remote(table, borders) for table in tables]
        parts = [join.remote(*(piece[number] for piece in pieces)) for number in range(len(borders) + 1)]
    total = hashlib.sha256()
    for part in parts:
        total.update(ray.get(part))
    return total.hexdigest()


def _in_order(*tables: pa.Table) -> Any:
    import numpy as np
    import pyarrow as pa

    table = pa.concat_tables(tables).sort_by([("id", "ascending")])
    return np.frombuffer(b"".join(table["digest"].to_pylist()), np.uint8)


def _sample(table: pa.Table) -> list[str]:
    step = max(1, len(table) // _SAMPLES)
    ids: list[str] = table["id"].to_pylist()
    return ids[::step]


def _borders(samples: Sequence[list[str]], ranges: int) -> list[str]:
    ids = sorted({identity for found in samples for identity in found})
    return sorted({ids[len(ids) * number // ranges] for number in range(1, ranges)}) if ids else []


def _cut(table: pa.Table, borders: list[str]) -> list[pa.Table]:
    import bisect

    import numpy as np

    # Code points sort as UTF-8 bytes do: Python and Arrow agree.
    place = np.array([bisect.bisect_right(borders, identity) for identity in table["id"].to_pylist()])
    return [table.filter(place == number) for number in range(len(borders) + 1)]
