"""Where records stand: ``<team>/records/<table>/date=<day>/<writer>-<sequence>-<part>.parquet``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from cluster.records.schema import TableName
from cluster.storage import ObjectStore

#: In place of the team, for requests whose key was not accepted. No team can be called so.
UNKNOWN_TEAM = "_unknown"
_FILE = re.compile(r"date=(\d{4}-\d\d-\d\d)/[^/]+\.parquet")


@dataclass(frozen=True)
class RecordFile:
    """One file of records."""

    key: str
    team: str
    day: date
    bytes: int


def folder(team: str, table: TableName) -> str:
    """The prefix of a team's table."""
    return f"{team}/records/{table}/"


def file_key(team: str, table: TableName, day: str, name: str) -> str:
    """The key of one file.

    :param day: YYYY-MM-DD, UTC.
    """
    return f"{folder(team, table)}date={day}/{name}.parquet"


def record_files(
    store: ObjectStore,
    table: TableName,
    team: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Iterator[RecordFile]:
    """The files of a table, of one team or of all, whose day is within the times; by team and day.

    Raises UnavailableError or AccessError if storage does not answer.
    """
    since, until = (None if moment is None else moment.astimezone(UTC) for moment in (since, until))
    for name in [team] if team else list(store.folders("")):
        prefix = folder(name, table)
        # From the day before on: servers differ in whether a folder comes after its own bare name.
        after = f"{prefix}date={since - timedelta(days=1):%Y-%m-%d}" if since else ""
        for item in store.list(prefix, after=after):
            found = _FILE.fullmatch(item.key, len(prefix))
            if found is None:
                continue
            day = date.fromisoformat(found[1])
            if until is not None and day > until.date():
                break
            if since is None or day >= since.date():
                yield RecordFile(item.key, name, day, item.bytes)
