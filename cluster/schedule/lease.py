"""The lease by which one scheduler of several leads.

As with runs (cluster/runs.py) its fencing token rises with every holder, and what a holder writes is
refused once its token is stale. Times are this process's clock in UTC.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, insert, select, update
from sqlalchemy.exc import IntegrityError

from cluster.contracts import Lease
from cluster.database import Database, UtcDateTime
from cluster.errors import RefusedError

METADATA = MetaData()

_LEASES = Table(
    "leases",
    METADATA,
    Column("name", String(63), primary_key=True),
    Column("holder", String(200), nullable=False),
    Column("token", Integer, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
)


class LeaderLease:
    """The right to lead, of which a database holds one by each name.

    Every method raises UnavailableError if the database does not answer.
    """

    def __init__(self, database: Database, name: str) -> None:
        self._database, self._name = database, name
        self._mine = _LEASES.c.name == name

    def acquire(self, holder: str, lease_s: float) -> Lease | None:
        """Take the lease if nobody holds it or its holder has not renewed it; None if another does."""
        now = datetime.now(UTC)
        values = {"holder": holder, "expires_at": now + timedelta(seconds=lease_s)}
        takeover = (
            update(_LEASES)
            .where(self._mine, _LEASES.c.expires_at < now)
            .values(token=_LEASES.c.token + 1, **values)
            .returning(_LEASES)
        )
        with self._database.write() as connection:
            row = connection.execute(takeover).mappings().one_or_none()
        if row is not None:
            return Lease(holder=row["holder"], token=row["token"], expires_at=row["expires_at"])
        try:
            with self._database.write() as connection:
                connection.execute(insert(_LEASES).values(name=self._name, token=1, **values))
        except IntegrityError:  # It is there, and held.
            return None
        return Lease(token=1, **values)

    def renew(self, token: int, lease_s: float) -> bool:
        """Hold it for ``lease_s`` seconds from now; False if another has taken it."""
        expires_at = datetime.now(UTC) + timedelta(seconds=lease_s)
        change = update(_LEASES).where(self._mine, _LEASES.c.token == token).values(expires_at=expires_at)
        with self._database.write() as connection:
            return connection.execute(change).rowcount == 1

    def release(self, token: int) -> None:
        """Let another take it at once; nothing happens if one has."""
        change = update(_LEASES).where(self._mine, _LEASES.c.token == token)
        with self._database.write() as connection:
            connection.execute(change.values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))

    def holder(self) -> str | None:
        """Who holds it now."""
        with self._database.read() as connection:
            held = self._mine & (_LEASES.c.expires_at >= datetime.now(UTC))
            return connection.scalar(select(_LEASES.c.holder).where(held))

    def fence(self, connection: Connection, token: int) -> None:
        """Let what this transaction writes stand only if ``token`` still leads when it commits.

        Raises RefusedError.
        """
        # PostgreSQL locks the row until then; on SQLite a transaction that writes has the database to itself.
        row = connection.execute(select(_LEASES).where(self._mine).with_for_update()).mappings().one_or_none()
        if row is None or row["token"] != token:
            holder = "nobody" if row is None else f"{row['holder']} with token {row['token']}"
            raise RefusedError(
                f"This scheduler does not lead any more: its token is {token}, {holder} leads."
            )
