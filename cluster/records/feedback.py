"""Traffic with the feedback that it got, for monitoring and for training data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from cluster.records.reading import read
from cluster.records.schema import FEEDBACK, TRAFFIC
from cluster.storage import ObjectStore

if TYPE_CHECKING:
    import pyarrow as pa

_TRAFFIC = tuple(column.name for column in TRAFFIC.columns)
_RATINGS = ("request_id", "time", "score", "comment", "labels")


def ratings(
    store: ObjectStore, team: str, since: datetime | None = None, until: datetime | None = None
) -> pa.Table:
    """What a team's requests were rated: ``request_id`` (once each), ``rated_at``, ``score``, ``comment`` and
    ``labels``. Of several ratings of a request the last one counts.

    ``labels`` of ``jobs.preprocess`` read the stored table as it is (id_column: request_id, latest_by: time).
    It is all in memory: some million ratings. Raises UnavailableError or AccessError if storage does not
    answer.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    whole = FEEDBACK.arrow()
    none = pa.schema([whole.field(name) for name in _RATINGS]).empty_table()
    table = pa.concat_tables([none, *read(store, "feedback", _RATINGS, team=team, since=since, until=until)])
    table = table.append_column("row", pa.array(range(len(table)), pa.int64()))
    table = table.take(pc.sort_indices(table, [("time", "ascending"), ("row", "ascending")]))
    table = table.set_column(table.column_names.index("row"), "row", pa.array(range(len(table)), pa.int64()))
    last = table.group_by("request_id", use_threads=False).aggregate([("row", "max")])["row_max"]
    return (
        table.take(last)
        .drop_columns("row")
        .rename_columns(["request_id", "rated_at", "score", "comment", "labels"])
    )


def rated_traffic(
    store: ObjectStore,
    team: str,
    since: datetime | None = None,
    until: datetime | None = None,
    columns: Sequence[str] = _TRAFFIC,
) -> Iterator[pa.Table]:
    """A team's traffic in batches, each row with its rating: null where it got none.

    Only ratings by the same team are joined: nobody rates another's requests. ``since`` and ``until`` are the
    requests' times; ratings count whenever they came. A request id that a client used twice gets its rating
    twice. Raises UnavailableError or AccessError if storage does not answer.
    """
    rated = ratings(store, team, since)
    wanted = list(dict.fromkeys(["request_id", *columns]))
    for rows in read(store, "traffic", wanted, team=team, since=since, until=until):
        places = _places(rows["request_id"], rated["request_id"])
        for name in rated.column_names[1:]:
            rows = rows.append_column(name, rated[name].take(places))
        yield rows


def _places(ids: pa.ChunkedArray, known: pa.ChunkedArray) -> pa.Array:
    import pyarrow.compute as pc

    return pc.index_in(ids, value_set=known.combine_chunks()).combine_chunks()
