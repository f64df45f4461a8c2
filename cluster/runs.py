"""Run records: what ran, who holds it now, how it ended. The truth about runs; Ray's memory is not.

A run belongs to whoever holds its lease, and the lease's fencing token rises with every holder: a
process that was believed dead and comes back holds a stale token, and is told so instead of being obeyed.
Times are this process's clock in UTC: leases must be longer than the clocks of a cluster differ.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    RowMapping,
    String,
    Table,
    Text,
    UniqueConstraint,
    func,
    insert,
    select,
    update,
)

from cluster.contracts import Lease, Principal, RunRecord, RunState
from cluster.database import Database, UtcDateTime
from cluster.errors import NotFoundError, RefusedError

_METADATA = MetaData()

_RUNS = Table(
    "runs",
    _METADATA,
    Column("id", String(200), primary_key=True),
    Column("verb", String(63), nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("key_id", String(200), nullable=False),
    Column("team", String(63), nullable=False),
    Column("tenant", String(63), nullable=False),
    Column("state", String(20), nullable=False),
    Column("holder", String(200), nullable=False),
    Column("token", Integer, nullable=False),
    Column("lease_s", Float, nullable=False),
    Column("lease_expires_at", UtcDateTime, nullable=False),
    Column("artifact", Text),
    Column("message", Text),
    Column("started_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    Column("cost", Float, nullable=False),
    Column("log_address", Text),
    UniqueConstraint("verb", "fingerprint", "attempt", name="runs_attempt"),
)
Index("runs_by_state", _RUNS.c.state, _RUNS.c.lease_expires_at)
Index("runs_by_start", _RUNS.c.started_at)

#: Held while a run starts, and by whoever must be sure that none does.
_STARTS = "starts of runs"


class RunRepository:
    """All run records in one database. Safe among threads and processes.

    :param url: SQLAlchemy URL, as ``settings.database_url`` gives it.

    Tables are made at first use. Raises UsageError for a wrong URL; every method raises
    UnavailableError if the database does not answer.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        self._database.create(_METADATA)

    def start(
        self,
        verb: str,
        fingerprint: str,
        owner: Principal,
        holder: str,
        lease_s: float,
        log_address: str | None = None,
        artifact: str | None = None,
    ) -> RunRecord:
        """Record a new attempt as running, held by ``holder`` for ``lease_s`` seconds.

        Its number and its fencing token are one above those of the attempt before at this fingerprint.

        :param artifact: address of what it shall make: by it a killed run's manifest is found.
        """
        last = select(
            func.coalesce(func.max(_RUNS.c.attempt), 0), func.coalesce(func.max(_RUNS.c.token), 0)
        ).where(_RUNS.c.verb == verb, _RUNS.c.fingerprint == fingerprint)
        with self.no_start(), self._database.write() as connection:
            attempt, token = connection.execute(last).one()
            now = datetime.now(UTC)
            values = {
                "id": f"{verb}-{fingerprint}-{attempt + 1}",
                "verb": verb,
                "fingerprint": fingerprint,
                "attempt": attempt + 1,
                **owner.model_dump(),
                "state": RunState.RUNNING,
                "holder": holder,
                "token": token + 1,
                "lease_s": lease_s,
                "lease_expires_at": now + timedelta(seconds=lease_s),
                "artifact": artifact,
                "started_at": now,
                "cost": 0.0,
                "log_address": log_address,
            }
            row = connection.execute(insert(_RUNS).values(values).returning(_RUNS)).mappings().one()
            return _record(row)

    def no_start(self) -> AbstractContextManager[None]:
        """While this is held no run starts, anywhere; those that want to wait. Hold it for seconds."""
        return self._database.exclusive(_STARTS)

    def take_over(self, run_id: str, holder: str, lease_s: float) -> RunRecord:
        """Hold a running run whose lease has expired; its token rises, so that the old holder's is stale.

        Raises NotFoundError, or RefusedError if the run has ended or its holder is alive.
        """
        now = datetime.now(UTC)
        expired = (_RUNS.c.state == RunState.RUNNING) & (_RUNS.c.lease_expires_at < now)
        values = {
            "holder": holder,
            "token": _RUNS.c.token + 1,
            "lease_s": lease_s,
            "lease_expires_at": now + timedelta(seconds=lease_s),
        }
        record = self._change(run_id, expired, values)
        if record is None:
            found = self.get(run_id)
            why = f"it is {found.state}" if found.lease is None else f"{found.lease.holder} holds it"
            raise RefusedError(f"Run {run_id} cannot be taken over: {why}.")
        return record

    def heartbeat(self, run_id: str, token: int, cost: float | None = None) -> RunRecord:
        """Renew the lease for as long as it was asked for at the start, from now.

        A run that was taken for lost while the database was away runs again by this.

        :param cost: cost so far, in CPU-seconds of the driver.

        Raises NotFoundError, or RefusedError if the token is stale or the run has ended: stop working then.
        """
        with self._database.read() as connection:
            lease_s = connection.scalar(select(_RUNS.c.lease_s).where(_RUNS.c.id == run_id))
        values: dict[str, Any] = {"state": RunState.RUNNING, "ended_at": None, "message": None}
        if cost is not None:
            values["cost"] = cost
        values["lease_expires_at"] = datetime.now(UTC) + timedelta(seconds=lease_s or 0)
        return self._change(run_id, self._held(token), values) or self._refuse(run_id, token)

    def finish(
        self,
        run_id: str,
        token: int,
        state: RunState,
        artifact: str | None = None,
        message: str | None = None,
        cost: float = 0.0,
    ) -> RunRecord:
        """Record how the run ended. A second call with the same state changes nothing.

        :param artifact: address of what it made, if :meth:`start` did not know.
        :param message: one sentence, if it failed.
        :param cost: CPU-seconds of the driver in all.

        Raises NotFoundError, or RefusedError if the token is stale or the run has ended otherwise.
        """
        if state is RunState.RUNNING:
            raise ValueError("a run cannot finish as running")
        values = {"state": state, "message": message, "cost": cost, "ended_at": datetime.now(UTC)}
        if artifact is not None:
            values["artifact"] = artifact
        record = self._change(run_id, self._held(token), values)
        if record is not None:
            return record
        row = self._row(run_id)
        if row["token"] == token and row["state"] == state and state is not RunState.LOST:
            return _record(row)
        return self._refuse(run_id, token)

    def settle(self, run_id: str, artifact: str, ended_at: datetime) -> RunRecord | None:
        """Record as succeeded a run whose manifest stands, though it was killed before it could say so.

        :param artifact: address of the manifest.
        :param ended_at: when it was committed.
        :return: None if the run is neither running nor lost, so that nothing was to mend.
        """
        open_ = _RUNS.c.state.in_((RunState.RUNNING, RunState.LOST))
        values = {
            "state": RunState.SUCCEEDED,
            "artifact": artifact,
            "ended_at": ended_at,
            "message": "Its manifest stands; another process has recorded that.",
        }
        return self._change(run_id, open_, values)

    def collect(self, run_id: str) -> RunRecord | None:
        """Record that a lost run's files are being deleted: from here on it cannot commit any more.

        :return: None if the run is not lost.
        """
        return self._change(run_id, _RUNS.c.state == RunState.LOST, {"state": RunState.COLLECTED})

    def get(self, run_id: str) -> RunRecord:
        """One run. Raises NotFoundError."""
        return _record(self._row(run_id))

    def find(self, run_id: str) -> RunRecord | None:
        """One run, if there is a record of it."""
        try:
            return self.get(run_id)
        except NotFoundError:
            return None

    def list(
        self,
        verb: str | None = None,
        state: RunState | None = None,
        limit: int | None = 50,
        *,
        fingerprint: str | None = None,
        ended_since: datetime | None = None,
    ) -> builtins.list[RunRecord]:
        """Runs that fit, newest first."""
        query = select(_RUNS).order_by(_RUNS.c.started_at.desc(), _RUNS.c.attempt.desc()).limit(limit)
        if verb is not None:
            query = query.where(_RUNS.c.verb == verb)
        if state is not None:
            query = query.where(_RUNS.c.state == state)
        if fingerprint is not None:
            query = query.where(_RUNS.c.fingerprint == fingerprint)
        if ended_since is not None:
            query = query.where(_RUNS.c.ended_at >= ended_since)
        with self._database.read() as connection:
            return [_record(row) for row in connection.execute(query).mappings()]

    def reconcile(self, now: datetime | None = None) -> builtins.list[RunRecord]:
        """Mark every running run whose lease expired before ``now`` as lost; return those.

        A lost run counts as ended when its lease did: until then it was known to be alive.
        """
        now = now or datetime.now(UTC)
        query = (
            update(_RUNS)
            .where(_RUNS.c.state == RunState.RUNNING, _RUNS.c.lease_expires_at < now)
            .values(
                state=RunState.LOST,
                ended_at=_RUNS.c.lease_expires_at,
                message="Lost: its process ended, or stopped renewing its lease, without saying how it went.",
            )
            .returning(_RUNS)
        )
        with self._database.write() as connection:
            return [_record(row) for row in connection.execute(query).mappings()]

    def _change(self, run_id: str, condition: Any, values: Mapping[str, Any]) -> RunRecord | None:
        """Change the run if the condition holds, in one statement; None if it does not."""
        query = update(_RUNS).where(_RUNS.c.id == run_id, condition).values(**values).returning(_RUNS)
        with self._database.write() as connection:
            row = connection.execute(query).mappings().one_or_none()
        return None if row is None else _record(row)

    def _held(self, token: int) -> Any:
        # Lost is what others made of its silence; who holds the token and speaks is alive.
        return _RUNS.c.state.in_((RunState.RUNNING, RunState.LOST)) & (_RUNS.c.token == token)

    def _row(self, run_id: str) -> RowMapping:
        with self._database.read() as connection:
            row = connection.execute(select(_RUNS).where(_RUNS.c.id == run_id)).mappings().one_or_none()
        if row is None:
            raise NotFoundError(f"There is no run {run_id!r}: look for its id in the list of runs.")
        return row

    def _refuse(self, run_id: str, token: int) -> RunRecord:
        row = self._row(run_id)
        if row["token"] != token:
            why = f"token {token} is stale, {row['holder']} holds token {row['token']}"
        else:
            why = f"it ended as {row['state']} at {row['ended_at']:%Y-%m-%d %H:%M:%S} UTC"
        raise RefusedError(f"Run {run_id} is no longer this process's: {why}.")


def _record(row: RowMapping) -> RunRecord:
    state = RunState(row["state"])
    lease = None
    if state is RunState.RUNNING:
        lease = Lease(holder=row["holder"], token=row["token"], expires_at=row["lease_expires_at"])
    plain = (
        "id",
        "verb",
        "fingerprint",
        "attempt",
        "artifact",
        "message",
        "started_at",
        "ended_at",
        "cost",
        "log_address",
    )
    return RunRecord(
        owner=Principal(key_id=row["key_id"], team=row["team"], tenant=row["tenant"]),
        state=state,
        lease=lease,
        **{name: row[name] for name in plain},
    )
