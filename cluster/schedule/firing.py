"""What one schedule does at a moment: find the ticks that are due, and settle those that are open.

A tick that was seen is kept until its job is submitted, however long the cluster is away. ``catch_up`` is
about ticks that no scheduler was there to see: while none ran, or between two leaders. A schedule that is
changed, paused, resumed, or removed and added again begins anew: what of the clock's waited then is given up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Protocol

from cluster.errors import AccessError, MantaError, UnavailableError
from cluster.schedule.config import Schedule
from cluster.schedule.ledger import Ledger, Tick, TickState, tick_of

#: Missed ticks that are written down one by one; of more only the newest are.
MISSED_ON_RECORD = 100


class Jobs(Protocol):
    """The cluster, as far as a schedule needs it. Each raises UnavailableError or AccessError."""

    def submit(self, schedule: Schedule, submission_id: str) -> None:
        """Submit the schedule's job, unless the id is known already.

        Raises UsageError or RefusedError for a job that cannot run.
        """

    def running(self, submission_id: str) -> bool:
        """Whether the job has not ended; one that the cluster does not know has."""

    def known(self, submission_id: str) -> bool:
        """Whether the cluster has the job, ended or not."""


class Firing:
    """One schedule at work.

    :param clock: the time now, in UTC.
    :param say: gets one line for each thing that changes.
    """

    def __init__(
        self,
        schedule: Schedule,
        ledger: Ledger,
        jobs: Jobs,
        clock: Callable[[], datetime],
        say: Callable[[str], None],
    ) -> None:
        self._schedule, self._ledger, self._jobs = schedule, ledger, jobs
        self._clock, self._say = clock, say

    def fire(self, token: int) -> None:
        """Do what is to be done now, as the leader that holds ``token``.

        Raises RefusedError when another leads, UnavailableError when the database does not answer; either may
        come between a tick's intent and its submission, and whoever leads next goes on there.
        """
        standing = self._ledger.standing(self._schedule.name)
        if standing is None:
            return
        if not standing.paused and (due := self._due(standing.after, self._clock())):
            self._ledger.record(due, token)
            for tick in due:
                if tick.state is not TickState.PENDING:
                    self._tell(tick, tick.state, tick.message)
        waiting: Tick | None = None
        for tick in self._ledger.pending(self._schedule.name):
            if not tick.manual and (standing.paused or tick.tick <= standing.since):
                self._give_up(tick, token)
            elif waiting is None or tick.manual:
                done = self._submit(tick, token)
                waiting = waiting if done or tick.manual else tick
            elif self._schedule.overlap == "skip":
                reason = f"the tick of {waiting.tick:%Y-%m-%d %H:%M:%S} UTC still waits"
                self._settle(tick, TickState.SKIPPED, reason, token)

    def _due(self, after: datetime, now: datetime) -> list[Tick]:
        """The ticks since ``after``: those to run, and those that were missed."""
        name, seen_from = self._schedule.name, now - timedelta(seconds=self._schedule.misfire_grace_time)
        seen = list(self._schedule.when.between(max(after, seen_from), now))
        missed: deque[datetime] = deque(maxlen=MISSED_ON_RECORD)
        count = 0
        for moment in self._schedule.when.between(after, seen_from):
            missed.append(moment)
            count += 1
        if missed and not seen and self._schedule.catch_up == "latest":
            seen = [missed.pop()]
        reasons = ["missed: no scheduler saw it in time"] * len(missed)
        if count > MISSED_ON_RECORD:
            reasons[0] += f", as for {count - MISSED_ON_RECORD} ticks before it"
        skipped = [
            tick_of(name, moment).model_copy(update={"state": TickState.SKIPPED, "message": reason})
            for moment, reason in zip(missed, reasons, strict=True)
        ]
        return [*skipped, *(tick_of(name, moment) for moment in seen)]

    def _submit(self, tick: Tick, token: int) -> bool:
        """Submit the tick's job if nothing is in its way; False if the tick still waits."""
        try:
            former = [] if tick.manual else [item.submission_id for item in self._ledger.former(tick)]
            if running := next(filter(self._jobs.running, former), None):
                reason = f"{running} still runs"
                skip = self._schedule.overlap == "skip"
                self._settle(tick, TickState.SKIPPED if skip else TickState.PENDING, reason, token)
                return skip
            self._jobs.submit(self._schedule, tick.submission_id)
        except (UnavailableError, AccessError) as error:
            self._settle(tick, TickState.PENDING, str(error), token)
            return False
        except MantaError as error:
            self._settle(tick, TickState.FAILED, str(error), token)
            return True
        self._settle(tick, TickState.SUBMITTED, None, token)
        return True

    def _give_up(self, tick: Tick, token: int) -> None:
        """Settle a tick from before the schedule began anew; a leader that died may have submitted it."""
        try:
            known = self._jobs.known(tick.submission_id)
        except (UnavailableError, AccessError) as error:
            self._settle(tick, TickState.PENDING, str(error), token)
            return
        reason = None if known else "the schedule was changed, paused or removed while it waited"
        self._settle(tick, TickState.SUBMITTED if known else TickState.SKIPPED, reason, token)

    def _settle(self, tick: Tick, state: TickState, message: str | None, token: int) -> None:
        if self._ledger.settle(tick, state, message, token):
            self._tell(tick, state, message)

    def _tell(self, tick: Tick, state: TickState, message: str | None) -> None:
        why = f": {message}" if message else ""
        self._say(f"{tick.submission_id} {state}{why}")
