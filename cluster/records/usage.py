"""Who used how much: sums over the audit, and over the trainings on record.

Rows of batches are requests in the audit. A training is none: it counts, as on its key's budgets, once it has
succeeded, at the time at which its job came in, and for the model that it was of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from cluster.records.reading import read
from cluster.storage import ObjectStore

if TYPE_CHECKING:
    import pyarrow as pa

    from cluster.tuning import TuningRepository

By = Literal["key", "model", "day"]
_COLUMNS: dict[By, tuple[str, ...]] = {"key": ("team", "key_id"), "model": ("model",), "day": ("day",)}
_OUTCOMES = ("blocked", "refused", "failed", "cancelled")
_SUMMED = ("prompt_tokens", "completion_tokens", "cost")


@dataclass(frozen=True)
class Usage:
    """One line of the report: tokens as engines counted them, cost in the price list's currency."""

    #: Team and key id, public model, or day (YYYY-MM-DD, UTC); "-" where there was none.
    group: tuple[str, ...]
    #: Of a batch's row each try: it had a place, and may have cost something.
    requests: int
    blocked: int
    refused: int
    failed: int
    cancelled: int
    prompt_tokens: int
    completion_tokens: int
    #: Fine-tuning jobs that succeeded.
    trainings: int
    #: Tokens that they learned from, each epoch's.
    trained_tokens: int
    #: Of requests and trainings; None if none of them had a price.
    cost: float | None

    def document(self, by: By) -> dict[str, Any]:
        """As JSON has it."""
        names = ("team", "key") if by == "key" else (by,)
        rest = {name: value for name, value in asdict(self).items() if name != "group"}
        return dict(zip(names, self.group, strict=True)) | rest


def usage(
    store: ObjectStore,
    jobs: TuningRepository,
    by: By,
    *,
    key: str | None = None,
    team: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[Usage]:
    """The sums of every group, in order of the group.

    Raises UnavailableError or AccessError if storage or the database does not answer.
    """
    import pyarrow.dataset as ds

    where = None if key is None else ds.field("key_id") == key
    columns = ["time", "team", "key_id", "model", "outcome", *_SUMMED]
    sums: dict[tuple[str, ...], Counter[str]] = {}
    priced: set[tuple[str, ...]] = set()
    for rows in read(store, "audit", columns, team=team, since=since, until=until, where=where):
        for row in _grouped(rows, _COLUMNS[by]):
            group = tuple("-" if row[name] is None else row[name] for name in _COLUMNS[by])
            found = sums.setdefault(group, Counter())
            found["requests"] += row["time_count"]
            found[row["outcome"]] += row["time_count"]
            if row["cost_sum"] is not None:
                priced.add(group)
            for name in _SUMMED:
                found[name] += row[f"{name}_sum"] or 0
    for job in jobs.trained(team, since, until):
        if key not in (None, job.key_id):
            continue
        told = {
            "team": job.team,
            "key_id": job.key_id,
            "model": job.model,
            "day": f"{job.created_at:%Y-%m-%d}",
        }
        group = tuple(told[name] for name in _COLUMNS[by])
        found, tokens = sums.setdefault(group, Counter()), job.trained_tokens or 0
        found["trainings"] += 1
        found["trained_tokens"] += tokens
        if job.training_price is not None:
            priced.add(group)
            found["cost"] += float(job.cost(tokens))  # type: ignore[assignment]
    return [_usage(group, found, group in priced) for group, found in sorted(sums.items())]


def _grouped(table: pa.Table, names: Sequence[str]) -> list[dict[str, Any]]:
    import pyarrow.compute as pc

    table = table.append_column("day", pc.strftime(table["time"], "%Y-%m-%d"))
    sums = [("time", "count"), *((name, "sum") for name in _SUMMED)]
    rows: list[dict[str, Any]] = table.group_by([*names, "outcome"]).aggregate(sums).to_pylist()
    return rows


def _usage(group: tuple[str, ...], found: Counter[str], priced: bool) -> Usage:
    return Usage(
        group=group,
        requests=found["requests"],
        prompt_tokens=found["prompt_tokens"],
        completion_tokens=found["completion_tokens"],
        trainings=found["trainings"],
        trained_tokens=found["trained_tokens"],
        # Prices are decimal: what binary fractions add in the last places means nothing.
        cost=round(float(found["cost"]), 9) if priced else None,
        **{name: found[name] for name in _OUTCOMES},
    )
