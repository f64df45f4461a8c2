"""Files on record. SQL says which there are and whose; their bytes are objects in the bucket.

A file is on record as coming before its first byte is stored, and as going before its object is deleted: so
whatever a crash leaves behind is known, and :func:`sweep` ends it.
"""

from __future__ import annotations

import builtins
import secrets
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Index,
    MetaData,
    RowMapping,
    String,
    Table,
    and_,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from cluster.contracts.files import FilePurpose, FileRecord
from cluster.database import Database, UtcDateTime
from cluster.errors import NotFoundError, RefusedError
from cluster.storage import ObjectStore

_METADATA = MetaData()

_FILES = Table(
    "files",
    _METADATA,
    Column("id", String(40), primary_key=True),
    Column("team", String(63), nullable=False),
    Column("tenant", String(63), nullable=False),
    Column("key_id", String(200), nullable=False),
    Column("purpose", String(20), nullable=False),
    Column("filename", String(255), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("lines", BigInteger, nullable=False),
    Column("endpoint", String(63)),
    Column("model", String(256)),
    Column("sha256", String(64), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("state", String(10), nullable=False),
)
Index("files_by_team", _FILES.c.team, _FILES.c.created_at, _FILES.c.id)
Index("files_by_expiry", _FILES.c.expires_at)

_COMING, _READY, _GOING = "coming", "ready", "going"
#: After so long a file that is still coming never will be there.
_LONGEST_UPLOAD = timedelta(days=1)
#: Files of one statement.
_AT_ONCE = 500


def new_file_id() -> str:
    """An id that no file had."""
    return f"file-{secrets.token_hex(12)}"


class FileRepository:
    """All files in one database. Safe among threads and processes.

    :param url: SQLAlchemy URL, as ``settings.database_url`` gives it.

    The table is made at first use. Raises UsageError for a wrong URL; every method raises UnavailableError if
    the database does not answer. Files that have expired are never shown.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        self._database.create(_METADATA)

    def announce(self, record: FileRecord, quota: int | None = None) -> None:
        """Put a file on record whose bytes are going to be stored now; nobody sees it yet.

        :param quota: most bytes that its team's files may have together, those that are coming too.

        Raises RefusedError if it is beyond that.
        """
        with self._database.exclusive(f"files of {record.team}"), self._database.write() as connection:
            if quota is not None:
                mine = _FILES.c.team == record.team
                query = select(func.coalesce(func.sum(_FILES.c.bytes), 0)).where(mine)
                used = int(connection.execute(query).scalar_one())
                if used + record.bytes > quota:
                    raise RefusedError(
                        f"Team {record.team} may store {quota} bytes of files and has {used}: this file's "
                        f"{record.bytes} are too many; delete files that are not needed."
                    )
            connection.execute(insert(_FILES).values(**record.model_dump(), state=_COMING))

    def confirm(self, file_id: str) -> None:
        """Its bytes are stored: now it is there. Raises NotFoundError if it was given up meanwhile."""
        with self._database.write() as connection:
            confirm(connection, file_id)

    def get(self, file_id: str, team: str) -> FileRecord:
        """One file of that team. Raises NotFoundError."""
        query = select(_FILES).where(_FILES.c.id == printable(file_id), *_shown(team))
        with self._database.read() as connection:
            row = connection.execute(query).mappings().one_or_none()
        if row is None:
            raise NotFoundError(f"No such File object: {file_id}")
        return _record(row)

    def list(
        self,
        team: str,
        purpose: FilePurpose | None = None,
        *,
        after: str | None = None,
        limit: int | None = 10_000,
        newest_first: bool = True,
    ) -> builtins.list[FileRecord]:
        """Files of that team in the order of their making, at most ``limit``; all for None.

        :param after: only files behind this one. Raises NotFoundError if it is not there.
        """
        query = select(_FILES).where(*_shown(team))
        if purpose is not None:
            query = query.where(_FILES.c.purpose == purpose)
        made, name = _FILES.c.created_at, _FILES.c.id
        if after is not None:
            last = self.get(after, team)
            then = last.created_at
            behind = (made < then, name < after) if newest_first else (made > then, name > after)
            query = query.where(or_(behind[0], and_(made == then, behind[1])))
        order = (made.desc(), name.desc()) if newest_first else (made, name)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(*order).limit(limit)).mappings()
            return [_record(row) for row in rows]

    def delete(self, file_id: str, team: str, store: ObjectStore) -> None:
        """Delete a file of that team. Raises NotFoundError."""
        record = self.get(file_id, team)
        self._end([record], store)

    def give_up(self, record: FileRecord, store: ObjectStore) -> None:
        """Its bytes could not be stored: it never was."""
        self._end([record], store)

    def key_ids(self) -> set[str]:
        """The keys that files of all teams came with."""
        with self._database.read() as connection:
            return set(connection.execute(select(_FILES.c.key_id).distinct()).scalars())

    def made_by(self, key_ids: Collection[str], until: datetime) -> builtins.list[FileRecord]:
        """Files of all teams that came with those keys until then, be they expired or still coming."""
        mine = _FILES.c.key_id.in_(key_ids), _FILES.c.created_at <= until
        with self._database.read() as connection:
            return [_record(row) for row in connection.execute(select(_FILES).where(*mine)).mappings()]

    def erase(self, records: Sequence[FileRecord], store: ObjectStore) -> None:
        """Delete files, whatever their state; one that was still coming never will be there."""
        for start in range(0, len(records), _AT_ONCE):
            self._end(records[start : start + _AT_ONCE], store)

    def sweep(self, store: ObjectStore, now: datetime | None = None) -> int:
        """Delete files whose time is over, and what crashes left of others; returns how many.

        Raises UnavailableError or AccessError if the database or storage does not answer.
        """
        now = now or datetime.now(UTC)
        never = and_(_FILES.c.state == _COMING, _FILES.c.created_at <= now - _LONGEST_UPLOAD)
        dead = or_(_FILES.c.expires_at <= now, _FILES.c.state == _GOING, never)
        with self._database.read() as connection:
            rows = connection.execute(select(_FILES).where(dead)).mappings()
            records = [_record(row) for row in rows]
        self.erase(records, store)
        return len(records)

    def _end(self, records: Sequence[FileRecord], store: ObjectStore) -> None:
        mine = _FILES.c.id.in_([record.id for record in records])
        with self._database.write() as connection:
            connection.execute(update(_FILES).where(mine).values(state=_GOING))
        store.delete([record.key for record in records])
        with self._database.write() as connection:
            connection.execute(delete(_FILES).where(mine))


def printable(name: str) -> str:
    """What a client asks for, without what PostgreSQL takes in no text; no name has it."""
    return name if name.isprintable() else ""


def confirm(connection: Connection, file_id: str) -> None:
    """:meth:`FileRepository.confirm` as a part of another transaction."""
    coming = _FILES.c.id == file_id, _FILES.c.state == _COMING
    if not connection.execute(update(_FILES).where(*coming).values(state=_READY)).rowcount:
        raise NotFoundError(f"No such File object: {file_id}")


def _shown(team: str) -> tuple[ColumnElement[bool], ...]:
    now = datetime.now(UTC)
    lives = or_(_FILES.c.expires_at.is_(None), _FILES.c.expires_at > now)
    return _FILES.c.team == team, _FILES.c.state == _READY, lives


def _record(row: RowMapping) -> FileRecord:
    return FileRecord(**{name: row[name] for name in FileRecord.model_fields})
