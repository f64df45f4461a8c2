"""Budgets on SQLite and PostgreSQL, over replicas and processes: exact, overspent by leases at most."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import cycle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from cluster.budget_ledger import BudgetLedger
from cluster.budgets import Claim, next_period, period
from cluster.contracts import ApiKey, KeyLimits, Price
from cluster.database import Database
from cluster.errors import UnavailableError
from deployments.gateway import budget
from deployments.gateway.budget import Budgets
from deployments.gateway.errors import ApiError
from tests.unit.test_runs import in_processes

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
#: A cent for each token.
CENT = Price(input_per_million_tokens=Decimal(10_000), output_per_million_tokens=Decimal(10_000))
STEP = Decimal("0.1")


def key(key_id: str = "bot", **budgets: object) -> ApiKey:
    return ApiKey(id=key_id, sha256="0" * 64, team="t", limits=KeyLimits.model_validate(budgets))


def claim(spent: object, wanted: object, budget: object = 10, name: str = "2026-11-30") -> Claim:
    return Claim("bot", name, Decimal(str(budget)), Decimal(str(spent)), Decimal(str(wanted)))


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long SQL takes, it is waited for."""
    for name in ("_PATIENCE_S", "_FAREWELL_S"):
        monkeypatch.setattr(budget, name, 600.0)


class Replica:
    """One replica's budgets, and the time that it sees."""

    def __init__(self, url: str, name: str, share: float = 0.01, interval_s: float = 3600.0) -> None:
        self.now = NOON
        self.away = False
        self._url, self._ledger = url, None
        self.budgets = Budgets(lambda: self, name, share=share, interval_s=interval_s, now=lambda: self.now)

    def settle(self, holder: str, claims: Sequence[Claim]) -> list[Decimal]:
        if self.away:
            raise UnavailableError("The database does not answer.")
        self._ledger = self._ledger or BudgetLedger(self._url)
        return self._ledger.settle(holder, claims)

    def ask(self, asker: ApiKey, tokens: int = 1, used: int | None = None) -> str | None:
        """One request; the code that it is refused with, or None."""
        try:
            with self.budgets.hold(asker, CENT, tokens, 0) as hold:
                hold.cost = CENT.cost(tokens if used is None else used, 0)
        except ApiError as error:
            return error.code
        return None


# Prices


@settings(deadline=None)
@given(st.integers(0, 10**7), st.integers(0, 10**7), st.decimals(0, 1000, places=6))
def test_a_cost_is_exact(prompt: int, answer: int, price: Decimal) -> None:
    made = Price(input_per_million_tokens=price, output_per_million_tokens=2 * price)
    assert made.cost(prompt, answer) * 10**12 == int(price * 10**6) * (prompt + 2 * answer)


# The ledger


def test_what_is_granted_spent_and_given_back(database_url: str) -> None:
    ledger = BudgetLedger(database_url)
    assert ledger.settle("a", [claim(0, 6)]) == [6]
    assert ledger.settle("b", [claim(0, 6)]) == [4]
    # Spent more than was granted: nobody else gets what is over.
    assert ledger.settle("b", [claim(4.5, 5)]) == [4]
    assert ledger.settle("c", [claim(0, 1)]) == [0]
    assert ledger.settle("a", [claim(1, 1)]) == [1]
    assert ledger.settle("c", [claim(0, 9)]) == [Decimal("4.5")]
    assert ledger.settle("c", [claim(0, 9)]) == [Decimal("4.5")]  # Said twice, it counts once.
    (use,) = ledger.use("bot", KeyLimits(budget_day=Decimal(10)), NOON)
    assert (use.spent, use.reserved, use.left) == (Decimal("5.5"), Decimal("4.5"), 0)
    # Another day and another key have budgets of their own.
    assert ledger.settle("a", [claim(0, 6, name="2026-12-01")]) == [6]
    assert ledger.use("else", KeyLimits(budget_day=Decimal(10)), NOON)[0].left == 10


