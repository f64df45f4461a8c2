"""Several schedulers over one database, SQLite and PostgreSQL: one leads, and no tick is fired twice."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from cluster.errors import RefusedError
from cluster.schedule.config import Schedule
from cluster.schedule.ledger import Ledger, TickState, tick_of
from cluster.schedule.scheduler import Scheduler
from cluster.settings import ScheduleSettings

pytestmark = pytest.mark.integration
EVERY_SECOND = Schedule(
    name="beat", cron="* * * * * *", job="evaluate", overlap="queue", misfire_grace_time=3600
)


def test_of_many_that_want_the_lease_one_gets_it(database_url: str) -> None:
    ready = threading.Barrier(8)

    def take(number: int) -> int | None:
        ledger = Ledger(database_url)  # Tables are made by all at once, too.
        ready.wait()
        lease = ledger.lease.acquire(f"host:{number}", 3600)
        return None if lease is None else lease.token

    with ThreadPoolExecutor(8) as pool:
        tokens = [token for token in pool.map(take, range(8)) if token is not None]
    assert len(tokens) == 1
    ledger = Ledger(database_url)
    assert ledger.lease.renew(tokens[0], -1)  # It dies.
    assert ledger.lease.holder() is None
    with ThreadPoolExecutor(8) as pool:
        later = [token for token in pool.map(take, range(8)) if token is not None]
    assert later == [tokens[0] + 1]
    # The dead one comes back: it can neither hold nor write.
    assert not ledger.lease.renew(tokens[0], 60)
    ledger.lease.release(tokens[0])
    assert ledger.lease.holder() is not None
    tick = tick_of("stale", datetime(2026, 1, 1, tzinfo=UTC))
    for write in (
        lambda: ledger.record([tick], tokens[0]),
        lambda: ledger.settle(tick, TickState.SUBMITTED, None, tokens[0]),
        lambda: ledger.adopt({}, datetime.now(UTC), tokens[0]),
    ):
        with pytest.raises(
            RefusedError, match=rf"its token is {tokens[0]}, host:\d with token {later[0]} leads"
        ):
            write()
    assert ledger.history("stale", 10) == []
    ledger.lease.release(later[0])


class Counting:
    """Counts submissions; every job ends at once."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def submit(self, schedule: Schedule, submission_id: str) -> None:
        self.seen[submission_id] += 1

    def running(self, submission_id: str) -> bool:
        return False

    def known(self, submission_id: str) -> bool:
        return submission_id in self.seen


def until(true: Callable[[], bool]) -> None:
    """Wait; the test's own timeout is the limit."""
    while not true():
        time.sleep(0.05)


def test_two_schedulers_fire_each_tick_once_and_one_takes_over(database_url: str) -> None:
    jobs, lines = Counting(), list[str]()
    timing = ScheduleSettings(lease_s=1.5, retry_s=0.5)
    ledger = Ledger(database_url)
    begin = datetime.now(UTC)
    pair = [Scheduler([EVERY_SECOND], Ledger(database_url), jobs, timing, say=lines.append) for _ in range(2)]
    for scheduler in pair:
        scheduler.start()
    until(lambda: len(jobs.seen) >= 3)

    def leaders() -> int:
        """Who has begun to lead and not learned yet, after a pause perhaps, that another does."""
        begun = sum(line.startswith("leading") for line in lines)
        return begun - lines.count("another scheduler leads now")

    until(lambda: leaders() == 1)
    until(lambda: any(line.startswith("standing by") for line in lines))
    first = pair[0] if str(ledger.lease.holder()) == pair[0].holder else pair[1]
    [second] = [scheduler for scheduler in pair if scheduler is not first]
    first.stop()
    until(lambda: ledger.lease.holder() == second.holder)
    before = len(jobs.seen)
    until(lambda: len(jobs.seen) >= before + 3)
    second.stop()

    ticks = ledger.history("beat", 1000)[::-1]
    assert set(jobs.seen.values()) == {1}
    assert [tick.submission_id for tick in ticks if tick.state is TickState.SUBMITTED] == sorted(jobs.seen)
    assert {tick.state for tick in ticks} == {TickState.SUBMITTED}
    # None is left out, the change of leaders included.
    assert ticks[0].tick > begin
    assert {later.tick - tick.tick for tick, later in pairwise(ticks)} == {timedelta(seconds=1)}
