"""The gate before a model is promoted: limits, and a decision that gives its reasons."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from validation.models.scoring import Scorecard


class GateConfig(BaseModel):
    """What a tuned model must reach. A limit that is absent is not checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_rows: int = Field(100, ge=1, description="Held-out rows that must have been scored.")
    min_accuracy: float | None = Field(None, ge=0, le=1, description="Least accuracy.")
    min_valid: float | None = Field(0.95, ge=0, le=1, description="Least share of valid answers.")
    min_recall: float | None = Field(None, ge=0, le=1, description="Least recall of every label.")
    min_gain: float | None = Field(0.0, ge=-1, le=1, description="Least gain in accuracy over the base.")
    max_p_value: float | None = Field(
        0.05, gt=0, le=1, description="The difference to the base must be this unlikely to be chance."
    )


class GateCheck(BaseModel):
    """One limit, and whether it was kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="The limit's name in the configuration.")
    passed: bool = Field(description="Whether it was kept.")
    value: float | None = Field(description="What was measured; none if there was nothing to measure.")
    limit: float = Field(description="The limit.")
    says: str = Field(description="The same in words.")


class GateDecision(BaseModel):
    """All checks; passed only if every one is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checks: list[GateCheck] = Field(description="In the order of the configuration.")

    @property
    def passed(self) -> bool:
        """Whether every limit was kept."""
        return all(check.passed for check in self.checks)

    @property
    def reasons(self) -> list[str]:
        """What speaks against promotion; empty if nothing does."""
        return [check.says for check in self.checks if not check.passed]


def decide(card: Scorecard, gate: GateConfig) -> GateDecision:
    """Hold a scorecard against the limits. Pure: equal arguments, equal decision."""
    tuned = card.models["tuned"]
    checks = [_at_least("min_rows", "scored rows", card.rows, gate.min_rows, "d")]
    if gate.min_accuracy is not None:
        checks.append(_at_least("min_accuracy", "accuracy", tuned.accuracy, gate.min_accuracy))
    if gate.min_valid is not None:
        valid = tuned.valid / card.rows if card.rows else None
        checks.append(_at_least("min_valid", "share of valid answers", valid, gate.min_valid))
    if gate.min_recall is not None:
        checks += [
            _at_least(f"min_recall[{label}]", f"recall of {label!r}", found.recall, gate.min_recall)
            for label, found in tuned.classes.items()
        ]
    if gate.min_gain is not None:
        checks.append(_at_least("min_gain", "gain over the base", card.comparison.gain, gate.min_gain))
    if gate.max_p_value is not None:
        p_value, limit = card.comparison.p_value, gate.max_p_value
        passed = p_value <= limit
        says = f"the difference to the base may be chance (p {p_value:.2g}, {limit:g} allowed)"
        if passed:
            says = f"the difference to the base is no chance (p {p_value:.2g}, {limit:g} allowed)"
        checks.append(GateCheck(name="max_p_value", passed=passed, value=p_value, limit=limit, says=says))
    return GateDecision(checks=checks)


def _at_least(name: str, what: str, value: float | None, limit: float, form: str = ".1%") -> GateCheck:
    if value is None:
        said = f"{what} is unknown: no row of the kind was scored ({limit:{form}} required)"
        return GateCheck(name=name, passed=False, value=None, limit=limit, says=said)
    said = f"{what} is {value:{form}} ({limit:{form}} required)"
    return GateCheck(name=name, passed=value >= limit, value=value, limit=limit, says=said)
