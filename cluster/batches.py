"""Batches on record: SQL is the truth of who asked for what, how far it is, and who works on it.

Whoever works on a batch holds its lease (:mod:`cluster.leases`). A record that cannot be read is missing from
lists.
"""

from __future__ import annotations

import builtins
import secrets
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice

from sqlalchemy import Index, MetaData, RowMapping, Table, and_, insert, or_, select, update

from cluster.contracts.batches import ENDED, BatchProgress, BatchRecord, BatchStatus, BatchTerms
from cluster.database import Database
from cluster.errors import NotFoundError, RefusedError
from cluster.files import confirm, printable
from cluster.leases import LONG_AGO, PAGE, Leases, columns, read, readable

_METADATA = MetaData()

_BATCHES = Table("batches", _METADATA, *columns())
Index("batches_by_team", _BATCHES.c.team, _BATCHES.c.created_at, _BATCHES.c.id)
Index("batches_by_status", _BATCHES.c.status, _BATCHES.c.created_at)

#: States from which a client may still cancel.
_CANCELLABLE = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)


def new_batch_id() -> str:
    """An id that no batch had."""
    return f"batch_{secrets.token_hex(12)}"


class BatchRepository:
    """All batches in one database. Safe among threads and processes.

    :param url: SQLAlchemy URL, as ``settings.database_url`` gives it.

    The table is made at first use. Raises UsageError for a wrong URL; every method raises UnavailableError if
    the database does not answer.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        self._database.create(_METADATA)
        self._leases = Leases(self._database, _BATCHES)

    def create(self, terms: BatchTerms) -> BatchRecord:
        """Put a batch on record; whoever looks for work finds it."""
        progress = BatchProgress(reached={BatchStatus.VALIDATING: terms.created_at})
        values = {
            "id": terms.id,
            "team": terms.team,
            "created_at": terms.created_at,
            "terms": terms.model_dump_json(),
            **_columns(progress),
            "token": 0,
            "lease_expires_at": LONG_AGO,
        }
        with self._database.write() as connection:
            connection.execute(insert(_BATCHES).values(values))
        return self.get(terms.id, terms.team)

    def get(self, batch_id: str, team: str) -> BatchRecord:
        """One batch of that team. Raises NotFoundError."""
        query = select(_BATCHES).where(_BATCHES.c.id == printable(batch_id), _BATCHES.c.team == team)
        with self._database.read() as connection:
            row = connection.execute(query).mappings().one_or_none()
        if row is None:
            raise NotFoundError(f"No batch found with id '{batch_id}'.")
        return _record(row)

    def list(self, team: str, *, after: str | None = None, limit: int = 20) -> builtins.list[BatchRecord]:
        """That team's batches, the newest first, at most ``limit``.

        :param after: only batches behind this one. Raises NotFoundError if it is not there.
        """
        made, name = _BATCHES.c.created_at, _BATCHES.c.id
        query = select(_BATCHES).where(_BATCHES.c.team == team)
        if after is not None:
            then = self.get(after, team).created_at
            query = query.where(or_(made < then, and_(made == then, name < after)))
        with self._database.read() as connection:
            ordered = query.order_by(made.desc(), name.desc()).execution_options(**PAGE)
            rows = connection.execute(ordered).mappings()
            return builtins.list(islice(readable(rows, _record), limit))

    def all(self) -> Iterator[BatchRecord]:
        """Batches of all teams, read while they are gone through: they are many, and each has a policy.

        Raises UnreadableError if one cannot be read.
        """
        with self._database.read() as connection:
            rows = connection.execute(select(_BATCHES).execution_options(**PAGE)).mappings()
            yield from map(_record, rows)

    def forget_key(self, batch_id: str, pseudonym: str) -> None:
        """Take the key's id and the client's own words from the record of a batch that has ended."""
        self._leases.forget_key(batch_id, BatchTerms, pseudonym)

    def ended(self, since: datetime) -> builtins.list[BatchRecord]:
        """Batches of all teams that were made since then and have ended."""
        over = _BATCHES.c.created_at >= since, _BATCHES.c.status.in_(ENDED)
        with self._database.read() as connection:
            rows = connection.execute(select(_BATCHES).where(*over)).mappings()
            return builtins.list(readable(rows, _record))

    def cancel(self, batch_id: str, team: str) -> BatchRecord:
        """Ask that no more rows are asked. Raises NotFoundError, or RefusedError if it has ended."""
        with self._database.write() as connection:
            mine = (_BATCHES.c.id == printable(batch_id), _BATCHES.c.team == team)
            row = connection.execute(select(_BATCHES).where(*mine).with_for_update()).mappings().one_or_none()
            if row is None:
                raise NotFoundError(f"No batch found with id '{batch_id}'.")
            record = _record(row)
            if record.status in _CANCELLABLE:
                progress = entered(record, BatchStatus.CANCELLING)
                connection.execute(update(_BATCHES).where(*mine).values(**_columns(progress)))
            elif record.status is not BatchStatus.CANCELLING:
                raise RefusedError(f"Cannot cancel a batch with status '{record.status}'.")
        return self.get(batch_id, team)

    def claim(
        self, holder: str, lease_s: float, without: Iterable[str] = ()
    ) -> tuple[BatchRecord, int] | None:
        """The oldest batch that has not ended and that nobody works on, with its fencing token.

        :param without: batches that are not wanted.
        """
        wanted = _BATCHES.c.status.not_in(ENDED), _BATCHES.c.id.not_in(builtins.list(without))
        return self._leases.claim(holder, lease_s, _record, *wanted)

    def report(self, batch_id: str, token: int, progress: BatchProgress, lease_s: float) -> BatchRecord:
        """Write down how far it is, and hold it for ``lease_s`` seconds more.

        A client's wish to cancel stays: only its end, or its finalizing, takes its place. With the end its
        files are there, which their maker announced: those of a worker that is too late never are. Raises
        RefusedError if another holds it, NotFoundError if such a file was given up.
        """
        mine = _BATCHES.c.id == batch_id
        with self._database.write() as connection:
            known = _record(self._leases.held(connection, batch_id, token))
            if known.status is BatchStatus.CANCELLING and progress.status in _CANCELLABLE:
                progress = progress.model_copy(update={"status": known.status, "reached": known.reached})
            over = progress.status in ENDED
            for made in (progress.output_file_id, progress.error_file_id):
                if over and made is not None:
                    confirm(connection, made)
            expires = LONG_AGO if over else datetime.now(UTC) + timedelta(seconds=lease_s)
            values = {**_columns(progress), "lease_expires_at": expires}
            changed = update(_BATCHES).where(mine, _BATCHES.c.token == token).values(values)
            connection.execute(changed)
            row = connection.execute(select(_BATCHES).where(mine)).mappings().one()
        return _record(row)

    def renew(self, batch_id: str, token: int, lease_s: float) -> BatchStatus:
        """Hold it for ``lease_s`` seconds more; returns its state.

        Raises RefusedError if another holds it.
        """
        return BatchStatus(self._leases.renew(batch_id, token, lease_s))

    def release(self, batch_id: str, token: int) -> None:
        """Let another take it at once; nothing happens if one has."""
        self._leases.release(batch_id, token)


def entered(progress: BatchProgress, status: BatchStatus, **more: object) -> BatchProgress:
    """``progress`` in a new state, reached now."""
    reached = {**progress.reached, status: datetime.now(UTC)}
    update = {"status": status, "reached": reached, **more}
    kept = {name: getattr(progress, name) for name in BatchProgress.model_fields}
    return BatchProgress.model_validate(kept | update)


def _columns(progress: BatchProgress) -> dict[str, str]:
    body = progress.model_dump_json(include=set(BatchProgress.model_fields))
    return {"status": progress.status.value, "progress": body}


def _record(row: RowMapping) -> BatchRecord:
    return read(row, BatchTerms, BatchProgress, BatchRecord)
