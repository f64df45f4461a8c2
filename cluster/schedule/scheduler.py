"""The process that holds the schedules: APScheduler wakes it, the lease says whether it may act.

APScheduler keeps time and threads, with its jobs in memory. Its SQL job store is not used: it moves a job's
next run on before the work is done, so that a crash loses the tick; it pickles; its ``max_instances`` and
its locks hold in one process only, so that two schedulers would both fire. What is due follows from the
ledger instead, so a wake-up that comes late, twice or never does no harm.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.interval import IntervalTrigger

from cluster.errors import RefusedError, UnavailableError
from cluster.schedule.config import Schedule
from cluster.schedule.firing import Firing, Jobs
from cluster.schedule.ledger import Ledger
from cluster.settings import ScheduleSettings


def utc_now() -> datetime:
    """The time now, in UTC."""
    return datetime.now(UTC)


class Scheduler:
    """Holds the schedules while it leads, and stands by while another does.

    :param timing: how long a lease lasts, and when to look at a tick again that waits.
    :param say: gets one line for each thing that changes.
    """

    def __init__(
        self,
        schedules: Sequence[Schedule],
        ledger: Ledger,
        jobs: Jobs,
        timing: ScheduleSettings,
        *,
        clock: Callable[[], datetime] = utc_now,
        say: Callable[[str], None] = print,
    ) -> None:
        self._definitions = {schedule.name: schedule.definition for schedule in schedules}
        self._ledger, self._lease_s, self._clock, self._say = ledger, timing.lease_s, clock, say
        #: As which it holds the lease.
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(2)}"
        self._token: int | None = None
        self._told = ""
        pools = {"default": ThreadPoolExecutor(max(4, len(schedules))), "lease": ThreadPoolExecutor(1)}
        late = {"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
        self._scheduler = BackgroundScheduler(timezone=UTC, executors=pools, job_defaults=late)
        now = utc_now()
        beat = IntervalTrigger(seconds=timing.lease_s / 3, timezone=UTC)
        self._scheduler.add_job(self._beat, beat, executor="lease", next_run_time=now)
        for schedule in schedules:
            when = OrTrigger([schedule.when, IntervalTrigger(seconds=timing.retry_s, timezone=UTC)])
            firing = Firing(schedule, ledger, jobs, clock, say)
            self._scheduler.add_job(self._fire, when, args=[firing], id=schedule.name)

    def start(self) -> None:
        """Begin, in threads of its own."""
        # A look that takes longer than until the next is no news; an exception is.
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        self._scheduler.start()

    def stop(self) -> None:
        """Finish what has begun, and let another lead at once."""
        self._scheduler.pause()  # What would begin now would find no thread.
        self._scheduler.shutdown(wait=True)
        if self._token is not None:
            self._ledger.lease.release(self._token)
            self._token = None

    def _beat(self) -> None:
        """Keep the lease, or try to get it."""
        try:
            if self._token is not None:
                if self._ledger.lease.renew(self._token, self._lease_s):
                    return
                self._token = None
                self._once("another scheduler leads now")
            lease = self._ledger.lease.acquire(self.holder, self._lease_s)
            if lease is None:
                self._once(f"standing by: {self._ledger.lease.holder()} leads")
                return
            self._ledger.adopt(self._definitions, self._clock(), lease.token)
            self._token = lease.token
            self._once(f"leading {', '.join(self._definitions)} as {self.holder}")
        except (UnavailableError, RefusedError) as error:
            self._once(f"warning: {error}")

    def _fire(self, firing: Firing) -> None:
        token = self._token
        if token is None:
            return
        try:
            firing.fire(token)
        except (UnavailableError, RefusedError) as error:
            self._once(f"warning: {error}")

    def _once(self, line: str) -> None:
        """Say what has not been said last."""
        if line != self._told:
            self._told = line
            self._say(line)