def test_a_late_report_takes_nothing_back(database_url: str) -> None:
    ledger = BudgetLedger(database_url)
    ledger.settle("a", [claim(3, 4)])
    ledger.settle("a", [claim(1, 4)])
    (use,) = ledger.use("bot", KeyLimits(budget_day=Decimal(10)), NOON)
    assert (use.spent, use.reserved) == (3, 1)


def test_billionths_add_up(database_url: str) -> None:
    ledger = BudgetLedger(database_url)
    for holder in ("a", "b", "c"):
        ledger.settle(holder, [claim("0.000000001", 1)])
    (use,) = ledger.use("bot", KeyLimits(budget_day=Decimal(10)), NOON)
    assert use.spent == Decimal("0.000000003")
    most = Decimal("999999999.999999")
    assert ledger.settle("d", [claim(0, most, most)])[0] > 0


def test_leases_of_long_ago_go_and_their_sum_stays(database_url: str) -> None:
    ledger = BudgetLedger(database_url)
    ledger.settle("a", [claim(3, 4, name="2026-01-01"), claim(1, 1)])
    database = Database(database_url)
    with database.write() as connection:
        long_ago = {"then": datetime.now(UTC).replace(tzinfo=None) - timedelta(days=94)}
        old = text("UPDATE budget_leases SET told_at = :then WHERE period = '2026-01-01'")
        connection.execute(old, long_ago)
    ledger.settle("a", [claim(1, 1)])
    with database.read() as connection:
        count = text("SELECT count(*) FROM budget_leases")
        assert connection.scalar(count) == 2
        ledger.settle("a", [claim(0, 1, name="2026-12-01")])
    with database.read() as connection:
        assert connection.scalar(count) == 2
        committed = text("SELECT committed FROM budget_periods WHERE period = '2026-01-01'")
        assert connection.scalar(committed) == 4 * 10**9


def _settle_often(url: str, holder: str, times: int) -> Decimal:
    ledger, granted = BudgetLedger(url), Decimal(0)
    for number in range(times):
        granted = ledger.settle(holder, [claim(granted, granted + 1), claim(0, number, name="2026-11")])[0]
    return granted


def test_processes_that_take_leases_at_once_never_get_more_than_the_budget(database_url: str) -> None:
    granted = in_processes(_settle_often, [(database_url, f"r{number}", 8) for number in range(3)])
    assert sum(granted) == 10


@pytest.mark.parametrize(
    ("moment", "day", "month"),
    [
        ("2026-11-30T23:59:59.999999+00:00", "2026-12-01", "2026-12-01"),
        ("2026-12-31T12:00:00+00:00", "2027-01-01", "2027-01-01"),
        ("2028-02-28T01:00:00+00:00", "2028-02-29", "2028-03-01"),
        ("2026-12-01T01:00:00+02:00", "2026-12-01", "2026-12-01"),  # Still November in UTC.
    ],
)
def test_periods_end_at_midnight_in_utc(moment: str, day: str, month: str) -> None:
    now = datetime.fromisoformat(moment)
    assert next_period("day", now) == datetime.fromisoformat(f"{day}T00:00:00+00:00")
    assert next_period("month", now) == datetime.fromisoformat(f"{month}T00:00:00+00:00")
    assert period("day", next_period("day", now)) == day
    assert period("month", now) != period("month", next_period("month", now))


# Replicas


async def test_a_budget_is_spent_to_its_end_and_refused_beyond(database_url: str) -> None:
    replica, bot = Replica(database_url, "a"), key(budget_day=1, budget_month=100)
    codes = []
    for _ in range(105):
        codes.append(replica.ask(bot))
        await replica.budgets.settle()
    assert codes == [None] * 100 + ["insufficient_quota"] * 5
    assert replica.ask(key("other", budget_day=1)) is None
    assert replica.ask(key("unpriced")) is None
    with pytest.raises(ApiError) as refused, replica.budgets.hold(bot, CENT, 1, 0):
        pass
    assert (refused.value.status, refused.value.kind) == (429, "insufficient_quota")
    assert "its budget of 1 a day. The next one begins at 2026-12-01T00:00:00Z." in refused.value.message
    assert refused.value.headers == {"x-should-retry": "false"}
    with replica.budgets.hold(bot, None, 1, 0):  # A model without a price.
        pass


