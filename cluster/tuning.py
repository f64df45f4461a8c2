"""Fine-tuning jobs on record: SQL is the truth of who asked for what, how far it is, and who follows it.

Whoever follows a job holds its lease (:mod:`cluster.leases`). A client's cancel ends a job at once; whoever
follows it then stops what runs, and only after that it is settled. A record that cannot be read is missing
from lists.
"""

from __future__ import annotations

import builtins
import hashlib
import re
import secrets
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from pydantic import ValidationError
from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Index,
    MetaData,
    RowMapping,
    String,
    Table,
    Text,
    and_,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from cluster.contracts.tuning import (
    TUNING_ENDED,
    TuningEvent,
    TuningProgress,
    TuningRecord,
    TuningStatus,
    TuningTerms,
)
from cluster.database import LATER, Database, UtcDateTime
from cluster.errors import NotFoundError, RefusedError, UnreadableError
from cluster.files import confirm, printable
from cluster.leases import LONG_AGO, PAGE, Leases, columns, read, readable

_METADATA = MetaData()

_JOBS = Table(
    "fine_tuning_jobs",
    _METADATA,
    *columns(),
    # Whether nothing is left to do for it: it has ended, and so has its Ray job.
    Column("settled", Boolean, nullable=False),
    # Public name of what is tuned, which stands in the terms, too; null of jobs from before it stood here.
    Column("model", Text, info=LATER),
)
Index("fine_tuning_jobs_by_team", _JOBS.c.team, _JOBS.c.created_at, _JOBS.c.id)
Index("fine_tuning_jobs_open", _JOBS.c.settled, _JOBS.c.created_at)
Index("fine_tuning_jobs_by_model", _JOBS.c.model, _JOBS.c.status)

