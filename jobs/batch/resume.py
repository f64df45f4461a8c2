"""What earlier attempts at the same batch left, and which of their rows stay.

Only of attempts that are over: lost or failed. One that is alive is waited for, since it makes the very same.
Their parts are read and never changed: a run that was taken for lost may come back and go on with its own,
and the artifact's one conditional put decides then.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cluster.contracts import Manifest, RunRecord, RunState
from cluster.errors import NotFoundError
from cluster.job import JobRun
from jobs.batch.failures import is_settled
from jobs.batch.journal import ANSWERS, PLAN, rows_of
from jobs.batch.rows import parts, read_parts

_POLL_S = 0.5


@dataclass
class Former:
    """Rows that earlier attempts answered: their files, and a byte a row: 1 where it stays."""

    keys: list[str] = field(default_factory=list)
    settled: bytearray = field(default_factory=bytearray)
    runs: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Rows that need not be asked."""
        return self.settled.count(1)

    def has(self, number: int) -> bool:
        """Whether that row need not be asked."""
        return number < len(self.settled) and bool(self.settled[number])

    def settle(self, number: int) -> bool:
        """Mark a row; False if it was."""
        if number >= len(self.settled):
            self.settled.extend(bytes(number + 1 - len(self.settled)))
        fresh = not self.settled[number]
        self.settled[number] = 1
        return fresh


def await_others(job: JobRun) -> Manifest | None:
    """Wait while an earlier attempt at the same artifact is alive; the artifact, if one has made it."""
    said = False
    while living := [run for run in job.earlier() if run.state is RunState.RUNNING and not _gone(run)]:
        if not said:
            holder = living[0].lease.holder if living[0].lease else "?"
            job.progress(f"run {living[0].id} makes the same and is held by {holder}: waiting for it")
            said = True
        time.sleep(_POLL_S)
    return job.artifacts.find(job.ref)


def take_over(job: JobRun, order: str) -> Former:
    """The rows that attempts before this one answered.

    :param order: :attr:`jobs.batch.source.Source.order`; attempts at another order of rows are left out.
    """
    former = Former()
    for run in job.earlier():
        over = run.state in (RunState.LOST, RunState.FAILED) or _gone(run)
        if not over or _order(job, run.id) != order:
            continue
        keys = parts(job.store, rows_of(job, run.id), ANSWERS)
        columns = ["number", "status", "error_code"]
        before = former.count
        for row in read_parts(job.store, keys, columns):
            if is_settled(row["status"], row["error_code"]):
                former.settle(row["number"])
        former.keys += keys
        if found := former.count - before:
            former.runs.append(run.id)
            job.progress(f"run {run.id} answered {found} rows before it ended: they are not asked again")
    return former


def each_once(job: JobRun, former: Former, rows: int) -> Iterator[dict[str, Any]]:
    """Every row's stored answer, once: this run's before those of the runs before it.

    Raises AssertionError if one has none, which is a bug.
    """
    taken = Former()
    for row in read_parts(job.store, parts(job.store, rows_of(job), ANSWERS)):
        if taken.settle(row["number"]):
            yield row
    for row in read_parts(job.store, former.keys):
        if is_settled(row["status"], row["error_code"]) and taken.settle(row["number"]):
            yield row
    if taken.count != rows or len(taken.settled) != rows:
        raise AssertionError(f"{job.run_id}: {taken.count} of {rows} rows have an answer")


def _order(job: JobRun, run_id: str) -> str | None:
    try:
        plan = json.loads(job.store.get(rows_of(job, run_id).prefix + PLAN))
    except NotFoundError:
        return None  # It was killed before it asked anything.
    return str(plan["order"])


def _gone(run: RunRecord) -> bool:
    """Whether a run's process was on this machine and is no more, though its lease has not run out yet."""
    if run.lease is None:
        return False
    host, _, pid = run.lease.holder.rpartition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
