"""Read records from storage, as a stream of tables: never all in memory.

Each file is read by one request: an erasure may put another in its place at any time, and parts of both
would make none.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING, Any

from cluster.records.layout import RecordFile, record_files
from cluster.records.schema import TABLES, TableName
from cluster.storage import ObjectStore

if TYPE_CHECKING:
    import pyarrow as pa

_READERS = 8


def read_file(
    store: ObjectStore, table: TableName, file: RecordFile, columns: Sequence[str] | None
) -> pa.Table:
    """A file's rows with those columns, or all; a column that the file is too old for is null.

    Raises UnavailableError or AccessError if storage does not answer.
    """
    import pyarrow.parquet as pq

    content = io.BytesIO(store.get(file.key))
    return pq.read_table(content, columns=columns and list(columns), schema=TABLES[table].arrow())


def read(
    store: ObjectStore,
    table: TableName,
    columns: Sequence[str],
    *,
    team: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    where: Any = None,
) -> Iterator[pa.Table]:
    """A table's rows, file by file, with those columns.

    :param since: time of the first row.
    :param until: time behind the last row.
    :param where: a pyarrow expression over those columns and ``time``.

    Raises UnavailableError or AccessError if storage does not answer.
    """
    for limit in _within(since, until):
        where = limit if where is None else where & limit
    wanted = list(dict.fromkeys([*columns, "time"]))
    for _, found in read_files(store, table, record_files(store, table, team, since, until), wanted):
        rows = found if where is None else found.filter(where)
        yield rows.select(list(columns))


def read_files(
    store: ObjectStore, table: TableName, files: Iterator[RecordFile], columns: Sequence[str]
) -> Iterator[tuple[RecordFile, pa.Table]]:
    """Files and their rows, in order; a few are read ahead, several at once. Raises as :func:`read_file`."""
    with ThreadPoolExecutor(_READERS, thread_name_prefix="records") as pool:
        ahead: deque[tuple[RecordFile, Future[pa.Table]]] = deque()
        for file in files:
            ahead.append((file, pool.submit(read_file, store, table, file, columns)))
            if len(ahead) > _READERS:
                first, rows = ahead.popleft()
                yield first, rows.result()
        for first, rows in ahead:
            yield first, rows.result()


def _within(since: datetime | None, until: datetime | None) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.dataset as ds

    for moment, later in ((since, True), (until, False)):
        if moment is not None:
            value = pa.scalar(moment, pa.timestamp("us", "UTC"))
            yield ds.field("time") >= value if later else ds.field("time") < value
