"""Cron expressions in a time zone, on APScheduler's ``CronTrigger``.

What is refused here would mean one thing to crontab and another to ``CronTrigger``, or nothing to one of
them: numbered weekdays (APScheduler counts Monday as 0, crontab Sunday), a day of the month together with a
weekday (crontab: either, APScheduler: both), and what its patterns read only half of (``mon-fri/2``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger

_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_NUMBERS = r"(\*|\d+(-\d+)?)(/\d+)?"
_MONTHS = rf"{_NUMBERS}|[a-z]{{3}}(-[a-z]{{3}})?"
_PATTERNS = {"second": _NUMBERS, "minute": _NUMBERS, "hour": _NUMBERS, "day": _NUMBERS, "month": _MONTHS}


class Cron(BaseTrigger):
    """When a schedule ticks; to APScheduler it is a trigger like any other.

    :param expression: five fields as in crontab (minute, hour, day of month, month, weekday), or six with
        seconds first. Weekdays and months may be named; weekdays must be.
    :param time_zone: a name of the IANA database.

    A local time that does not exist on the day that clocks go forward ticks once, when it would have come
    had they not (02:30 at 03:30). One that exists twice ticks the first time only, unless the hour is ``*``:
    then the schedule goes by time that passes and ticks in both hours.

    Raises ValueError with one sentence.
    """

    def __init__(self, expression: str, time_zone: str) -> None:
        self.fields = _fields(expression)
        self.zone = _zone(time_zone)
        self._days: dict[date, tuple[datetime, ...]] = {}
        try:
            # Given local time as if it were UTC: with the zone itself it loses the midnight after clocks have
            # gone forward, and ticks twice when they go back.
            self._trigger = CronTrigger(**self.fields, timezone=UTC)
        except ValueError as error:
            raise ValueError(f"cron {expression!r}: {error}") from None
        if self.after(datetime.now(UTC)) is None:
            raise ValueError(f"cron {expression!r} never comes: no date fits it")

    def after(self, moment: datetime) -> datetime | None:
        """The first tick later than ``moment``, in UTC; None if there is none."""
        local = moment.astimezone(self.zone).replace(tzinfo=None)
        while True:
            today = self._changing(local.date())
            if today is not None:
                later = next((tick for tick in today if tick > moment), None)
                if later is not None:
                    return later
                local = datetime.combine(local.date(), time.max)
            found = self._on_paper(local)
            if found is None:
                return None
            if self._changing(found.date()) is None:
                return found.replace(tzinfo=self.zone).astimezone(UTC)
            local = datetime.combine(found.date(), time.min)

    def between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Ticks later than ``after`` and not later than ``until``, in UTC."""
        tick = self.after(after)
        while tick is not None and tick <= until:
            yield tick
            tick = self.after(tick)

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime | None:
        """What APScheduler asks of a trigger."""
        return self.after(previous_fire_time or now - timedelta(microseconds=1))

    def _on_paper(self, local: datetime) -> datetime | None:
        """The first local time later than ``local`` that fits, whether it exists in the zone or not."""
        found = self._trigger.get_next_fire_time(local.replace(tzinfo=UTC), local.replace(tzinfo=UTC))
        return None if found is None else found.replace(tzinfo=None)

    def _changing(self, day: date) -> tuple[datetime, ...] | None:
        """The ticks of a local day on which clocks change, in UTC and in order; None for any other day."""
        begin = datetime.combine(day, time.min)
        end = begin + timedelta(days=1)
        if self.zone.utcoffset(begin) == self.zone.utcoffset(end):
            return None
        if day not in self._days:
            found: set[datetime] = set()
            local = self._on_paper(begin - timedelta(microseconds=1))
            while local is not None and local < end:
                found |= self._moments(local)
                local = self._on_paper(local)
            self._days[day] = tuple(sorted(found))
        return self._days[day]

    def _moments(self, local: datetime) -> set[datetime]:
        """When a local time ticks that may not exist, or exist twice."""
        every_hour = self.fields["hour"] == "*"
        first, second = (local.replace(tzinfo=self.zone, fold=fold).astimezone(UTC) for fold in (0, 1))
        if first.astimezone(self.zone).replace(tzinfo=None) != local:  # It does not exist.
            return set() if every_hour else {first}
        return {first, second} if every_hour else {first}


def _fields(expression: str) -> dict[str, str]:
    """The fields by CronTrigger's names, checked."""
    words = expression.lower().split()
    if len(words) not in (5, 6):
        raise ValueError(
            f"cron {expression!r} has {len(words)} fields: write minute, hour, day of month, month and"
            " weekday, with seconds first if wanted"
        )
    names = ("second", "minute", "hour", "day", "month", "day_of_week")
    fields = dict(zip(names, words if len(words) == 6 else ["0", *words], strict=True))
    for name, pattern in _PATTERNS.items():
        for part in fields[name].split(","):
            if not re.fullmatch(pattern, part):
                raise ValueError(f"cron {expression!r}: {part!r} is no {name}")
    fields["day_of_week"] = _weekdays(fields["day_of_week"], expression)
    if fields["day"] != "*" and fields["day_of_week"] != "*":
        raise ValueError(
            f"cron {expression!r} names a day of the month and a weekday, which crontab reads as either and"
            " others as both: leave one as *, and make two schedules if either is meant"
        )
    return fields


def _weekdays(text: str, expression: str) -> str:
    """Weekday names without ranges, which not every reader of cron takes round the end of a week."""
    if text == "*":
        return text
    named: set[str] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first not in _WEEKDAYS or (last or first) not in _WEEKDAYS or part.endswith("-"):
            raise ValueError(
                f"cron {expression!r}: {part!r} is no weekday: name it (mon, tue, ...), since 0 is Sunday to"
                " some and Monday to others"
            )
        start, end = _WEEKDAYS.index(first), _WEEKDAYS.index(last or first)
        named |= {_WEEKDAYS[number % 7] for number in range(start, end + 1 + 7 * (end < start))}
    return ",".join(day for day in _WEEKDAYS if day in named)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"there is no time zone {name!r}: write it as Europe/Berlin or UTC") from None
