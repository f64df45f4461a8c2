"""How models are judged: answers are scored, scores are compared, and a gate decides. Pure functions."""

from validation.models.gate import GateCheck, GateConfig, GateDecision, decide
from validation.models.regression import RegressionLimits, decide_regression
from validation.models.scoring import (
    ClassScore,
    Comparison,
    Example,
    ModelScore,
    Scorecard,
    check_labels,
    compare,
    read_label,
    score,
)
from validation.models.statistics import mcnemar_p, wilson_interval

__all__ = [
    "ClassScore",
    "Comparison",
    "Example",
    "GateCheck",
    "GateConfig",
    "GateDecision",
    "ModelScore",
    "RegressionLimits",
    "Scorecard",
    "check_labels",
    "compare",
    "decide",
    "decide_regression",
    "mcnemar_p",
    "read_label",
    "score",
    "wilson_interval",
]
