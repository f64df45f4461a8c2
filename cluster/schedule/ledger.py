"""Every tick on record in SQL: the truth about what was run, what was not, and why.

A tick's row is written as *pending* before its job is submitted and settled after. Its submission id follows
from schedule and time, so that whoever finds a pending row may submit it again: Ray refuses a second job of
that id, which tells that the first one got there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum

from pydantic import Field
from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Connection,
    MetaData,
    RowMapping,
    String,
    Table,
    Text,
    delete,
    func,
    insert,
    select,
    update,
)

from cluster.contracts.base import Contract
from cluster.database import Database, UtcDateTime
from cluster.schedule import lease

_METADATA = MetaData()

_SCHEDULES = Table(
    "schedules",
    _METADATA,
    Column("name", String(63), primary_key=True),
    Column("definition", Text, nullable=False),
    Column("since", UtcDateTime, nullable=False),
    Column("paused", Boolean, nullable=False),
)

_TICKS = Table(
    "schedule_ticks",
    _METADATA,
    Column("schedule", String(63), primary_key=True),
    Column("tick", UtcDateTime, primary_key=True),
    Column("submission_id", String(200), nullable=False, unique=True),
    Column("manual", Boolean, nullable=False),
    Column("state", String(20), nullable=False),
    Column("message", Text),
    Column("changed_at", UtcDateTime, nullable=False),
)


class TickState(StrEnum):
    """What became of a tick."""

    PENDING = "pending"
    SUBMITTED = "submitted"
    SKIPPED = "skipped"
    FAILED = "failed"


class Tick(Contract):
    """One tick of one schedule."""

    schedule: str = Field(description="The schedule's name.")
    tick: datetime = Field(description="When it was due, in UTC.")
    submission_id: str = Field(description="Ray's submission id: sched-<schedule>-<tick>.")
    manual: bool = Field(False, description="True if a person asked for it, not the clock.")
    state: TickState = Field(TickState.PENDING, description="What became of it.")
    message: str | None = Field(None, description="Why it was skipped, failed, or waits.")


class Standing(Contract):
    """Where a schedule stands."""

    paused: bool = Field(description="True while it must not run.")
    since: datetime = Field(description="UTC time at which it began: the clock's ticks until then are past.")
    after: datetime = Field(description="UTC time up to which every tick is on record, or does not count.")


def tick_of(schedule: str, moment: datetime, *, manual: bool = False) -> Tick:
    """A pending tick with its submission id.

    Not ``<verb>-<fingerprint>-<attempt>`` as for runs: the fingerprint is a hash of what the job reads when
    it runs, which nobody knows before, and the id must follow from what the scheduler knows. The run record
    points back with its log address.
    """
    form = "%Y%m%dT%H%M%S.%fZ" if moment.microsecond else "%Y%m%dT%H%M%SZ"
    submission_id = f"sched-{schedule}-{moment.astimezone(UTC).strftime(form)}"
    return Tick(schedule=schedule, tick=moment, submission_id=submission_id, manual=manual)


class Ledger:
    """All schedules' ticks in one database. Safe among threads and processes.

    :param url: SQLAlchemy URL, as ``settings.database_url`` gives it.

    A leader's writes carry its fencing token, and raise RefusedError once another leads. Every method
    raises UnavailableError if the database does not answer.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        self._database.create(lease.METADATA)
        self._database.create(_METADATA)
        self.lease = lease.LeaderLease(self._database, "scheduler")

    def adopt(self, definitions: Mapping[str, str], now: datetime, token: int) -> None:
        """Know exactly these schedules; what is new or has changed begins ``now``, its waiting ticks past."""
        with self._write(token) as connection:
            rows = {row["name"]: row for row in connection.execute(select(_SCHEDULES)).mappings()}
            gone = set(rows) - set(definitions)
            connection.execute(delete(_SCHEDULES).where(_SCHEDULES.c.name.in_(gone)))
            for name, definition in definitions.items():
                if name not in rows or rows[name]["definition"] != definition:
                    paused = name in rows and rows[name]["paused"]
                    self._put(connection, name, definition, now, paused=paused)

    def set_paused(self, name: str, definition: str, now: datetime, *, paused: bool) -> None:
        """Pause or resume: both begin ``now``. What waited before or ticked meanwhile does not count."""
        with self._write() as connection:
            row = (
                connection.execute(select(_SCHEDULES).where(_SCHEDULES.c.name == name))
                .mappings()
                .one_or_none()
            )
            if row is None or row["paused"] != paused:
                self._put(connection, name, definition, now, paused=paused)

    def standing(self, name: str) -> Standing | None:
        """Where a schedule stands; None if no scheduler has seen it yet."""
        last = select(func.max(_TICKS.c.tick)).where(_TICKS.c.schedule == name, ~_TICKS.c.manual)
        with self._database.read() as connection:
            row = (
                connection.execute(select(_SCHEDULES).where(_SCHEDULES.c.name == name))
                .mappings()
                .one_or_none()
            )
            if row is None:
                return None
            tick: datetime | None = connection.scalar(last)
        since = row["since"]
        return Standing(paused=row["paused"], since=since, after=max(since, tick or since))

    def record(self, ticks: Sequence[Tick], token: int | None = None) -> None:
        """Write new ticks down. A leader names its token."""
        now = datetime.now(UTC)
        with self._write(token) as connection:
            for tick in ticks:
                connection.execute(insert(_TICKS).values(**tick.model_dump(), changed_at=now))

    def settle(self, tick: Tick, state: TickState, message: str | None, token: int | None = None) -> bool:
        """Write down what became of a pending tick, or why it waits; False if that was known.

        Of two that submit one tick (a person and the leader) one may fail: that its job is there has the last
        word.
        """
        failed = (_TICKS.c.state == TickState.FAILED) & (state == TickState.SUBMITTED)
        same = (_TICKS.c.state == state) & (func.coalesce(_TICKS.c.message, "") == (message or ""))
        change = (
            update(_TICKS)
            .where(_at(tick), (_TICKS.c.state == TickState.PENDING) | failed, ~same)
            .values(state=state, message=message, changed_at=datetime.now(UTC))
        )
        with self._write(token) as connection:
            return connection.execute(change).rowcount == 1

    def pending(self, name: str) -> list[Tick]:
        """Ticks whose job is not known to be submitted, oldest first."""
        query = select(_TICKS).where(_TICKS.c.schedule == name, _TICKS.c.state == TickState.PENDING)
        with self._database.read() as connection:
            return [_tick(row) for row in connection.execute(query.order_by(_TICKS.c.tick)).mappings()]

    def former(self, tick: Tick) -> list[Tick]:
        """The ticks before this one whose jobs may run, newest first.

        The newest of the clock that was submitted, which waited for those before it, and all by hand since.
        """
        before = (
            (_TICKS.c.schedule == tick.schedule)
            & (_TICKS.c.tick < tick.tick)
            & (_TICKS.c.state == TickState.SUBMITTED)
        )
        with self._database.read() as connection:
            newest = connection.scalar(select(func.max(_TICKS.c.tick)).where(before, ~_TICKS.c.manual))
            recent = before if newest is None else before & (_TICKS.c.tick >= newest)
            query = select(_TICKS).where(recent).order_by(_TICKS.c.tick.desc())
            return [_tick(row) for row in connection.execute(query).mappings()]

    def history(self, name: str, limit: int) -> list[Tick]:
        """A schedule's ticks, newest first."""
        query = select(_TICKS).where(_TICKS.c.schedule == name).order_by(_TICKS.c.tick.desc()).limit(limit)
        with self._database.read() as connection:
            return [_tick(row) for row in connection.execute(query).mappings()]

    def _put(
        self, connection: Connection, name: str, definition: str, now: datetime, *, paused: bool
    ) -> None:
        connection.execute(delete(_SCHEDULES).where(_SCHEDULES.c.name == name))
        values = {"name": name, "definition": definition, "since": now, "paused": paused}
        connection.execute(insert(_SCHEDULES).values(**values))

    @contextmanager
    def _write(self, token: int | None = None) -> Iterator[Connection]:
        with self._database.write() as connection:
            if token is not None:
                self.lease.fence(connection, token)
            yield connection


def _at(tick: Tick) -> ColumnElement[bool]:
    return (_TICKS.c.schedule == tick.schedule) & (_TICKS.c.tick == tick.tick)


def _tick(row: RowMapping) -> Tick:
    return Tick(**{name: row[name] for name in Tick.model_fields})
