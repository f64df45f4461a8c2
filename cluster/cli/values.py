"""Words of a command: amounts of money, and none."""

from __future__ import annotations

import reprlib
from decimal import Decimal, InvalidOperation
from typing import Any

import click

#: Takes a restriction away.
NONE = "none"


class Amount(click.ParamType[Decimal]):
    """An amount of money such as 5 or 0.25; its contract says how large and how fine it may be."""

    name = "amount"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        """Read it, or fail with a sentence."""
        try:
            found = Decimal(value)
        except (InvalidOperation, ValueError):
            self.fail(f"{reprlib.repr(value)} is no {self.name}: write a number, e.g. 5 or 0.25", param, ctx)
        if not found.is_finite() or found < 0:
            self.fail(f"{reprlib.repr(value)} is no {self.name} of money: write 0 or more", param, ctx)
        return found


class OrNone(click.ParamType[Any]):
    """What another type reads, or the word none."""

    def __init__(self, inner: click.ParamType[Any]) -> None:
        self._inner = inner
        self.name = inner.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it, or fail with the other type's sentence."""
        return NONE if value == NONE else self._inner.convert(value, param, ctx)
