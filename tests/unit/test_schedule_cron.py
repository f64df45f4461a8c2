"""When schedules tick: cron fields that mean one thing only, and days on which clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.schedule.cron import Cron


def ticks(cron: Cron, after: str, until: str) -> list[str]:
    """Ticks in UTC, from the day on: ``29T01:30``."""
    found = cron.between(datetime.fromisoformat(after), datetime.fromisoformat(until))
    return [f"{tick:%dT%H:%M}" for tick in found]


# Berlin's clocks went from 02:00 to 03:00 at 01:00 UTC on March 29th, and from 03:00 to 02:00 at 01:00 UTC on
# October 25th, 2026.
SPRING = ("2026-03-27T12:00Z", "2026-03-30T12:00Z")
AUTUMN = ("2026-10-23T12:00Z", "2026-10-26T12:00Z")


def test_a_local_time_that_does_not_exist_ticks_once() -> None:
    cron = Cron("30 2 * * *", "Europe/Berlin")
    assert ticks(cron, *SPRING) == ["28T01:30", "29T01:30", "30T00:30"]


def test_a_local_time_that_exists_twice_ticks_once() -> None:
    cron = Cron("30 2 * * *", "Europe/Berlin")
    assert ticks(cron, *AUTUMN) == ["24T00:30", "25T00:30", "26T01:30"]
    # Whoever begins between the two does not take the second for the first.
    assert ticks(cron, "2026-10-25T00:40Z", AUTUMN[1]) == ["26T01:30"]


def test_two_local_times_of_one_moment_tick_once() -> None:
    cron = Cron("0 2,3 * * *", "Europe/Berlin")
    assert ticks(cron, "2026-03-28T12:00Z", "2026-03-29T12:00Z") == ["29T01:00"]


@pytest.mark.parametrize(("after", "until"), [SPRING, AUTUMN])
def test_a_schedule_of_every_hour_goes_by_time_that_passes(after: str, until: str) -> None:
    cron = Cron("*/20 * * * *", "Europe/Berlin")
    found = list(cron.between(datetime.fromisoformat(after), datetime.fromisoformat(until)))
    assert {later - tick for tick, later in pairwise(found)} == {timedelta(minutes=20)}
    assert len(found) == 3 * 24 * 3


def test_midnight_is_not_lost_after_clocks_went_forward() -> None:
    # As APScheduler's own trigger loses it in this zone.
    cron = Cron("0 0 * * *", "Europe/Berlin")
    assert ticks(cron, *SPRING) == ["27T23:00", "28T23:00", "29T22:00"]


@settings(deadline=None, max_examples=100)
@given(
    zone=st.sampled_from(
        [
            "Europe/Berlin",
            "Australia/Lord_Howe",
            "Africa/Casablanca",
            "Africa/Cairo",
            "America/Santiago",
            "UTC",
        ]
    ),
    hours=st.sets(st.integers(0, 23), min_size=1, max_size=4),
    minutes=st.sets(st.integers(0, 59), min_size=1, max_size=3),
    day=st.integers(0, 364),
)
def test_each_local_time_of_each_day_ticks_once_whatever_its_clocks_do(
    zone: str, hours: set[int], minutes: set[int], day: int
) -> None:
    cron = Cron(f"{','.join(map(str, minutes))} {','.join(map(str, hours))} * * *", zone)
    start = datetime(2026, 1, 1) + timedelta(days=day)
    wanted = set()
    for number in range(7):
        for hour in hours:
            for minute in minutes:
                local = start + timedelta(days=number, hours=hour, minutes=minute)
                # The first of two, and what does not exist by the clock of the night before: fold 0 is both.
                wanted.add(local.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC))
    first, last = min(wanted), max(wanted)
    assert list(cron.between(first - timedelta(seconds=1), last)) == sorted(wanted)
    # Wherever one begins, the next is the same.
    for moment in (first, first + timedelta(hours=50), last - timedelta(minutes=61)):
        assert cron.after(moment) == min(tick for tick in wanted if tick > moment)


def test_weekdays_are_those_that_are_named() -> None:
    cron = Cron("0 12 * * fri-mon", "UTC")
    found = cron.between(datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 11, 30, tzinfo=UTC))
    assert {f"{tick:%a}" for tick in found} == {"Fri", "Sat", "Sun", "Mon"}


def test_six_fields_begin_with_seconds() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    found = list(Cron("*/20 * * * * *", "UTC").between(start, start + timedelta(minutes=1)))
    assert [tick.second for tick in found] == [20, 40, 0]


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("0 0 * * 1", "'1' is no weekday: name it"),
        ("0 0 * * mon-fri/2", "'mon-fri/2' is no weekday"),
        ("0 0 * * */2", "is no weekday"),
        ("0 0 13 * fri", "names a day of the month and a weekday"),
        ("0 0 * feb-13 *", "'feb-13' is no month"),
        ("0 0 last * *", "'last' is no day"),
        ("61 * * * *", "higher than the maximum value"),
        ("0 0 30 2 *", "never comes"),
        ("0 0 * *", "has 4 fields"),
        ("", "has 0 fields"),
        ("@daily", "has 1 fields"),
    ],
)
def test_what_means_two_things_or_none_is_refused(expression: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Cron(expression, "UTC")


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../etc/passwd", "Europe"])
def test_a_zone_that_is_none_is_refused(zone: str) -> None:
    with pytest.raises(ValueError, match="there is no time zone"):
        Cron("0 0 * * *", zone)
