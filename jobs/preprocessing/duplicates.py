"""Exact and near duplicates of all files, found by shuffles of keys over hash buckets.

A block gives 8 bytes of ordinal and a few of keys for each row. They are split by hash into buckets, each
bucket is decided by a task of its own, and what it decides are ordinals again. Neither text nor ids move, and
the driver holds references only. Of equal rows the first stays, and rows of test before those of train, so
that no row of train is in test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jobs.preprocessing.rows import ANSWER, BANDS, KEY, KEY_BYTES, ORDINAL, ROW_ID, SPLIT, STAGE, origin

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

#: Rows whose keys one task decides on: some 100 MB with the bands of near duplicates.
ROWS_PER_BUCKET = 1_000_000
EXACT, NEAR = "exact_duplicates", "near_duplicates"
#: Bands of a row are about so many times as large as its other keys.
_BANDS_TO_A_ROW = 8
#: What a decision's code says: stage, reason.
DECISIONS = (
    (EXACT, "repeats an earlier row"),
    (EXACT, "repeats a row of test"),
    (EXACT, "an equal row has a different answer"),
    (NEAR, "is much like an earlier row"),
    (NEAR, "is much like a row of test"),
)
_REPEATS, _REPEATS_TEST, _CONTRADICTS, _LIKE, _LIKE_TEST = range(len(DECISIONS))
#: Those among them that would have brought a row of test into train.
CROSSED = (_REPEATS_TEST, _LIKE_TEST)
#: Set in the place of a row that is not of test: such rows sort behind those that are.
_NOT_TEST = 1 << 63


def decision_schema() -> pa.Schema:
    """Ordinal of the row, what is decided, ordinal of the row that it repeats, a figure."""
    import pyarrow as pa

    return pa.schema(
        [("ordinal", pa.uint64()), ("code", pa.uint8()), ("repeats", pa.uint64()), ("score", pa.float64())]
    )


def keys_of(block: pa.Table, bad: frozenset[str]) -> pa.Table:
    """The keys of those rows of a marked block that nothing was found against.

    :param bad: ids of others; the copies of these are bad too.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    block = block.select([ROW_ID, ORDINAL, SPLIT, STAGE, KEY, ANSWER, BANDS])
    block = block.filter(pc.is_null(block[STAGE]))
    if bad:
        rows = zip(block[ROW_ID].to_pylist(), block[ORDINAL].to_pylist(), strict=True)
        block = block.filter(pa.array([origin(*row) not in bad for row in rows], pa.bool_()))
    test = pc.equal(block[SPLIT], "test").to_numpy(zero_copy_only=False).astype(bool)
    place = block[ORDINAL].to_numpy() | np.where(test, np.uint64(0), np.uint64(_NOT_TEST))
    return pa.table({"place": place, "key": block[KEY], "answer": block[ANSWER], "bands": block[BANDS]})


def id_keys(block: pa.Table) -> pa.Table:
    """Row ids as keys: what is decided on them are ids that are not unique."""
    import numpy as np
    import pyarrow as pa

    ids = [hashlib.sha256(row_id.encode()).digest()[:KEY_BYTES] for row_id in block[ROW_ID].to_pylist()]
    zeros: np.ndarray = np.zeros(len(ids), np.uint64)
    return pa.table({"place": block[ORDINAL], "key": pa.array(ids, pa.binary(KEY_BYTES)), "answer": zeros})


