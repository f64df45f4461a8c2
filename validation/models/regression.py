"""Whether a newer evaluation is worse than an accepted one: the gate of a change to the platform itself."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import UsageError
from validation.models.gate import GateCheck, GateDecision
from validation.models.scoring import Scorecard


class RegressionLimits(BaseModel):
    """What a newer evaluation of the same task may lose; shares, not percent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_drop: float = Field(0.03, ge=0, le=1, description="Most accuracy lost, tuned model and gain alike.")
    max_valid_drop: float = Field(0.02, ge=0, le=1, description="Most of the share of valid answers lost.")
    max_recall_drop: float = Field(0.06, ge=0, le=1, description="Most recall of any one label lost.")


def decide_regression(baseline: Scorecard, newer: Scorecard, limits: RegressionLimits) -> GateDecision:
    """Hold ``newer`` against ``baseline``. Pure: equal arguments, equal decision.

    Raises UsageError when the two are of different tasks, labels or numbers of rows, or one has no tuned
    model, for then their figures cannot be compared.
    """
    for what, old, new in (
        ("task", baseline.task, newer.task),
        ("labels", ", ".join(baseline.labels), ", ".join(newer.labels)),
        ("rows", baseline.rows, newer.rows),
    ):
        if old != new:
            raise UsageError(f"The scorecards cannot be compared: {what} {old} in the baseline, {new} here.")
    for card in (baseline, newer):
        if "tuned" not in card.models:
            raise UsageError(f"The scorecards cannot be compared: one has no model 'tuned' ({card.task}).")
    before, after = baseline.models["tuned"], newer.models["tuned"]
    checks = [
        _kept("accuracy", before.accuracy, after.accuracy, limits.max_drop),
        _kept("gain over the base", baseline.comparison.gain, newer.comparison.gain, limits.max_drop),
        _kept(
            "share of valid answers",
            _share(before.valid, baseline),
            _share(after.valid, newer),
            limits.max_valid_drop,
        ),
    ]
    checks += [
        _kept(f"recall of {label!r}", before.classes[label].recall, found.recall, limits.max_recall_drop)
        for label, found in after.classes.items()
    ]
    return GateDecision(checks=checks)


def _share(count: int, card: Scorecard) -> float:
    return count / card.rows if card.rows else 0.0


def _kept(what: str, before: float | None, after: float | None, most: float) -> GateCheck:
    if before is None or after is None:
        same = before is after
        says = f"{what}: no row of the kind was scored in {'both' if same else 'one of them'}"
        return GateCheck(name=what, passed=same, value=after, limit=0.0, says=says)
    least = before - most
    said = f"{what} is {after:.1%}, was {before:.1%} ({least:.1%} required)"
    # Shares of a few hundred rows are exact to far more than this.
    return GateCheck(name=what, passed=after >= least - 1e-9, value=after, limit=least, says=said)