async def test_a_new_day_begins_anew_and_the_month_goes_on(database_url: str) -> None:
    replica, bot = Replica(database_url, "a", share=1.0), key(budget_day=1, budget_month=Decimal("1.5"))
    replica.now = datetime(2026, 11, 29, 23, 59, tzinfo=UTC)
    assert replica.ask(bot, 100) is None
    assert replica.ask(bot) == "insufficient_quota"
    replica.now += timedelta(minutes=1)
    await replica.budgets.settle()
    assert replica.ask(bot, 50) is None
    assert replica.ask(bot) == "insufficient_quota"  # The month's.
    replica.now += timedelta(days=1)
    assert replica.ask(bot, 100) is None
    await replica.budgets.settle()
    ledger = BudgetLedger(database_url)
    spent = [
        [use.spent for use in ledger.use("bot", bot.limits, NOON + timedelta(days=days))]
        for days in (-1, 0, 1)
    ]
    assert spent == [[1, Decimal("1.5")], [Decimal("0.5"), Decimal("1.5")], [1, 1]]


async def test_replicas_overspend_by_their_leases_at_most(database_url: str) -> None:
    bot, all_ = key(budget_day=10), [Replica(database_url, f"r{number}") for number in range(3)]
    granted, codes, turns = 0, [], cycle(all_)
    for number in range(1500):
        replica = next(turns)
        codes.append(replica.ask(bot))
        granted += codes[-1] is None
        if number % 10 == 0:  # SQL is asked now and then only.
            await replica.budgets.settle()
    assert Decimal(granted) / 100 <= 10 + 3 * STEP
    assert Decimal(granted) / 100 >= 10 - 3 * STEP
    assert codes[-1] == "insufficient_quota"


async def test_without_the_database_a_replica_spends_two_leases_and_no_more(database_url: str) -> None:
    replica, bot = Replica(database_url, "a"), key(budget_day=10)
    assert replica.ask(bot) is None
    await replica.budgets.settle()
    replica.away = True
    codes = []
    for _ in range(40):
        codes.append(replica.ask(bot))
        await replica.budgets.settle()
    # The lease of 0.10, and one beyond it.
    assert codes == [None] * 20 + ["budget_unknown"] * 20
    replica.away = False
    await replica.budgets.settle()
    assert replica.ask(bot) is None
    (use,) = BudgetLedger(database_url).use("bot", bot.limits, NOON)
    assert use.spent == Decimal("0.21")


async def test_a_dead_replicas_lease_stays_and_an_idle_ones_goes_back(database_url: str) -> None:
    bot = key(budget_day=1)
    dead, idle, other = (Replica(database_url, name, share=0.4) for name in ("dead", "idle", "other"))
    for replica in (dead, idle):
        assert replica.ask(bot) is None
        await replica.budgets.settle()
    assert other.ask(bot) is None
    await other.budgets.settle()
    assert other.ask(bot, 17) is None
    assert other.ask(bot) == "insufficient_quota"
    idle.now += timedelta(minutes=1)
    await idle.budgets.settle()
    await other.budgets.settle()
    assert other.ask(bot, 40) is None
    await other.budgets.settle()
    assert other.ask(bot) == "insufficient_quota"
    (use,) = BudgetLedger(database_url).use("bot", bot.limits, NOON)
    assert (use.spent, use.reserved) == (Decimal("0.60"), Decimal("0.40"))


