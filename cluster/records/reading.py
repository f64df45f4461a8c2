"""Read records from storage, as streams of batches: never a whole table in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from cluster.records.layout import record_files
from cluster.records.schema import TABLES, TableName
from cluster.storage import ObjectStore
from cluster.storage.faults import explain_arrow

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 16_384


def batches(
    store: ObjectStore,
    table: TableName,
    columns: Sequence[str],
    *,
    team: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    where: Any = None,
) -> Iterator[pa.RecordBatch]:
    """Batches of a table's rows, with those columns; a column that a file is too old for is null.

    :param since: time of the first row.
    :param until: time behind the last row.
    :param where: a pyarrow expression over the table's columns.

    Raises UnavailableError or AccessError if storage does not answer.
    """
    import pyarrow.dataset as ds

    files = [f"{store.bucket}/{file.key}" for file in record_files(store, table, team, since, until)]
    if not files:
        return
    for limit in _within(since, until):
        where = limit if where is None else where & limit
    found = ds.dataset(
        files, schema=TABLES[table].arrow(), format="parquet", filesystem=store.filesystem()
    ).scanner(columns=list(columns), filter=where, batch_size=_ROWS, batch_readahead=2, fragment_readahead=4)
    try:
        yield from found.to_batches()
    except OSError as error:
        if told := explain_arrow(error, store.endpoint):
            raise told from None
        raise


def _within(since: datetime | None, until: datetime | None) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.dataset as ds

    for moment, later in ((since, True), (until, False)):
        if moment is not None:
            value = pa.scalar(moment, pa.timestamp("us", "UTC"))
            yield ds.field("time") >= value if later else ds.field("time") < value
