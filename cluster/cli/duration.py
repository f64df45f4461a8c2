"""Durations as words of a command: 7d, 12h, 90m, 30s."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import click

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_LONGEST = timedelta(days=36_500)


class Duration(click.ParamType[timedelta]):
    """A duration such as 7d, 12h, 90m or 30s."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read it, or fail with a sentence."""
        if isinstance(value, timedelta):
            return value
        parts = re.fullmatch(r"(\d+)([smhd])", value)
        if parts is None:
            self.fail(f"{value!r} is no {self.name}: write a number and s, m, h or d, e.g. 7d", param, ctx)
        try:
            found = timedelta(**{_UNITS[parts[2]]: int(parts[1])})
        except OverflowError:
            found = timedelta.max
        if found > _LONGEST:
            self.fail(f"{value!r} is too long: at most {_LONGEST.days}d", param, ctx)
        return found