async def test_what_requests_at_work_hold_may_come_back_and_is_worth_another_try(database_url: str) -> None:
    replica, bot = Replica(database_url, "a", share=1.0), key(budget_day=1)
    with replica.budgets.hold(bot, CENT, 60, 0):
        assert replica.ask(bot, 101) == "insufficient_quota"
        with pytest.raises(ApiError) as refused, replica.budgets.hold(bot, CENT, 60, 0):
            pass
        assert (refused.value.status, refused.value.retry_after_s) == (429, 1)
        with replica.budgets.hold(bot, CENT, 0, 40):
            assert replica.ask(bot) == "rate_limit_exceeded"
            await replica.budgets.settle()
            assert replica.ask(bot) == "rate_limit_exceeded"
    assert replica.ask(bot, 100, used=50) is None  # What they did not use came back.
    with replica.budgets.hold(bot, CENT, 1, 0):
        assert replica.ask(bot, 51) == "insufficient_quota"  # Whatever becomes of the one at work.


async def test_a_request_that_costs_more_than_the_leases_of_two_budgets_gets_both(database_url: str) -> None:
    replica, bot = Replica(database_url, "a", interval_s=0.01), key(budget_day=1, budget_month=10)
    await replica.budgets.start()
    for _ in range(2):
        await replica.budgets.ready(bot, CENT, 0, 50)
        assert replica.ask(bot, 50) is None
    await replica.budgets.ready(bot, CENT, 0, 50)
    assert replica.ask(bot, 50) == "insufficient_quota"  # The day's.
    await replica.budgets.stop()


async def test_a_budget_that_is_raised_lets_in_again(database_url: str) -> None:
    replica = Replica(database_url, "a", share=1.0)
    assert replica.ask(key(budget_day=0)) == "insufficient_quota"
    replica.ask(key(budget_day=1), 100)
    await replica.budgets.settle()
    assert replica.ask(key(budget_day=1)) == "insufficient_quota"
    assert replica.ask(key(budget_day=2)) == "insufficient_quota"  # Until SQL is asked.
    await replica.budgets.settle()
    assert replica.ask(key(budget_day=2)) is None


async def test_a_replica_that_ends_gives_its_lease_back(database_url: str) -> None:
    replica, bot = Replica(database_url, "a", interval_s=0.01), key(budget_day=10)
    await replica.budgets.start()
    assert replica.ask(bot) is None
    await replica.budgets.stop()
    (use,) = BudgetLedger(database_url).use("bot", bot.limits, NOON)
    assert (use.spent, use.reserved) == (Decimal("0.01"), 0)


