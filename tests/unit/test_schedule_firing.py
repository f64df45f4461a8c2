"""One schedule against its ledger: each tick once, whoever dies when."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import RefusedError, UnavailableError, UsageError
from cluster.schedule.config import Schedule
from cluster.schedule.firing import MISSED_ON_RECORD, Firing
from cluster.schedule.ledger import Ledger, Tick, TickState, tick_of

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


class Killed(BaseException):
    """As SIGKILL: nobody catches it."""


class Cluster:
    """What a cluster of Ray says to a scheduler: it keeps a job by each id, and refuses a second."""

    def __init__(self) -> None:
        self.jobs: dict[str, str] = {}
        self.away = False
        self.kill: str | None = None
        self.error: Exception | None = None

    def submit(self, schedule: Schedule, submission_id: str) -> None:
        if self.kill == "before":
            raise Killed
        if self.away:
            raise UnavailableError("The cluster does not answer.")
        if self.error is not None:
            raise self.error
        self.jobs.setdefault(submission_id, "RUNNING")
        if self.kill == "after":
            raise Killed

    def running(self, submission_id: str) -> bool:
        if self.away:
            raise UnavailableError("The cluster does not answer.")
        return self.jobs.get(submission_id) == "RUNNING"

    def known(self, submission_id: str) -> bool:
        if self.away:
            raise UnavailableError("The cluster does not answer.")
        return submission_id in self.jobs

    def end(self) -> None:
        self.jobs = dict.fromkeys(self.jobs, "SUCCEEDED")


class World:
    """A clock, a cluster, a ledger, and a leader that may die."""

    def __init__(self, url: str) -> None:
        self.now = NOON
        self.cluster = Cluster()
        self.url = url
        self.lines: list[str] = []

    def lead(self, **fields: Any) -> None:
        """A new process leads with this schedule, by default one of every minute."""
        named = {"name": "beat", "cron": "* * * * *", "job": "evaluate", **fields}
        self.schedule = Schedule.model_validate(named)
        self.ledger = Ledger(self.url)
        lease = self.ledger.lease.acquire("host:1", -1)  # Expired at once: the next may take it.
        assert lease is not None
        self.token = lease.token
        self.ledger.adopt({self.schedule.name: self.schedule.definition}, self.now, self.token)
        self.firing = Firing(self.schedule, self.ledger, self.cluster, lambda: self.now, self.lines.append)

    def pause(self, paused: bool = True) -> None:
        self.ledger.set_paused("beat", self.schedule.definition, self.now, paused=paused)

    def pass_time(self, **span: float) -> None:
        self.now += timedelta(**span)

    def fire(self) -> None:
        self.firing.fire(self.token)

    def history(self) -> list[Tick]:
        return self.ledger.history("beat", 1000)[::-1]

    def states(self) -> dict[str, str]:
        return {f"{tick.tick:%H:%M}": str(tick.state) for tick in self.history()}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(f"sqlite:///{tmp_path / 'manta.db'}")


def test_a_tick_is_submitted_once_however_often_it_is_looked_at(world: World) -> None:
    world.lead(overlap="queue")
    world.fire()
    assert world.history() == []  # A schedule begins when it is first seen.
    for _ in range(6):
        world.pass_time(seconds=10)
        world.fire()
        world.fire()
    assert list(world.cluster.jobs) == ["sched-beat-20261122T120100Z"]
    [tick] = world.history()
    assert (tick.tick, tick.state, tick.manual) == (NOON + timedelta(minutes=1), TickState.SUBMITTED, False)
    assert world.lines == ["sched-beat-20261122T120100Z submitted"]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("overlap", ["skip", "queue"])
def test_a_leader_killed_around_a_submission_leaves_a_tick_that_runs_once(
    world: World, moment: str, overlap: str
) -> None:
    world.lead(overlap=overlap)
    world.pass_time(minutes=1)
    world.cluster.kill = moment
    with pytest.raises(Killed):
        world.fire()
    assert world.states() == {"12:01": "pending"}
    world.cluster.kill = None
    world.pass_time(seconds=20)
    world.lead(overlap=overlap)
    world.fire()
    assert world.states() == {"12:01": "submitted"}
    assert list(world.cluster.jobs) == ["sched-beat-20261122T120100Z"]


def test_a_stale_leader_is_refused_before_it_submits(world: World) -> None:
    world.lead()
    old, token = world.firing, world.token
    world.lead()
    world.pass_time(minutes=1)
    with pytest.raises(RefusedError, match="does not lead any more"):
        old.fire(token)
    assert world.cluster.jobs == {}
    world.fire()
    assert len(world.cluster.jobs) == 1


@pytest.mark.parametrize(("catch_up", "caught"), [("none", []), ("latest", ["12:10"])])
def test_ticks_that_nobody_saw_are_caught_up_as_told(world: World, catch_up: str, caught: list[str]) -> None:
    fields = {"cron": "*/5 * * * *", "catch_up": catch_up, "misfire_grace_time": 30}
    world.lead(**fields)
    world.pass_time(minutes=12)
    world.lead(**fields)
    world.fire()
    states = world.states()
    assert list(states) == ["12:05", "12:10"]
    assert [tick for tick, state in states.items() if state == "submitted"] == caught
    assert {tick.message for tick in world.history() if tick.state is TickState.SKIPPED} == {
        "missed: no scheduler saw it in time"
    }
    world.fire()
    assert world.states() == states


def test_a_tick_within_its_grace_was_not_missed(world: World) -> None:
    world.lead(overlap="queue", misfire_grace_time=150)
    world.pass_time(minutes=4, seconds=10)
    world.lead(overlap="queue", misfire_grace_time=150)
    for _ in range(3):
        world.fire()
        world.cluster.end()
    assert world.states() == {
        "12:01": "skipped",
        "12:02": "submitted",
        "12:03": "submitted",
        "12:04": "submitted",
    }


def test_after_a_long_absence_the_newest_missed_ticks_are_on_record(world: World) -> None:
    world.lead()
    world.pass_time(days=2)
    world.lead()
    world.fire()
    history = world.history()
    assert len(history) == MISSED_ON_RECORD + 1
    assert history[0].message == f"missed: no scheduler saw it in time, as for {2879 - 100} ticks before it"
    assert [tick.state for tick in history[-2:]] == [TickState.SKIPPED, TickState.SUBMITTED]


def test_overlap_skip(world: World) -> None:
    world.lead()
    world.pass_time(minutes=1)
    world.fire()
    world.pass_time(minutes=1)
    world.fire()
    assert world.states() == {"12:01": "submitted", "12:02": "skipped"}
    assert world.history()[-1].message == "sched-beat-20261122T120100Z still runs"
    world.cluster.end()
    world.fire()
    assert world.states()["12:02"] == "skipped"
    world.pass_time(minutes=1)
    world.fire()
    assert world.states()["12:03"] == "submitted"


def test_overlap_queue_runs_every_tick_in_order(world: World) -> None:
    world.lead(overlap="queue")
    for _ in range(3):
        world.pass_time(minutes=1)
        world.fire()
    assert world.states() == {"12:01": "submitted", "12:02": "pending", "12:03": "pending"}
    world.lead(overlap="queue")  # The queue outlives its leader.
    world.cluster.end()
    world.fire()
    assert world.states() == {"12:01": "submitted", "12:02": "submitted", "12:03": "pending"}
    world.cluster.end()
    world.fire()
    assert list(world.cluster.jobs) == [f"sched-beat-20261122T120{number}00Z" for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("overlap", "state"), [("skip", ["submitted", "skipped"]), ("queue", ["submitted", "submitted"])]
)
def test_while_the_cluster_is_away_a_tick_is_kept(world: World, overlap: str, state: list[str]) -> None:
    world.lead(overlap=overlap)
    world.cluster.away = True
    for _ in range(30):  # Longer than any grace: it was seen.
        world.pass_time(seconds=4)
        world.fire()
    assert world.history()[0].message == "The cluster does not answer."
    assert len(world.lines) == 1 + (overlap == "skip")  # Said once, not at each try.
    world.cluster.away = False
    for _ in range(2):
        world.fire()
        world.cluster.end()
    assert list(world.states().values()) == state


@pytest.mark.parametrize("error", [UsageError("No such file."), RefusedError("Ray refused the job.")])
def test_a_job_that_cannot_be_submitted_fails_its_tick_only(world: World, error: Exception) -> None:
    world.lead()
    world.cluster.error = error
    world.pass_time(minutes=1)
    world.fire()
    world.cluster.error = None
    world.pass_time(minutes=1)
    world.fire()
    assert world.states() == {"12:01": "failed", "12:02": "submitted"}
    assert world.history()[0].message == str(error)


def test_a_pause_outlives_the_leader_and_is_not_caught_up(world: World) -> None:
    world.lead(catch_up="latest")
    world.pause()
    world.pass_time(minutes=10)
    world.lead(catch_up="latest")
    world.fire()
    assert world.history() == []
    world.pause(False)
    world.fire()
    assert world.history() == []
    world.pass_time(minutes=1)
    world.fire()
    assert world.states() == {"12:11": "submitted"}


def test_a_changed_schedule_begins_anew_and_one_that_left_is_forgotten(world: World) -> None:
    world.lead(catch_up="latest")
    world.pass_time(hours=1, seconds=30)
    world.lead(cron="*/30 * * * *", catch_up="latest")
    world.fire()
    assert world.history() == []
    world.ledger.adopt({"other": "* * * * * UTC"}, world.now, world.token)
    assert world.ledger.standing("beat") is None
    world.fire()
    assert world.history() == []


def test_a_run_by_hand_is_beside_the_clock(world: World) -> None:
    world.lead()
    tick = tick_of("beat", NOON + timedelta(seconds=90, microseconds=5), manual=True)
    assert tick.submission_id == "sched-beat-20261122T120130.000005Z"
    world.ledger.record([tick])
    world.pass_time(minutes=2)  # Whoever submitted it died: the leader goes on. Neither ticks is lost to it.
    world.fire()
    assert world.states() == {"12:01": "submitted", "12:02": "skipped"}
    assert [tick.manual for tick in world.history()] == [False, True, False]
    assert tick.submission_id in world.cluster.jobs


@pytest.mark.parametrize(("overlap", "state"), [("skip", "skipped"), ("queue", "pending")])
def test_a_run_by_hand_does_not_hide_the_job_before_it(world: World, overlap: str, state: str) -> None:
    world.lead(overlap=overlap)
    world.pass_time(minutes=1)
    world.fire()
    for seconds in (70, 80):
        by_hand = tick_of("beat", NOON + timedelta(seconds=seconds, microseconds=5), manual=True)
        world.ledger.record([by_hand])
        world.fire()
        world.cluster.jobs[by_hand.submission_id] = "SUCCEEDED"
    world.pass_time(minutes=1)
    world.fire()
    assert world.history()[-1].state == state
    assert world.history()[-1].message == "sched-beat-20261122T120100Z still runs"
    world.cluster.end()
    world.cluster.jobs["sched-beat-20261122T120110.000005Z"] = "RUNNING"
    world.pass_time(minutes=1)
    world.fire()
    # Not only the newest of those by hand is in the way, too.
    assert "sched-beat-20261122T120110.000005Z still runs" in {tick.message for tick in world.history()}
    assert len(world.cluster.jobs) == 3
    world.cluster.end()
    world.pass_time(minutes=1)
    world.fire()
    assert len(world.cluster.jobs) == 4


def change(world: World) -> None:
    world.lead(cron="30 * * * *", overlap="queue")


def remove_and_add(world: World) -> None:
    world.ledger.adopt({}, world.now, world.token)
    world.pass_time(days=21)
    world.lead(overlap="queue")


def pause(world: World) -> None:
    world.pause()


def pause_and_resume(world: World) -> None:
    world.pause()
    world.pass_time(days=21)
    world.pause(False)


@pytest.mark.parametrize("begin_anew", [change, remove_and_add, pause, pause_and_resume])
def test_a_schedule_that_begins_anew_gives_up_what_waited(
    world: World, begin_anew: Callable[[World], None]
) -> None:
    world.lead(overlap="queue")
    for _ in range(3):
        world.pass_time(minutes=1)
        world.fire()
    assert world.states() == {"12:01": "submitted", "12:02": "pending", "12:03": "pending"}
    begin_anew(world)
    world.cluster.end()
    world.cluster.away = True
    world.fire()
    assert world.states()["12:02"] == "pending"  # Whether its job is there is not known.
    world.cluster.away = False
    world.fire()
    assert world.states() == {"12:01": "submitted", "12:02": "skipped", "12:03": "skipped"}
    assert "changed, paused or removed" in str(world.history()[-1].message)
    assert list(world.cluster.jobs) == ["sched-beat-20261122T120100Z"]


@pytest.mark.parametrize(("moment", "state"), [("before", "skipped"), ("after", "submitted")])
def test_what_a_killed_leader_had_submitted_is_not_given_up(world: World, moment: str, state: str) -> None:
    world.lead()
    world.pass_time(minutes=1)
    world.cluster.kill = moment
    with pytest.raises(Killed):
        world.fire()
    world.cluster.kill = None
    world.pass_time(seconds=20)
    world.lead(cron="*/2 * * * *")
    world.pass_time(minutes=1)
    world.fire()
    # A job that is there stands in the way of the next, as any.
    assert world.states() == {"12:01": state, "12:02": "skipped" if moment == "after" else "submitted"}


def test_while_a_schedule_is_paused_a_run_by_hand_goes_on(world: World) -> None:
    world.lead()
    world.pause()
    world.ledger.record([tick_of("beat", NOON + timedelta(seconds=30, microseconds=5), manual=True)])
    world.pass_time(minutes=2)
    world.fire()
    assert world.states() == {"12:00": "submitted"}


def test_of_two_that_submit_one_tick_the_one_whose_job_is_there_has_the_last_word(world: World) -> None:
    world.lead()
    tick = tick_of("beat", NOON + timedelta(seconds=30, microseconds=5), manual=True)
    world.ledger.record([tick])
    assert world.ledger.settle(tick, TickState.FAILED, "No such file.")
    assert world.ledger.settle(tick, TickState.SUBMITTED, None, world.token)
    assert not world.ledger.settle(tick, TickState.FAILED, "No such file.")
    [kept] = world.history()
    assert (kept.state, kept.message) == (TickState.SUBMITTED, None)
