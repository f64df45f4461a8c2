"""What can be told of models that were asked the same rows: quality, latency and cost, and no more than that.

Quality is a score only where rows have a right answer: the one of ``jobs.evaluate``, with its intervals and
its paired test. Else it is what can be counted: valid JSON, guards' verdicts, answers cut, agreement.
"""

from __future__ import annotations

import hashlib
import itertools
import statistics
import unicodedata
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cluster.contracts import Manifest
from cluster.storage import ArtifactStore
from jobs.batch.estimate import PriceConfig
from jobs.batch.expectations import Expectations
from jobs.batch.rows import ERRORS, OUTPUT, read_parts
from validation.models import Comparison, ModelScore, compare, read_label, score

_COLUMNS = ["row_id", "status", "response", "finish_reason", "completion_tokens", "seconds"]
_COLUMNS += ["input_action", "output_action"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelFigures(_Part):
    """One model's batch. Shares are of ``succeeded`` where nothing else is said."""

    model: str = Field(description="As it was named.")
    batch: str = Field(description="Address of its batch.")
    reused: bool = Field(description="True if the batch was there before: latency is of that day.")
    engine: str = Field(description="warm or dedicated.")
    succeeded: int = Field(ge=0, description="Rows with an answer.")
    blocked: int = Field(ge=0, description="Rows of which a guard let nothing through.")
    failed: int = Field(ge=0, description="Rows that the engine failed.")
    score: ModelScore | None = Field(
        None, description="Against the right labels; a row without answer is wrong."
    )
    against_baseline: Comparison | None = Field(
        None, description="On the same rows: this model is tuned, the baseline is base."
    )
    json_asked: int = Field(ge=0, description="Answers to rows that asked for JSON of a known form.")
    json_valid: int = Field(ge=0, description="Of them, those that are.")
    redacted: int = Field(ge=0, description="Answers out of which a guard took something.")
    flagged: int = Field(ge=0, description="Answers that a guard let through and remarked on.")
    cut: int = Field(ge=0, description="Answers that ended at max_tokens.")
    empty: int = Field(ge=0, description="Answers without text: of tool calls alone, or of nothing.")
    tokens_per_answer: float | None = Field(description="Mean of generated tokens; none without an answer.")
    p50_s: float | None = Field(description="Median of seconds a row, among those asked at the same time.")
    p95_s: float | None = Field(description="95 % of rows took no more.")
    rows_per_s: float | None = Field(description="Rows a second once the engine ran; none if none was asked.")
    tokens_per_s: float | None = Field(description="Generated tokens a second once the engine ran.")
    start_s: float = Field(ge=0, description="Seconds until the engine took its first row.")
    prompt_tokens: int = Field(ge=0, description="Of all rows.")
    completion_tokens: int = Field(ge=0, description="Of all rows.")
    cost: float | None = Field(description="Money for all tokens; none if nobody said what they cost.")


class Agreement(_Part):
    """Two models, on rows that both answered."""

    models: tuple[str, str] = Field(description="Who.")
    rows: int = Field(ge=0, description="Rows that both answered.")
    same: int = Field(
        ge=0, description="Of them, answered alike: by label, else by text but for case and spaces."
    )


class SideBySide(_Part):
    """The whole result: ``comparison.json``."""

    rows: int = Field(ge=1, description="Rows that every model was asked.")
    expected: int = Field(ge=0, description="Of them, those with an expected answer.")
    labels: list[str] = Field(description="Labels that were scored; none if none were given.")
    baseline: str | None = Field(description="The model that others are held against; none if it failed.")
    models: list[ModelFigures] = Field(description="In the order in which they were named.")
    failed: dict[str, str] = Field(description="Models without a batch, and why.")
    agreement: list[Agreement] = Field(description="Every two models.")
    notes: list[str] = Field(description="What these figures do not tell.")


@dataclass
class Answers:
    """One model's rows, as short as comparing them allows."""

    figures: ModelFigures
    #: By row id, of answered rows: the label, else the text as 8 bytes; alike are equal.
    said: dict[str, str | bytes] = field(default_factory=dict)


def measure(
    artifacts: ArtifactStore,
    batch: Manifest,
    expected: Expectations,
    labels: Sequence[str],
    price: PriceConfig | None,
    *,
    model: str,
    reused: bool,
) -> Answers:
    """Read one batch. Raises ValueError if its rows are not the expected ones: the source was changed.

    :param model: as it was asked for now; the same weights may have been asked under another name before.
    """
    counts = dict.fromkeys(("json_asked", "json_valid", "redacted", "flagged", "cut", "empty"), 0)
    seconds, said, rows, generated = array("d"), dict[str, str | bytes](), 0, 0
    for row in _rows(artifacts, batch, _COLUMNS):
        rows += 1
        if row["row_id"] not in expected.forms:
            raise ValueError("its rows are not those of the source, which was changed meanwhile")
        if row["status"] != "succeeded":
            continue
        answer = row["response"]
        seconds.append(row["seconds"])
        generated += row["completion_tokens"]
        said[row["row_id"]] = read_label(answer, labels) or _digest(answer)
        form = expected.of_form(row["row_id"], answer)
        counts["json_asked"] += form is not None
        counts["json_valid"] += form is True
        counts["redacted"] += row["output_action"] == "redact"
        counts["flagged"] += row["output_action"] == "flag"
        counts["cut"] += row["finish_reason"] == "length"
        counts["empty"] += not answer.strip()
    if rows != expected.rows:
        raise ValueError("its rows are not those of the source, which was changed meanwhile")
    figures = ModelFigures(
        **counts,
        **_of_summary(batch.summary, price),
        model=model,
        batch=str(batch.ref),
        reused=reused,
        score=_score(said, expected, labels),
        tokens_per_answer=round(generated / len(seconds), 2) if seconds else None,
        p50_s=_quantile(seconds, 50),
        p95_s=_quantile(seconds, 95),
    )
    return Answers(figures, said)


def side_by_side(
    measured: Sequence[Answers],
    expected: Expectations,
    labels: Sequence[str],
    baseline: str,
    failed: Mapping[str, str],
) -> SideBySide:
    """All models' figures, held against each other."""
    base = next((answers for answers in measured if answers.figures.model == baseline), None)
    figures = [
        answers.figures
        if base is None or answers is base or not labels
        else answers.figures.model_copy(
            update={"against_baseline": _against(base, answers, expected, labels)}
        )
        for answers in measured
    ]
    return SideBySide(
        rows=expected.rows,
        expected=expected.answered,
        labels=list(labels),
        baseline=baseline if base is not None else None,
        models=figures,
        failed=dict(failed),
        agreement=[_agreement(*pair) for pair in itertools.combinations(measured, 2)],
        notes=list(_notes(figures, expected, labels)),
    )


def differing(measured: Sequence[Answers], most: int) -> list[str]:
    """Ids of rows that all models answered and not all alike: at most so many, the same ones each time."""
    answered = set[str].intersection(*(set(answers.said) for answers in measured))
    unlike = [row for row in answered if len({answers.said[row] for answers in measured}) > 1]
    return sorted(unlike, key=lambda row: hashlib.sha256(row.encode()).digest())[:most]


def texts(artifacts: ArtifactStore, batch: Manifest, wanted: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Prompt and answer of a few rows, by row id."""
    rows = _rows(artifacts, batch, ["row_id", "prompt", "response"])
    return {row["row_id"]: (row["prompt"], row["response"]) for row in rows if row["row_id"] in wanted}


def _rows(artifacts: ArtifactStore, batch: Manifest, columns: list[str]) -> Iterator[dict[str, Any]]:
    prefix = artifacts.prefix(batch)
    folders = tuple(f"{folder}/" for folder in (OUTPUT, ERRORS))
    keys = [prefix + file.path for file in batch.files if file.path.startswith(folders)]
    return read_parts(artifacts.store, keys, columns)


def _of_summary(summary: Mapping[str, Any], price: PriceConfig | None) -> dict[str, Any]:
    prompt, completion = (int(summary[key]) for key in ("prompt_tokens", "completion_tokens"))
    # Of the run that made it, which a resumed batch may have found little left to ask.
    running = summary["seconds"] - summary["start_s"]
    steady = summary["seconds"] / running if summary["asked"] and running > 0 else None
    return {
        **{key: summary[key] for key in ("engine", "succeeded", "blocked", "failed", "start_s")},
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "rows_per_s": round(summary["rows_per_s"] * steady, 3) if steady else None,
        "tokens_per_s": round(summary["tokens_per_s"] * steady, 3) if steady else None,
        "cost": round(price.cost(prompt, completion), 6) if price else summary.get("cost"),
    }


def _score(
    said: Mapping[str, str | bytes], expected: Expectations, labels: Sequence[str]
) -> ModelScore | None:
    if not labels:
        return None
    return score(_labels(said, expected), list(expected.labels.values()), labels)


def _against(base: Answers, other: Answers, expected: Expectations, labels: Sequence[str]) -> Comparison:
    both = {"base": _labels(base.said, expected), "tuned": _labels(other.said, expected)}
    return compare(both, list(expected.labels.values()), labels)


def _labels(said: Mapping[str, str | bytes], expected: Expectations) -> list[str]:
    """In the order of the right ones; what is no label, or no answer, is empty."""
    answers = (said.get(row) for row in expected.labels)
    return [answer if isinstance(answer, str) else "" for answer in answers]


def _agreement(one: Answers, other: Answers) -> Agreement:
    both = one.said.keys() & other.said.keys()
    return Agreement(
        models=(one.figures.model, other.figures.model),
        rows=len(both),
        same=sum(one.said[row] == other.said[row] for row in both),
    )


def _notes(figures: Sequence[ModelFigures], expected: Expectations, labels: Sequence[str]) -> Iterator[str]:
    yield (
        "Seconds a row are of rows asked side by side (warm: with their wait in the engine); a lone request"
        " is answered sooner."
    )
    if len({model.engine for model in figures}) > 1:
        yield "The models ran on different kinds of engines: their latencies are not alike in kind."
    if found := [model.model for model in figures if model.reused]:
        yield f"The batch of {', '.join(found)} was there before: its latency is of its own run."
    if labels and len(figures) > 2:
        yield "Each p-value is of its pair alone, not corrected for how many pairs there are."
    if not labels and expected.answered:
        yield f"{expected.answered} rows have an expected answer: name comparison.labels to score them."
    if not labels and not expected.answered:
        yield "Rows have no expected answer: nothing here says whether an answer is right or a refusal."
    if None in expected.checks:
        yield "A JSON schema that cannot be followed here was not checked."
    if any(model.cost is None for model in figures):
        yield "A model without a cost has no price: name comparison.prices."


def _digest(answer: str) -> bytes:
    plain = " ".join(unicodedata.normalize("NFKC", answer).casefold().split())
    return hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _quantile(values: Sequence[float], percent: int) -> float | None:
    if len(values) < 2:
        return round(values[0], 4) if values else None
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1], 4)