async def test_nobody_waits_for_sql(database_url: str) -> None:
    replica, bot = Replica(database_url, "a", interval_s=0.01), key(budget_day=10)
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    released = asyncio.Event()

    def settle(holder: str, claims: Sequence[Claim]) -> list[Decimal]:
        loop.call_soon_threadsafe(asked.set)
        asyncio.run_coroutine_threadsafe(released.wait(), loop).result()
        return [item.wanted for item in claims]

    replica.settle = settle  # type: ignore[method-assign]
    await replica.budgets.start()
    assert replica.ask(bot) is None
    await asked.wait()
    for _ in range(9):
        async with asyncio.timeout(0):  # Would raise at the first wait.
            await replica.budgets.ready(bot, CENT, 1, 0)
            assert replica.ask(bot) is None
    assert replica.ask(bot) == "budget_unknown"

    # Who would be refused waits for the answer instead; all who do are provided for.
    async def ask_patiently() -> str | None:
        await replica.budgets.ready(bot, CENT, 50, 0)
        return replica.ask(bot, 50)

    waiting = [asyncio.create_task(ask_patiently()) for _ in range(5)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    released.set()
    assert await asyncio.gather(*waiting) == [None] * 5
    await replica.budgets.stop()


async def test_nobody_waits_where_waiting_is_in_vain(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica, bot = Replica(database_url, "a", interval_s=0.01), key(budget_day=1)
    replica.away = True
    await replica.budgets.start()
    assert replica.ask(bot) is None
    await replica.budgets.settle()
    async with asyncio.timeout(0):  # The database is away.
        await replica.budgets.ready(bot, CENT, 1, 0)
    assert replica.ask(bot) == "budget_unknown"
    async with asyncio.timeout(0):  # There is no money.
        await replica.budgets.ready(key("poor", budget_day=0), CENT, 1, 0)
        await replica.budgets.ready(key("free"), CENT, 1, 0)
    await replica.budgets.stop()
    silent = Replica(database_url, "b")  # Nobody asks SQL at all.
    monkeypatch.setattr(budget, "_PATIENCE_S", 0.02)
    assert silent.ask(bot) is None
    await silent.budgets.ready(bot, CENT, 1, 0)
    assert silent.ask(bot) == "budget_unknown"


async def test_who_may_cost_more_than_a_lease_waits_for_one_and_leaves_what_does_not_fit(
    database_url: str,
) -> None:
    replica, bot = Replica(database_url, "a", interval_s=0.01), key(budget_day=1)
    await replica.budgets.start()

    async def ask(tokens: int, used: int) -> str | None:
        await replica.budgets.ready(bot, CENT, 0, tokens)
        return replica.ask(bot, tokens, used)

    assert await ask(90, used=40) is None
    assert await ask(61, used=1) == "insufficient_quota"
    told = r"key bot has 0\.\d+ left of its budget of 1 a day, and this request may cost 0\.61\."
    with pytest.raises(ApiError, match=told), replica.budgets.hold(bot, CENT, 61, 0):
        pass
    assert await ask(60, used=60) is None
    assert await ask(1, used=1) == "insufficient_quota"
    await replica.budgets.stop()
    (use,) = BudgetLedger(database_url).use("bot", bot.limits, NOON)
    assert (use.spent, use.reserved) == (1, 0)


@pytest.mark.parametrize("seed", range(3))
async def test_requests_at_work_of_any_size_overspend_by_the_leases_at_most(
    database_url: str, seed: int
) -> None:
    """Three replicas with many at work at once, each of which costs all that it may, or less."""
    rng, bot = random.Random(seed), key(budget_day=10)
    replicas = [Replica(database_url, f"r{number}") for number in range(3)]
    spent, at_work = Decimal(0), list[tuple[ExitStack, Any, Decimal]]()
    for _ in range(1000):
        replica, most = rng.choice(replicas), rng.choice([1, 1, 5, 20, 150])
        with suppress(ApiError), ExitStack() as stack:
            hold = stack.enter_context(replica.budgets.hold(bot, CENT, 0, most))
            cost = CENT.cost(0, most if rng.random() < 0.7 else rng.randint(0, most))
            at_work.append((stack.pop_all(), hold, cost))
        while at_work and (len(at_work) > 30 or rng.random() < 0.5):
            stack, hold, cost = at_work.pop(rng.randrange(len(at_work)))
            hold.cost = cost
            spent += cost
            stack.close()
        replica.away = rng.random() < 0.2
        if rng.random() < 0.3:
            await replica.budgets.settle()
    for stack, hold, cost in at_work:
        hold.cost = cost
        spent += cost
        stack.close()
    assert 9 <= spent <= 10 + 3 * STEP


def _spend(url: str, name: str) -> int:
    budget._FAREWELL_S = 600.0  # In a process of its own.

    async def run() -> int:
        replica, bot, granted = Replica(url, name, interval_s=0.01), key(budget_day=10), 0
        await replica.budgets.start()
        while (code := replica.ask(bot)) != "insufficient_quota":
            granted += code is None
            await asyncio.sleep(0 if code is None else 0.005)
        await replica.budgets.stop()
        return granted

    return asyncio.run(run())


def test_processes_overspend_by_their_leases_at_most(database_url: str) -> None:
    granted = in_processes(_spend, [(database_url, f"r{number}") for number in range(3)])
    assert 10 - 3 * STEP <= Decimal(sum(granted)) / 100 <= 10 + 3 * STEP
    (use,) = BudgetLedger(database_url).use("bot", key(budget_day=10).limits, NOON)
    assert use.spent == Decimal(sum(granted)) / 100
