"""What keys may spend: each replica holds leases of money, and who has some in hand waits for nobody.

Prices are the routes' (money for a million tokens, exact decimals), budgets the keys', for a day and a month
in UTC. What a request costs counts in the period that it came in. SQL is the truth
(:mod:`cluster.budget_ledger`); this replica tells it in the background what was spent, and gets a lease for
what comes next. A request is let in if the most that it can cost fits in what the replica has left; that
much is held until it has ended, and then what it did cost counts:

- SQL's last answer gave all that was wanted: the lease, and as much as one lease beyond it. So neither the
  first request of a key waits for SQL nor do the next ones while the database is away;
- it gave less, for the budget has no more: the lease alone. What does not fit there is answered 429
  ``insufficient_quota``, which official clients do not try again, while a cheaper request may still be let
  in; the ledger is asked anew as long as somebody asks here;
- it does not fit in both and SQL could not answer yet (or it alone costs more than a lease): the request
  waits for that, two seconds at most, instead of being refused;
- it does not fit in both and SQL does not answer: 503 with ``Retry-After``. Nobody knows whether money is
  left, so nothing goes on unbounded.

The most that a request can cost is that of its prompt, a token for every four bytes of its body, and of all
tokens that its answers may have. A request which names no maximum gets one, and the engine keeps to it: the
key's or the gateway's ``max_output_tokens``, else ``budgeted_output_tokens``. The model's context would be
too much: few such requests could be at work at once, and small budgets would let none in at all.

A lease is ``budget_lease_share`` of the budget, or what the key spent here since the last answer if that is
more. Together replicas overspend a budget by at most one such share each; beyond that only by prompts of
more than a token for four bytes (digits, some scripts; a filled-in template) in the last requests that are
let in. An idle key's lease goes back; a replica that is killed keeps its one from others until the period
ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Protocol

from cluster.budgets import Claim, Span, budgets_of, next_period, period
from cluster.contracts import ApiKey, Price
from deployments.gateway.errors import ApiError

logger = logging.getLogger("ray.serve")
#: A lease that nobody used for so long goes back.
_IDLE = timedelta(seconds=30)
#: Between two questions to SQL, however many requests are in need.
_BREATH_S = 0.05
#: Most seconds that a request waits for SQL where it would be refused otherwise.
_PATIENCE_S = 2.0
#: Most seconds that a replica which ends waits for SQL to take its leases back.
_FAREWELL_S = 5.0
_NOTHING = Decimal(0)
_NEVER = datetime.min.replace(tzinfo=UTC)
_SMALLEST = Decimal("1e-9")


class Ledger(Protocol):
    """Where budgets are kept."""

    def settle(self, holder: str, claims: Sequence[Claim]) -> list[Decimal]:
        """What ``holder`` now holds of each; it may wait for long, or raise."""
        ...


@dataclass
class Meter:
    """One budget of one key in one period, as this replica has it. Totals since the period began."""

    key_id: str
    span: Span
    period: str
    ends_at: datetime
    budget: Decimal
    #: What the lease grows by.
    step: Decimal
    spent: Decimal = _NOTHING
    #: The most that requests at work can cost.
    reserved: Decimal = _NOTHING
    #: The most that requests which wait can cost.
    waiting: Decimal = _NOTHING
    granted: Decimal = _NOTHING
    #: SQL's last answer was less than what was wanted.
    used_up: bool = False
    #: Somebody asked since SQL was.
    asked: bool = False
    asked_at: datetime = _NEVER
    #: What SQL knows.
    told: Decimal | None = None

    @property
    def taken(self) -> Decimal:
        """Spent, or likely to be soon."""
        return self.spent + self.reserved

    @property
    def left(self) -> Decimal:
        """What may be spent without asking."""
        beyond = _NOTHING if self.used_up else self.step
        return min(self.granted + beyond, self.budget) - self.taken

    @property
    def low(self) -> bool:
        """Whether SQL should be asked before the interval is over."""
        return not self.used_up and self.granted - self.taken - self.waiting < self.step / 2

    def over(self, most: Decimal) -> bool:
        """Whether it is known that the budget has not so much left for this replica."""
        return self.used_up or self.taken + most > self.budget

    def wanted(self, now: datetime) -> Decimal:
        """What it wants to hold in all: nothing beyond what is taken once nobody uses it."""
        if self.ends_at <= now or self.asked_at + _IDLE <= now:
            return self.taken
        return self.taken + self.waiting + max(self.step, self.spent - (self.told or _NOTHING))

    def news(self, now: datetime) -> bool:
        """Whether there is anything to say to SQL."""
        return self.asked or self.spent != self.told or self.wanted(now) < self.granted

    def refusal(self, most: Decimal) -> ApiError:
        """The answer to a request that costs ``most`` at most, for which not enough is left."""
        if self.over(most):
            why = f"has used its budget of {self.budget:f} a {self.span}."
            if self.left > 0:  # A request that names a lower maximum may fit.
                why = (
                    f"has {_plain(self.left)} left of its budget of {self.budget:f} a {self.span}, "
                    f"and this request may cost {_plain(most)}."
                )
            return ApiError(
                429,
                f"You exceeded your current quota: key {self.key_id} {why} "
                f"The next one begins at {self.ends_at:%Y-%m-%dT%H:%M:%SZ}.",
                kind="insufficient_quota",
                code="insufficient_quota",
                headers={"x-should-retry": "false"},  # OpenAI's clients try again after any other 429.
            )
        return ApiError(
            503,
            f"What is left of the budget of key {self.key_id} is not known now; please try again.",
            kind="server_error",
            code="budget_unknown",
            retry_after_s=1,
        )


@dataclass
class Hold:
    """One request's part of its key's budgets."""

    meters: list[Meter] = field(default_factory=list)
    #: Money that it cost in the end.
    cost: Decimal = _NOTHING


class Budgets:
    """One replica's part of all keys' budgets.

    :param ledger: makes the ledger, off the event loop, when a key with a budget is first used.
    :param holder: this replica's own name, which none before it had and none after it will.
    :param share: part of a budget that a lease is.
    :param interval_s: seconds between reports of what was spent.
    :param now: the time, with a zone.
    """

    def __init__(
        self,
        ledger: Callable[[], Ledger],
        holder: str,
        *,
        share: float,
        interval_s: float,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._make_ledger = ledger
        self._ledger: Ledger | None = None
        self._holder = holder
        self._share = Decimal(str(share))
        self._interval_s = interval_s
        self._now = now
        self._meters: dict[tuple[str, str], Meter] = {}
        self._need = asyncio.Event()
        self._answered = asyncio.Event()
        self._failing = self._stopping = False
        self._task: asyncio.Task[None] | None = None

    async def ready(self, key: ApiKey, price: Price | None, input_tokens: int, output_tokens: int) -> None:
        """Wait for SQL's answer if too little is left in hand and one is to be had; not for long.

        :param output_tokens: most tokens of the answer; it is held to them.
        """
        for meter in self._meters_of(key, price):
            most = _NOTHING if price is None else price.cost(input_tokens, output_tokens)
            if most <= meter.left or meter.over(most) or self._failing:
                continue
            meter.waiting += most
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    while not (most <= meter.left or meter.over(most) or self._failing):
                        self._need.set()
                        await self._answered.wait()
            except TimeoutError:
                return  # `hold` says what follows.
            finally:
                meter.waiting -= most
            if most > meter.left:
                self._need.set()  # What was granted for it is for others.

    @contextmanager
    def hold(self, key: ApiKey, price: Price | None, input_tokens: int, output_tokens: int) -> Iterator[Hold]:
        """Hold the most that it can cost until the context is left, and then count :attr:`Hold.cost`.

        Raises ApiError 429 if that does not fit in a budget of the key, 503 if nobody knows.
        """
        most = _NOTHING if price is None else price.cost(input_tokens, output_tokens)
        hold = Hold(self._meters_of(key, price))
        for meter in hold.meters:
            if most > meter.left:
                self._wake(meter)
                raise meter.refusal(most)
        for meter in hold.meters:
            meter.reserved += most
            self._wake(meter)
        try:
            yield hold
        finally:
            for meter in hold.meters:
                meter.reserved -= most
                meter.spent += hold.cost

    async def start(self) -> None:
        """Tell SQL from now on, as long as there is something to tell."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Tell SQL what was spent and give leases back, if it answers soon."""
        if self._task is None:
            return
        self._stopping = True
        self._need.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):  # Cancels the task if SQL does not answer.
                await self._task
                for meter in self._meters.values():
                    meter.asked, meter.asked_at = False, self._now() - _IDLE
                await self.settle()

    async def settle(self) -> None:
        """Say to SQL what is new, and take what it grants."""
        now = self._now()
        meters = [meter for meter in self._meters.values() if meter.news(now)]
        if not meters:
            return
        claims = []
        for meter in meters:
            wanted = meter.wanted(now)
            meter.granted = min(meter.granted, wanted)  # What goes back is not spent meanwhile.
            meter.asked = False
            claims.append(Claim(meter.key_id, meter.period, meter.budget, meter.spent, wanted))
        try:
            grants = await asyncio.to_thread(self._ask, claims)
        except Exception as error:  # Whatever it is, requests go on with what is in hand.
            self._complain(error)
            for meter in meters:
                meter.asked = True
            self._tell_waiting()
            return
        self._failing = False
        for meter, claim, granted in zip(meters, claims, grants, strict=True):
            meter.granted, meter.told = granted, claim.spent
            meter.used_up = granted < claim.wanted
        self._tell_waiting()
        over = [key for key, meter in self._meters.items() if meter.ends_at <= now and not meter.news(now)]
        for key in over:
            if not self._meters[key].reserved:
                del self._meters[key]

    def _ask(self, claims: Sequence[Claim]) -> list[Decimal]:
        if self._ledger is None:
            self._ledger = self._make_ledger()
        return self._ledger.settle(self._holder, claims)

    def _tell_waiting(self) -> None:
        self._answered.set()
        self._answered = asyncio.Event()

    def _meters_of(self, key: ApiKey, price: Price | None) -> list[Meter]:
        if price is None:
            return []
        return [self._meter(key, span, budget) for span, budget in budgets_of(key.limits)]

    def _meter(self, key: ApiKey, span: Span, budget: Decimal) -> Meter:
        now = self._now()
        name = period(span, now)
        meter = self._meters.get((key.id, name))
        step = max(budget * self._share, _SMALLEST)
        if meter is None:
            meter = Meter(key.id, span, name, next_period(span, now), budget, step)
            self._meters[key.id, name] = meter
        meter.budget, meter.step = budget, step  # They may have changed.
        meter.asked, meter.asked_at = True, now
        return meter

    def _wake(self, meter: Meter) -> None:
        if meter.low and not self._failing:
            self._need.set()

    def _complain(self, error: Exception) -> None:
        if not self._failing:
            logger.warning("Budgets are kept from leases alone: %s: %s", type(error).__name__, error)
        self._failing = True

    async def _run(self) -> None:
        while not self._stopping:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._need.wait()
            self._need.clear()
            if not self._stopping:
                await self.settle()
                await asyncio.sleep(_BREATH_S)


def _plain(amount: Decimal) -> str:
    """Without zeros at its end."""
    return f"{amount.normalize():f}"
