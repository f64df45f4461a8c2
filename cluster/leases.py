"""What tables of work that lasts have in common: leases, and terms and progress as JSON.

Whoever works on a row holds its lease. The lease's fencing token rises with every holder, and what a holder
writes is refused once its token is stale: a worker that was believed dead cannot undo what another did.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Integer,
    RowMapping,
    String,
    Table,
    Text,
    and_,
    select,
    update,
)

from cluster.database import Database, UtcDateTime
from cluster.errors import RefusedError, UnreadableError

logger = logging.getLogger(__name__)
R = TypeVar("R", bound=BaseModel)
T = TypeVar("T")
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
#: Rows that a list reads at a time: those that it leaves out do not count.
PAGE = {"yield_per": 100}


def columns() -> list[Column[Any]]:
    """The columns that every such table has."""
    return [
        Column("id", String(40), primary_key=True),
        Column("team", String(63), nullable=False),
        Column("created_at", UtcDateTime, nullable=False),
        Column("status", String(20), nullable=False),
        # As JSON: nothing is asked by what stands in them.
        Column("terms", Text, nullable=False),
        Column("progress", Text, nullable=False),
        Column("holder", String(200)),
        Column("token", Integer, nullable=False),
        Column("lease_expires_at", UtcDateTime, nullable=False),
    ]


class Leases:
    """The leases on one table's rows; every method raises UnavailableError if the database is away."""

    def __init__(self, database: Database, table: Table) -> None:
        self._database, self._table, self._of = database, table, table.c

    def claim(
        self, holder: str, lease_s: float, record: Callable[[RowMapping], R], *wanted: ColumnElement[bool]
    ) -> tuple[R, int] | None:
        """The oldest record of those that nobody holds, which is the holder's now, with its fencing token;
        None if there is none.

        One that cannot be read is told, and passed over until its lease is over.
        """
        while (row := self._take(holder, lease_s, *wanted)) is not None:
            try:
                return record(row), int(row["token"])
            except UnreadableError as error:
                logger.warning("Work is passed over: %s", error)
        return None

    def _take(self, holder: str, lease_s: float, *wanted: ColumnElement[bool]) -> RowMapping | None:
        while True:
            now = datetime.now(UTC)
            free = and_(*wanted, self._of.lease_expires_at < now)
            oldest = select(self._of.id).where(free).order_by(self._of.created_at).limit(1)
            with self._database.write() as connection:
                found = connection.execute(oldest).scalar_one_or_none()
                if found is None:
                    return None
                values = {
                    "holder": holder,
                    "token": self._of.token + 1,
                    "lease_expires_at": now + timedelta(seconds=lease_s),
                }
                take = update(self._table).where(self._of.id == found, free).values(values)
                row = connection.execute(take.returning(self._table)).mappings().one_or_none()
            if row is not None:  # Else another was quicker.
                return row

    def held(self, connection: Connection, row_id: str, token: int) -> RowMapping:
        """The row, for the rest of the transaction. Raises RefusedError if another holds it."""
        query = select(self._table).where(self._of.id == row_id).with_for_update()
        row = connection.execute(query).mappings().one()
        if row["token"] != token:
            raise RefusedError(f"{row_id} is {row['holder']}'s now.")
        return row

    def renew(self, row_id: str, token: int, lease_s: float) -> str:
        """Hold it for ``lease_s`` seconds more; its state. Raises RefusedError if another holds it."""
        return self.change(row_id, token, lease_expires_at=datetime.now(UTC) + timedelta(seconds=lease_s))

    def change(self, row_id: str, token: int, **values: object) -> str:
        """Give it other values; its state. Raises RefusedError if another holds it."""
        mine = self._of.id == row_id, self._of.token == token
        change = update(self._table).where(*mine).values(**values).returning(self._of.status)
        with self._database.write() as connection:
            status = connection.execute(change).scalar_one_or_none()
        if status is None:
            raise RefusedError(f"{row_id} is another's now.")
        return str(status)

    def release(self, row_id: str, token: int) -> None:
        """Let another take it at once; nothing happens if one has."""
        mine = self._of.id == row_id, self._of.token == token
        with self._database.write() as connection:
            connection.execute(update(self._table).where(*mine).values(lease_expires_at=LONG_AGO))

    def forget_key(self, row_id: str, terms: type[BaseModel], pseudonym: str) -> None:
        """Take the key's id and the client's own words from what was asked for."""
        mine = self._of.id == row_id
        with self._database.write() as connection:
            row = connection.execute(select(self._table).where(mine).with_for_update()).mappings().one()
            asked = terms.model_validate_json(row["terms"])
            asked = asked.model_copy(update={"key_id": pseudonym, "metadata": {}})
            connection.execute(update(self._table).where(mine).values(terms=asked.model_dump_json()))


def read(row: RowMapping, terms: type[BaseModel], progress: type[BaseModel], whole: type[R]) -> R:
    """The record that a row holds. Raises UnreadableError."""
    try:
        parts = terms.model_validate_json(row["terms"]), progress.model_validate_json(row["progress"])
        return whole.model_validate(parts[0].model_dump() | parts[1].model_dump())
    except ValidationError:
        raise UnreadableError(
            f"The record of {row['id']} cannot be read: it is damaged, or a newer Manta wrote it."
        ) from None


def readable(items: Iterable[T], read: Callable[[T], R]) -> Iterator[R]:
    """What those items hold; one that cannot be read is told and left out."""
    for item in items:
        try:
            yield read(item)
        except UnreadableError as error:
            logger.warning("A list leaves something out: %s", error)