def id_at(block: pa.Table, number: int) -> str | None:
    """The id of the row with an ordinal, if it is in the block."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = block[ROW_ID].filter(pc.equal(block[ORDINAL], pa.scalar(number, pa.uint64()))).to_pylist()
    return found[0] if found else None


def codes(decisions: pa.Table) -> dict[int, int]:
    """How often each code was decided."""
    import pyarrow.compute as pc

    counted = pc.value_counts(decisions["code"]).to_pylist()
    return {entry["values"]: entry["counts"] for entry in counted}


def find_exact(keys: Sequence[Any], rows: int, num_cpus: float) -> Any:
    """Reference to the decisions on rows with equal keys, for references to what :func:`keys_of` gave."""
    return _shuffle(keys, max(1, -(-rows // ROWS_PER_BUCKET)), _split_keys, _decide_exact, num_cpus, gathered)


def find_near(keys: Sequence[Any], exact: Any, rows: int, bands: int, num_cpus: float) -> Any:
    """Reference to the decisions on rows that share a band of their MinHash with another row.

    Rows that ``exact`` (a reference to decisions) refuses take no part. Rows that are alike by way of others
    are one cluster, and the first of a cluster stays.
    """
    import ray

    spread = ray.remote(num_cpus=num_cpus)(_bands)
    tables = [spread.remote(table, exact) for table in keys]
    buckets = max(1, -(-rows * bands // (ROWS_PER_BUCKET * _BANDS_TO_A_ROW)))
    return _shuffle(tables, buckets, _split_bands, _alike, num_cpus, join=_decide_near)


def _shuffle(tables: Sequence[Any], buckets: int, split: Any, decide: Any, num_cpus: float, join: Any) -> Any:
    """Split each table into buckets, decide on each bucket, and bring what is decided together."""
    import ray

    reduce = ray.remote(num_cpus=num_cpus)(decide)
    if buckets == 1:
        decided = [reduce.remote(*tables)]
    else:
        cut = ray.remote(num_cpus=num_cpus, num_returns=buckets)(split)
        parts = [cut.remote(table, buckets) for table in tables]
        decided = [reduce.remote(*(part[number] for part in parts)) for number in range(buckets)]
    return ray.remote(num_cpus=num_cpus)(join).remote(*decided)


def gathered(*decisions: pa.Table) -> pa.Table:
    """All decisions as one table in the order of ordinals, which a block looks its own up in."""
    import pyarrow as pa

    if not decisions:
        return decision_schema().empty_table()
    return pa.concat_tables(decisions).sort_by("ordinal").combine_chunks()


def _split_keys(table: pa.Table, buckets: int) -> list[pa.Table]:
    return split_by(table, key_words(table)[:, 0] % buckets, buckets)


def split_by(table: pa.Table, bucket: np.ndarray, buckets: int) -> list[pa.Table]:
    """The rows of each bucket."""
    import numpy as np

    order = np.argsort(bucket, kind="stable")
    ends = np.atleast_1d(np.searchsorted(bucket[order], np.arange(buckets + 1)))
    return [table.take(order[ends[i] : ends[i + 1]]) for i in range(buckets)]


def key_words(table: pa.Table) -> np.ndarray:
    """The keys as two columns of 8 bytes."""
    import numpy as np

    column = table["key"].combine_chunks()
    chunk = column.chunk(0) if hasattr(column, "num_chunks") and column.num_chunks else column
    if len(table) == 0:
        return np.empty((0, 2), np.uint64)
    data = np.frombuffer(chunk.buffers()[1], np.uint64)
    words: np.ndarray = data[2 * chunk.offset : 2 * (chunk.offset + len(chunk))].reshape(-1, 2)
    return words


def _decide_exact(*tables: pa.Table) -> pa.Table:
    """Decide which of several equal rows stays.

    Rows with one key and different answers contradict each other, and none of them stays.
    """
    import numpy as np
    import pyarrow as pa

    table = pa.concat_tables(tables)
    if not len(table):
        return decision_schema().empty_table()
    words, place, answer = key_words(table), table["place"].to_numpy(), table["answer"].to_numpy()
    order = np.lexsort((place, words[:, 1], words[:, 0]))
    words, place, answer = words[order], place[order], answer[order]
    begins = np.r_[True, (words[1:] != words[:-1]).any(axis=1)]
    group = np.cumsum(begins) - 1
    first = np.flatnonzero(begins)[group]
    size = np.bincount(group)[group]
    contradicts = np.zeros(group[-1] + 1, bool)
    np.logical_or.at(contradicts, group, answer != answer[first])
    contradicts = contradicts[group]
    gone = contradicts | ~begins
    code = np.where(contradicts, _CONTRADICTS, _same(place, place[first], _REPEATS, _REPEATS_TEST))
    return decided(
        place[gone], code[gone], place[first][gone], np.where(contradicts, size - 1.0, np.nan)[gone]
    )


def _same(place: np.ndarray, first: np.ndarray, code: int, code_test: int) -> np.ndarray:
    """The code of rows that repeat another; that of a train row which repeats one of test is its own."""
    import numpy as np

    crossed = (place >= np.uint64(_NOT_TEST)) & (first < np.uint64(_NOT_TEST))
    codes: np.ndarray = np.where(crossed, code_test, code)
    return codes


def decided(place: np.ndarray, code: np.ndarray, repeats: np.ndarray, score: np.ndarray) -> pa.Table:
    """Decisions as a table in the order of ordinals; a contradiction repeats nothing, NaN is no score."""
    import numpy as np
    import pyarrow as pa

    bare = np.uint64(_NOT_TEST - 1)
    ordinal = place & bare
    order = np.argsort(ordinal)
    code = code[order].astype(np.uint8)
    return pa.table(
        [
            pa.array(ordinal[order]),
            pa.array(code),
            pa.array((repeats & bare)[order], mask=code == _CONTRADICTS),
            pa.array(score[order].astype(np.float64), from_pandas=True),
        ],
        schema=decision_schema(),
    )


def _bands(keys: pa.Table, exact: pa.Table) -> pa.Table:
    """A row for each band of each row that has bands and is no exact duplicate."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    keys = keys.select(["place", "bands"]).filter(pc.is_valid(keys["bands"]))
    refused = np.isin(keys["place"].to_numpy() & np.uint64(_NOT_TEST - 1), exact["ordinal"].to_numpy())
    keys = keys.filter(pa.array(~refused))
    hashes = np.frombuffer(b"".join(keys["bands"].to_pylist()), np.uint64)
    number = len(hashes) // max(len(keys), 1)
    return pa.table({"hash": hashes, "place": np.repeat(keys["place"].to_numpy(), number)})


def _split_bands(table: pa.Table, buckets: int) -> list[pa.Table]:
    import numpy as np

    return split_by(table, (table["hash"].to_numpy() >> np.uint64(32)) % buckets, buckets)


def _alike(*tables: pa.Table) -> np.ndarray:
    """Pairs of the first row with a band and each other row with it."""
    import pyarrow as pa

    from validation.data.near_duplicates import bucket_edges

    table = pa.concat_tables(tables)
    edges: np.ndarray = bucket_edges(table["place"].to_numpy(), table["hash"].to_numpy())
    return edges


def _decide_near(*edges: np.ndarray) -> pa.Table:
    """Of each cluster that the pairs make, all rows but the first."""
    import numpy as np

    from validation.data.near_duplicates import find_near_duplicates

    place, first = find_near_duplicates(edges)
    return decided(place, _same(place, first, _LIKE, _LIKE_TEST), first, np.full(len(place), np.nan))
