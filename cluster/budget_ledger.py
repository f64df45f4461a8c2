"""The ledger of budgets: how much money of each period is spent, and how much gateways hold to spend.

SQL is the truth, and never in a request's way: a gateway replica takes a *lease*, money that it may spend
without asking, and tells in the background what it has spent. A lease is one row for each replica, key and
period. All that a replica says is a total since the period began, so what is said twice counts once.

What counts against a budget is, for each lease, what was granted or what was spent, whichever is more. So a
replica that dies keeps its lease's money from all others until the period is over: nobody can know what it
spent of it. One that was only cut off comes back, tells, and gives back what it does not need. A holder's
name is a replica's own and never another's, so no second one writes to its row; a report that comes late
takes nothing back.

Amounts are stored as whole billionths of the settings' currency: their sums are exact, and SQLite has no
decimals. A replica's total is rounded up to the next billionth.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    MetaData,
    String,
    Table,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from cluster.budgets import BudgetUse, Claim, budgets_of, next_period, period
from cluster.contracts import KeyLimits
from cluster.database import Database, UtcDateTime

#: Leases that nobody told of for so long go; what counted in their period stays.
KEPT = timedelta(days=93)

_METADATA = MetaData()

#: What counts of each period; its row is what replicas that ask at once queue for.
_PERIODS = Table(
    "budget_periods",
    _METADATA,
    Column("key_id", String(63), primary_key=True),
    Column("period", String(10), primary_key=True),
    Column("committed", BigInteger, nullable=False),
)
_LEASES = Table(
    "budget_leases",
    _METADATA,
    Column("key_id", String(63), primary_key=True),
    Column("period", String(10), primary_key=True),
    Column("holder", String(63), primary_key=True),
    Column("granted", BigInteger, nullable=False),
    Column("spent", BigInteger, nullable=False),
    Column("told_at", UtcDateTime, nullable=False),
)


class BudgetLedger:
    """What is spent and held of all budgets, in one database. Safe among threads and processes.

    :param url: SQLAlchemy URL, as ``settings.database_url`` gives it.

    Tables are made at first use. Raises UsageError for a wrong URL; every method raises UnavailableError if
    the database does not answer.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        self._database.create(_METADATA)

    def settle(self, holder: str, claims: Sequence[Claim]) -> list[Decimal]:
        """Take note of what ``holder`` has spent, and grant what budgets have left for it.

        :return: for each claim what the holder now holds in all, spent money included; less than it wanted
            if the budget has no more.
        """
        granted: dict[tuple[str, str], Decimal] = {}
        with self._database.write() as connection:
            # In one order for all, so that no two wait for each other.
            for claim in sorted(claims, key=lambda claim: (claim.key_id, claim.period)):
                granted[claim.key_id, claim.period] = _settle(connection, holder, claim)
        return [granted[claim.key_id, claim.period] for claim in claims]

    def use(self, key_id: str, limits: KeyLimits, now: datetime | None = None) -> list[BudgetUse]:
        """The budgets of one key as far as replicas have told: a few seconds old."""
        now = now or datetime.now(UTC)
        found = []
        with self._database.read() as connection:
            for span, budget in budgets_of(limits):
                name = period(span, now)
                mine = (_LEASES.c.key_id == key_id) & (_LEASES.c.period == name)
                spent = connection.scalar(select(func.coalesce(func.sum(_LEASES.c.spent), 0)).where(mine))
                committed = connection.scalar(select(_PERIODS.c.committed).where(_of(key_id, name))) or 0
                told = int(spent or 0)
                found.append(
                    BudgetUse(
                        span=span,
                        period=name,
                        budget=budget,
                        spent=_money(told),
                        reserved=_money(max(0, committed - told)),
                        resets_at=next_period(span, now),
                    )
                )
        return found


def _settle(connection: Connection, holder: str, claim: Claim) -> Decimal:
    key = {"key_id": claim.key_id, "period": claim.period}
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    new = dialect.insert(_PERIODS).values(**key, committed=0).on_conflict_do_nothing()
    now = datetime.now(UTC)
    if connection.execute(new).rowcount:  # A new period of this key: its replicas of long ago are no news.
        old = (_LEASES.c.key_id == claim.key_id) & (_LEASES.c.told_at < now - KEPT)
        connection.execute(delete(_LEASES).where(old))
    # PostgreSQL locks the row until the end; on SQLite a transaction that writes is alone anyway.
    committed = connection.execute(
        select(_PERIODS.c.committed).where(_of(claim.key_id, claim.period)).with_for_update()
    ).scalar_one()
    mine = (
        (_LEASES.c.key_id == claim.key_id) & (_LEASES.c.period == claim.period) & (_LEASES.c.holder == holder)
    )
    lease = connection.execute(select(_LEASES.c.granted, _LEASES.c.spent).where(mine)).one_or_none()
    counted = 0 if lease is None else max(lease.granted, lease.spent)
    spent = max(_units(claim.spent, ROUND_CEILING), 0 if lease is None else lease.spent)
    left = max(0, _units(claim.budget, ROUND_FLOOR) - (committed - counted))
    granted = min(_units(claim.wanted, ROUND_CEILING), left)
    values = {"granted": granted, "spent": spent, "told_at": now}
    if lease is None:
        connection.execute(insert(_LEASES).values(**key, holder=holder, **values))
    else:
        connection.execute(update(_LEASES).where(mine).values(**values))
    total = committed - counted + max(granted, spent)
    connection.execute(update(_PERIODS).where(_of(claim.key_id, claim.period)).values(committed=total))
    return _money(granted)


def _of(key_id: str, name: str) -> ColumnElement[bool]:
    return (_PERIODS.c.key_id == key_id) & (_PERIODS.c.period == name)


def _units(amount: Decimal, rounding: str) -> int:
    return int(amount.scaleb(9).to_integral_value(rounding=rounding))


def _money(units: int) -> Decimal:
    return Decimal(units).scaleb(-9)
