"""Budgets of keys: their periods, and what a gateway replica and the ledger of them say to each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Literal

from cluster.contracts import KeyLimits

#: How long a budget lasts: its field is called ``budget_<span>``.
Span = Literal["day", "month"]
SPANS: tuple[Span, ...] = ("day", "month")


@dataclass(frozen=True)
class Claim:
    """What one replica says of one key in one period: totals since it began."""

    key_id: str
    period: str
    budget: Decimal
    spent: Decimal
    #: What it wants to hold in all, spent money included. Less than before gives money back.
    wanted: Decimal


@dataclass(frozen=True)
class BudgetUse:
    """One budget now. ``reserved`` is what gateways hold beyond what they have told to be spent."""

    span: Span
    period: str
    budget: Decimal
    spent: Decimal
    reserved: Decimal
    resets_at: datetime

    @property
    def left(self) -> Decimal:
        """What nobody has spent or holds."""
        return max(Decimal(0), self.budget - self.spent - self.reserved)

    def document(self) -> dict[str, str]:
        """As JSON has it; amounts are text, for a float is not what was counted."""
        amounts = {name: getattr(self, name) for name in ("budget", "spent", "reserved", "left")}
        return {
            "span": self.span,
            "period": self.period,
            **{name: f"{amount.normalize():f}" for name, amount in amounts.items()},
            "resets_at": self.resets_at.isoformat(),
        }


def period(span: Span, now: datetime) -> str:
    """The name of the period that ``now`` lies in: ``2026-11-22``, ``2026-11``."""
    return now.astimezone(UTC).strftime("%Y-%m-%d" if span == "day" else "%Y-%m")


def next_period(span: Span, now: datetime) -> datetime:
    """When the next period begins: midnight, or the first of the next month, in UTC."""
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if span == "day":
        return midnight + timedelta(days=1)
    return (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)


def budgets_of(limits: KeyLimits) -> Iterator[tuple[Span, Decimal]]:
    """The budgets that a key has."""
    for span in SPANS:
        budget: Decimal | None = getattr(limits, f"budget_{span}")
        if budget is not None:
            yield span, budget
