"""Scores of answers to rows whose right answer is one word out of a few: a label."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from validation.models.statistics import mcnemar_p, wilson_interval

_WORD = re.compile(r"[^\W_]+(?:['_-][^\W_]+)*")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassScore(_Part):
    """How one model did on the rows of one label."""

    rows: int = Field(ge=0, description="Rows whose right answer is this label.")
    correct: int = Field(ge=0, description="Of them, answered with it.")
    recall: float | None = Field(description="correct / rows; none without rows.")


class ModelScore(_Part):
    """How one model did."""

    valid: int = Field(ge=0, description="Answers that are one of the labels, right or wrong.")
    correct: int = Field(ge=0, description="Answers that are the right label.")
    accuracy: float = Field(ge=0, le=1, description="correct / rows; an invalid answer is a wrong one.")
    interval: tuple[float, float] = Field(description="Wilson's 95 % interval of the accuracy.")
    classes: dict[str, ClassScore] = Field(description="By label.")


class Comparison(_Part):
    """The tuned model against the base, row by row."""

    gain: float = Field(description="Accuracy of tuned less that of base.")
    only_tuned: int = Field(ge=0, description="Rows that only the tuned model got right.")
    only_base: int = Field(ge=0, description="Rows that only the base model got right.")
    p_value: float = Field(ge=0, le=1, description="McNemar's exact two-sided p-value.")


class Example(_Part):
    """One row as the models answered it."""

    row_id: str = Field(description="Row id in the dataset.")
    prompt: str = Field(description="The last message of the user.")
    expected: str = Field(description="The right label.")
    base: str = Field(description="What the base model answered.")
    tuned: str = Field(description="What the tuned model answered.")


class Scorecard(_Part):
    """The whole result of an evaluation: ``scorecard.json``."""

    task: str = Field(description="What was asked: the dataset's name.")
    rows: int = Field(ge=0, description="Rows that both models were asked.")
    labels: list[str] = Field(description="The labels that count as valid answers.")
    models: dict[str, ModelScore] = Field(description="base and tuned.")
    comparison: Comparison = Field(description="tuned against base.")
    examples: list[Example] = Field(default_factory=list, description="A few rows to look at.")


def read_label(answer: str, labels: Sequence[str]) -> str | None:
    """The label that the answer's first word is, else None.

    Compared after NFKC and case folding, so that ``" Safe."`` is ``safe`` and ``unsafe`` is not.
    """
    word = _WORD.search(_normalised(answer))
    if word is None:
        return None
    return next((label for label in labels if _normalised(label) == word[0]), None)


def check_labels(labels: list[str]) -> list[str]:
    """The labels. Raises ValueError for one that :func:`read_label` would not read as itself."""
    for label in labels:
        if read_label(label, labels) != label:
            raise ValueError(f"{label!r} is no single word, or is there twice")
    return labels


def score(answers: Sequence[str], expected: Sequence[str], labels: Sequence[str]) -> ModelScore:
    """Score one model's answers, in the order of the right labels.

    Raises ValueError if there are not as many answers as labels.
    """
    read = [read_label(answer, labels) for answer in answers]
    right = [got == wanted for got, wanted in zip(read, expected, strict=True)]
    classes = {}
    for label in labels:
        hits = [hit for hit, wanted in zip(right, expected, strict=True) if wanted == label]
        recall = sum(hits) / len(hits) if hits else None
        classes[label] = ClassScore(rows=len(hits), correct=sum(hits), recall=recall)
    return ModelScore(
        valid=sum(got is not None for got in read),
        correct=sum(right),
        accuracy=sum(right) / len(right) if right else 0.0,
        interval=wilson_interval(sum(right), len(right)),
        classes=classes,
    )


def compare(
    answers: Mapping[str, Sequence[str]], expected: Sequence[str], labels: Sequence[str]
) -> Comparison:
    """Compare ``answers["tuned"]`` with ``answers["base"]`` on the same rows."""
    right = {
        name: [read_label(answer, labels) == wanted for answer, wanted in zip(given, expected, strict=True)]
        for name, given in answers.items()
    }
    pairs = list(zip(right["base"], right["tuned"], strict=True))
    only_tuned = sum(tuned and not base for base, tuned in pairs)
    only_base = sum(base and not tuned for base, tuned in pairs)
    return Comparison(
        gain=(only_tuned - only_base) / len(pairs) if pairs else 0.0,
        only_tuned=only_tuned,
        only_base=only_base,
        p_value=mcnemar_p(only_base, only_tuned),
    )


def _normalised(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
