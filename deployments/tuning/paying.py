"""What a training costs counts on its key's budgets: held before it begins, settled once it has ended.

A job is a holder of its own in the ledger, by its id. All that is said of it is a total, so whoever takes the
job over may say it again. As with requests it counts in the period that the job came in, what it may cost is
a token for every four bytes of its conversations in JSON (roles and quotes make up for what a chat template
adds), and what it did cost counts, even if that is more. Only a job that succeeds costs anything.
"""

from __future__ import annotations

from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING

from cluster.budgets import Claim, budgets_of, period
from cluster.contracts import ApiKey
from cluster.contracts.tuning import TuningRecord, TuningStatus
from cluster.errors import RefusedError

if TYPE_CHECKING:
    from cluster.budget_ledger import BudgetLedger

_BYTES_PER_TOKEN = 4
_NOTHING = Decimal(0)


class Payments:
    """Fine-tuning jobs' entries in the ledger of budgets; every method raises UnavailableError."""

    def hold(self, record: TuningRecord, key: ApiKey, size: int) -> None:
        """Hold what it may cost. Raises RefusedError if a budget has not so much left.

        :param record: with its price and the number of its epochs.
        :param size: bytes that an epoch reads.
        """
        assert record.chosen is not None
        assert isinstance(record.chosen.n_epochs, int)
        most = record.cost(record.chosen.n_epochs * (size // _BYTES_PER_TOKEN + 1))
        claims = _claims(record, key, _NOTHING, most)
        granted = self._ledger.settle(record.id, claims) if claims and most else []
        short = [claim for claim, held in zip(claims, granted, strict=False) if held < most]
        if short:
            self._ledger.settle(record.id, _claims(record, key, _NOTHING, _NOTHING))
            raise RefusedError(
                f"You exceeded your current quota: this training may cost {most.normalize():f}, and its key "
                f"has less left of its budget of {short[0].budget:f} for {short[0].period}."
            )

    def settle(self, record: TuningRecord, key: ApiKey) -> None:
        """What is held goes back, and what it cost counts."""
        succeeded = record.status is TuningStatus.SUCCEEDED
        spent = record.cost(record.trained_tokens or 0) if succeeded else _NOTHING
        if claims := _claims(record, key, spent, spent):
            self._ledger.settle(record.id, claims)

    @cached_property
    def _ledger(self) -> BudgetLedger:
        from cluster.budget_ledger import BudgetLedger
        from cluster.settings import load_settings

        return BudgetLedger(load_settings().database_url)


def _claims(record: TuningRecord, key: ApiKey, spent: Decimal, wanted: Decimal) -> list[Claim]:
    return [
        Claim(key.id, period(span, record.created_at), budget, spent, wanted)
        for span, budget in budgets_of(key.limits)
    ]
