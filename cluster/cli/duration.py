"""Durations as words of a command: 7d, 12h, 90m, 30s."""

from __future__ import annotations

import re
import reprlib
from datetime import timedelta
from typing import Any

import click

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_LONGEST = timedelta(days=36_500)


class Duration(click.ParamType[timedelta]):
    """A duration such as 7d, 12h, 90m or 30s.

    :param zero: whether it may be 0.
    """

    name = "duration"

    def __init__(self, *, zero: bool = True) -> None:
        self._zero = zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read it, or fail with a sentence."""
        if isinstance(value, timedelta):
            return value
        shown = reprlib.repr(value)
        parts = re.fullmatch(r"(\d+)([smhd])", value)
        if parts is None:
            self.fail(f"{shown} is no {self.name}: write a number and s, m, h or d, e.g. 7d", param, ctx)
        try:
            found = timedelta(**{_UNITS[parts[2]]: int(parts[1])})
        except (OverflowError, ValueError):  # The second for numbers that even int refuses to read.
            found = timedelta.max
        if found > _LONGEST:
            self.fail(f"{shown} is too long: at most {_LONGEST.days}d", param, ctx)
        if not found and not self._zero:
            self.fail(f"{shown} is over at once: write a longer one, e.g. 7d", param, ctx)
        return found