_EVENTS = Table(
    "fine_tuning_events",
    _METADATA,
    Column("id", String(40), primary_key=True),
    Column("job", String(40), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("content", Text, nullable=False),
)
Index("fine_tuning_events_by_job", _EVENTS.c.job, _EVENTS.c.created_at, _EVENTS.c.id)

_SUCCEEDED = TuningStatus.SUCCEEDED.value
#: As :attr:`TuningRecord.tuned_name` makes it; the beginning of the job's id.
_TUNED = re.compile(r"ft:.+:([0-9a-f]{12})", re.DOTALL)


def new_tuning_id() -> str:
    """An id that no job had."""
    return f"ftjob-{secrets.token_hex(12)}"


def make_event(job_id: str, name: str, message: str, **more: Any) -> TuningEvent:
    """An event of a job, now; told twice under one ``name`` it is on record once."""
    digest = hashlib.sha256(f"{job_id}/{name}".encode()).hexdigest()[:24]
    return TuningEvent(id=f"ftevent-{digest}", created_at=datetime.now(UTC), message=message, **more)


class TuningRepository:
    """All fine-tuning jobs in one database. Safe among threads and processes.

    :param url: SQLAlchemy URL, as ``settings.database_url`` gives it.

    The tables are made at first use. Raises UsageError for a wrong URL; every method raises UnavailableError
    if the database does not answer.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        self._database.create(_METADATA)
        self._leases = Leases(self._database, _JOBS)

    def create(self, terms: TuningTerms) -> TuningRecord:
        """Put a job on record; whoever looks for work finds it."""
        values = {
            "id": terms.id,
            "team": terms.team,
            "created_at": terms.created_at,
            "model": terms.model,
            "terms": terms.model_dump_json(),
            **_columns(TuningProgress()),
            "settled": False,
            "token": 0,
            "lease_expires_at": LONG_AGO,
        }
        created = make_event(terms.id, "created", f"Created fine-tuning job: {terms.id}")
        with self._database.write() as connection:
            connection.execute(insert(_JOBS).values(values))
            self._tell(connection, terms.id, [created])
        return self.get(terms.id, terms.team)

    def get(self, job_id: str, team: str) -> TuningRecord:
        """One job of that team. Raises NotFoundError."""
        query = select(_JOBS).where(_JOBS.c.id == printable(job_id), _JOBS.c.team == team)
        with self._database.read() as connection:
            row = connection.execute(query).mappings().one_or_none()
        if row is None:
            raise _unknown(job_id)
        return _record(row)

    def list(
        self,
        team: str,
        *,
        after: str | None = None,
        limit: int = 20,
        metadata: Mapping[str, str] | None = None,
    ) -> builtins.list[TuningRecord]:
        """That team's jobs, the newest first, at most ``limit``.

        :param after: only jobs behind this one. Raises NotFoundError if it is not there.
        :param metadata: only jobs whose metadata has all of these.
        """
        made, name = _JOBS.c.created_at, _JOBS.c.id
        query = select(_JOBS).where(_JOBS.c.team == team)
        if after is not None:
            then = self.get(after, team).created_at
            query = query.where(or_(made < then, and_(made == then, name < after)))
        wanted = dict(metadata or {}).items()
        with self._database.read() as connection:
            ordered = query.order_by(made.desc(), name.desc()).execution_options(**PAGE)
            rows = connection.execute(ordered).mappings()
            fit = (record for record in readable(rows, _record) if wanted <= record.metadata.items())
            return builtins.list(islice(fit, limit))

    def all(self) -> tuple[builtins.list[TuningRecord], builtins.list[TuningRecord]]:
        """Jobs of all teams in the order of their making: for which nothing is left to do, and the others.

        All at one moment: one that settles meanwhile is not missed. Raises UnreadableError if one cannot be
        read.
        """
        settled, others = builtins.list[TuningRecord](), builtins.list[TuningRecord]()
        query = select(_JOBS).order_by(_JOBS.c.created_at, _JOBS.c.id)
        with self._database.read() as connection:
            for row in connection.execute(query).mappings():
                (settled if row["settled"] else others).append(_record(row))
        return settled, others

    def forget_key(self, job_id: str, pseudonym: str) -> None:
        """Take the key's id and the client's own words from the record of a job that is settled.

        Its suffix stays: the name of what came of it has it.
        """
        self._leases.forget_key(job_id, TuningTerms, pseudonym)

    def find_tuned(self, name: str, team: str) -> TuningRecord | None:
        """That team's job whose tuned model has, or had, this name; None if there is none."""
        if (found := _TUNED.fullmatch(name)) is None:
            return None
        query = select(_JOBS).where(
            _JOBS.c.id.like(f"ftjob-{found[1]}%"), _JOBS.c.team == team, _JOBS.c.status == _SUCCEEDED
        )
        with self._database.read() as connection:
            records = [_record(row) for row in connection.execute(query).mappings()]
        return next((record for record in records if record.tuned_name == name), None)

    def tuned_from(self, models: Collection[str]) -> builtins.list[TuningRecord]:
        """Jobs of all teams whose tuned models are there, by public names of what they were tuned from."""
        base = or_(_JOBS.c.model.in_(models), _JOBS.c.model.is_(None))
        query = select(_JOBS).where(_JOBS.c.status == _SUCCEEDED, base).order_by(_JOBS.c.created_at)
        with self._database.read() as connection:
            records = readable(connection.execute(query).mappings(), _record)
            return [record for record in records if record.model in models and record.deleted_at is None]

    def trained(
        self, team: str | None = None, since: datetime | None = None, until: datetime | None = None
    ) -> builtins.list[TuningRecord]:
        """Jobs that succeeded, of that team or of all, in the order of their making.

        :param since: time at which the first was made.
        :param until: time behind that of the last.
        """
        query = select(_JOBS).where(_JOBS.c.status == _SUCCEEDED)
        if team is not None:
            query = query.where(_JOBS.c.team == team)
        if since is not None:
            query = query.where(_JOBS.c.created_at >= since)
        if until is not None:
            query = query.where(_JOBS.c.created_at < until)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(_JOBS.c.created_at, _JOBS.c.id)).mappings()
            return builtins.list(readable(rows, _record))

    def delete_tuned(self, job_id: str, team: str) -> TuningRecord:
        """Its tuned model is no more; whoever looks for work takes away what it left.

        Nothing happens if it is deleted already. Raises NotFoundError.
        """
        mine = (_JOBS.c.id == printable(job_id), _JOBS.c.team == team, _JOBS.c.status == _SUCCEEDED)
        with self._database.write() as connection:
            row = connection.execute(select(_JOBS).where(*mine).with_for_update()).mappings().one_or_none()
            if row is None:
                raise _unknown(job_id)
            record = _record(row)
            if record.deleted_at is None:
                values = {
                    **_columns(changed(record, deleted_at=datetime.now(UTC))),
                    "settled": False,
                    # A worker that has not settled it yet must not do so without knowing of this.
                    "token": _JOBS.c.token + 1,
                    "lease_expires_at": LONG_AGO,
                }
                connection.execute(update(_JOBS).where(*mine).values(values))
                event = make_event(record.id, "deleted", f"The model {record.tuned_name} was deleted")
                self._tell(connection, record.id, [event])
        return self.get(job_id, team)

    def count_open(self, team: str) -> int:
        """That team's jobs that have not ended, or whose training has not."""
        query = select(func.count()).where(
            _JOBS.c.team == team, _JOBS.c.settled.is_(False), _JOBS.c.status != _SUCCEEDED
        )
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def events(self, job_id: str, *, after: str | None = None, limit: int = 20) -> builtins.list[TuningEvent]:
        """A job's events, the newest first, at most ``limit``.

        :param after: only events behind this one. Raises NotFoundError if it is not there.
        """
        made, name = _EVENTS.c.created_at, _EVENTS.c.id
        mine = _EVENTS.c.job == job_id
        query = select(_EVENTS).where(mine)
        with self._database.read() as connection:
            if after is not None:
                last = select(made).where(mine, name == printable(after))
                then = connection.execute(last).scalar_one_or_none()
                if then is None:
                    raise NotFoundError(f"No such event: {after}")
                query = query.where(or_(made < then, and_(made == then, name < after)))
            ordered = query.order_by(made.desc(), name.desc()).execution_options(**PAGE)
            return builtins.list(islice(readable(connection.execute(ordered).mappings(), _event), limit))

    def tell(self, job_id: str, events: Iterable[TuningEvent]) -> None:
        """Put events on record; those that are there already stay as they are."""
        with self._database.write() as connection:
            self._tell(connection, job_id, events)

    def cancel(self, job_id: str, team: str) -> TuningRecord:
        """End it; what runs is stopped soon. Raises NotFoundError, or RefusedError if it has ended."""
        with self._database.write() as connection:
            mine = (_JOBS.c.id == printable(job_id), _JOBS.c.team == team)
            row = connection.execute(select(_JOBS).where(*mine).with_for_update()).mappings().one_or_none()
            if row is None:
                raise _unknown(job_id)
            record = _record(row)
            if record.status in TUNING_ENDED:
                raise RefusedError(
                    f"Job {job_id} has already {_ENDS[record.status]}: it cannot be cancelled."
                )
            ended = changed(record, status=TuningStatus.CANCELLED, finished_at=datetime.now(UTC))
            connection.execute(update(_JOBS).where(*mine).values(**_columns(ended)))
            self._tell(connection, record.id, [make_event(record.id, "cancelled", "The job was cancelled")])
        return self.get(job_id, team)

    def claim(
        self, holder: str, lease_s: float, without: Iterable[str] = (), *, ended: bool = False
    ) -> tuple[TuningRecord, int] | None:
        """The oldest job that is not settled and that nobody follows, with its fencing token.

        :param without: jobs that are not wanted.
        :param ended: only one that has ended, of which something is left to be taken away.
        """
        states = [status.value for status in (TUNING_ENDED if ended else TuningStatus)]
        return self._leases.claim(
            holder,
            lease_s,
            _record,
            _JOBS.c.settled.is_(False),
            _JOBS.c.status.in_(states),
            _JOBS.c.id.not_in(builtins.list(without)),
        )

    def report(
        self,
        job_id: str,
        token: int,
        progress: TuningProgress,
        lease_s: float,
        events: Iterable[TuningEvent] = (),
    ) -> TuningRecord:
        """Write down how far it is, and hold it for ``lease_s`` seconds more.

        A job that was cancelled meanwhile stays so: look at what comes back. With the end of one that
        succeeds, its files are there, which their maker announced. Raises RefusedError if another holds it.
        """
        mine = _JOBS.c.id == job_id
        with self._database.write() as connection:
            known = _record(self._leases.held(connection, job_id, token))
            if known.status is TuningStatus.CANCELLED:
                return known
            for made in progress.result_files if progress.status is TuningStatus.SUCCEEDED else ():
                confirm(connection, made)
            until = datetime.now(UTC) + timedelta(seconds=lease_s)
            values = {**_columns(progress), "lease_expires_at": until}
            connection.execute(update(_JOBS).where(mine).values(values))
            self._tell(connection, job_id, events)
            row = connection.execute(select(_JOBS).where(mine)).mappings().one()
        return _record(row)

    def renew(self, job_id: str, token: int, lease_s: float) -> TuningStatus:
        """Hold it for ``lease_s`` seconds more; returns its state.

        Raises RefusedError if another holds it.
        """
        return TuningStatus(self._leases.renew(job_id, token, lease_s))

    def settle(self, job_id: str, token: int) -> None:
        """Nothing is left to do for it. Raises RefusedError if another holds it."""
        self._leases.change(job_id, token, settled=True)

    def release(self, job_id: str, token: int) -> None:
        """Let another take it at once; nothing happens if one has."""
        self._leases.release(job_id, token)

    def _tell(self, connection: Connection, job_id: str, events: Iterable[TuningEvent]) -> None:
        dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
        for event in events:
            values = {"id": event.id, "job": job_id, "created_at": event.created_at}
            new = dialect.insert(_EVENTS).values(**values, content=event.model_dump_json())
            connection.execute(new.on_conflict_do_nothing())


_ENDS = {
    TuningStatus.SUCCEEDED: "succeeded",
    TuningStatus.FAILED: "failed",
    TuningStatus.CANCELLED: "been cancelled",
}


def changed(progress: TuningProgress, **more: object) -> TuningProgress:
    """``progress`` with some of it new."""
    kept = {name: getattr(progress, name) for name in TuningProgress.model_fields}
    return TuningProgress.model_validate(kept | more)


def _unknown(job_id: str) -> NotFoundError:
    return NotFoundError(f"Could not find fine tune: {job_id}")


def _columns(progress: TuningProgress) -> dict[str, str]:
    body = progress.model_dump_json(include=set(TuningProgress.model_fields))
    return {"status": progress.status.value, "progress": body}


def _event(row: RowMapping) -> TuningEvent:
    try:
        return TuningEvent.model_validate_json(row["content"])
    except ValidationError:
        raise UnreadableError(f"Event {row['id']} of {row['job']} cannot be read.") from None


def _record(row: RowMapping) -> TuningRecord:
    return read(row, TuningTerms, TuningProgress, TuningRecord)
