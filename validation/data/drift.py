"""How far two profiles are apart, column by column.

- Population stability index: PSI = sum over bins of (p - q) ln(p / q); below 0.1 stable, below 0.25 moderate,
  else large (Siddiqi, Credit Risk Scorecards, 2006). It is the symmetric divergence of Jeffreys (1946).
- Jensen-Shannon distance: the square root of (KL(p, m) + KL(q, m)) / 2 with m = (p + q) / 2, in base 2, so
  that it lies between 0 and 1 (Lin 1991; a metric: Endres and Schindelin 2003).
- Samples of one distribution differ too: PSI is then about (1/n + 1/m) times a chi-squared variable with one
  degree of freedom fewer than bins (Yurdakul and Naranjo 2020). Drift below its 99.9 % quantile is no drift.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import UsageError
from validation.data.profile import Categories, Profile, Tokens
from validation.data.sketches import hash_texts, overlap

Verdict = Literal["stable", "moderate", "large"]
_ORDER: list[Verdict] = ["stable", "moderate", "large"]
#: Words come in texts, not one by one, so their counts vary more than independent draws would: ours is the
#: guess that ten words tell as much as one drawn by itself (the design effect of cluster sampling).
_WORDS_PER_DRAW = 10


class DriftLimits(BaseModel):
    """From where on a change is called moderate, and large."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    moderate: float = Field(0.1, gt=0, description="PSI from which on drift is moderate.")
    large: float = Field(0.25, gt=0, description="PSI from which on drift is large.")


class ColumnDrift(BaseModel):
    """One histogram, category column or token distribution against the reference's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    column: str = Field(description="As in the profile, e.g. text.characters.")
    kind: Literal["histogram", "categories", "tokens"] = Field(description="Which part of the profile.")
    psi: float = Field(description="Population stability index.")
    noise: float = Field(description="PSI that two samples of one distribution exceed once in 1,000 times.")
    js_distance: float = Field(description="Jensen-Shannon distance, 0 to 1.")
    vocabulary_overlap: float | None = Field(
        None, description="Tokens: share of the words of both that both have (Jaccard), estimated."
    )
    verdict: Verdict = Field(description="By PSI, where it exceeds the noise.")


class Drift(BaseModel):
    """A dataset against an earlier version of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int = Field(description="Rows now.")
    reference_rows: int = Field(description="Rows of the reference.")
    rows_change: float | None = Field(description="Relative change of the rows; null without any before.")
    columns: list[ColumnDrift] = Field(description="In the profile's order.")
    only_here: list[str] = Field(default_factory=list, description="Parts that the reference lacks.")
    only_in_reference: list[str] = Field(default_factory=list, description="Parts that only it has.")

    @property
    def verdict(self) -> Verdict:
        """The worst of the columns'."""
        return max((column.verdict for column in self.columns), key=_ORDER.index, default="stable")

    def beyond(self, limit: Verdict) -> list[ColumnDrift]:
        """Columns that are worse than ``limit``."""
        return [c for c in self.columns if _ORDER.index(c.verdict) > _ORDER.index(limit)]


def compare_profiles(profile: Profile, reference: Profile, limits: DriftLimits | None = None) -> Drift:
    """Compare part by part. Raises UsageError if a histogram stands on other bins than the reference's."""
    limits, columns = limits or DriftLimits(), []
    for name, histogram in profile.histograms.items():
        before = reference.histograms.get(name)
        if before is None:
            continue
        if before.edges != histogram.edges:
            raise UsageError(
                f"The histograms of {name} stand on different bins, so they cannot be compared: profile both"
                " datasets with equal edges."
            )
        counts = [*histogram.counts, histogram.nulls], [*before.counts, before.nulls]
        columns.append(_column(name, "histogram", *counts, limits))
    for name, categories in profile.categories.items():
        earlier = reference.categories.get(name)
        if earlier is None:
            continue
        columns.append(_column(name, "categories", *_category_counts(categories, earlier), limits))
    for name, tokens in profile.tokens.items():
        if name in reference.tokens:
            columns.append(_tokens(name, tokens, reference.tokens[name], limits))
    mine, theirs = _parts(profile), _parts(reference)
    return Drift(
        rows=profile.rows,
        reference_rows=reference.rows,
        rows_change=profile.rows / reference.rows - 1 if reference.rows else None,
        columns=columns,
        only_here=sorted(mine - theirs),
        only_in_reference=sorted(theirs - mine),
    )


def psi(counts: Sequence[float], reference: Sequence[float]) -> float:
    """Population stability index of two lists of counts of the same bins; 0 if either is empty.

    Half a row is added to every bin that either has, since the logarithm knows no zero.
    """
    p, q = _shares(counts, reference)
    return sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))


def js_distance(counts: Sequence[float], reference: Sequence[float]) -> float:
    """Jensen-Shannon distance in base 2 of two lists of counts of the same bins; 0 if either is empty."""
    n, m = sum(counts), sum(reference)
    if not n or not m:
        return 0.0
    divergence = 0.0
    for a, b in zip((c / n for c in counts), (c / m for c in reference), strict=True):
        middle = (a + b) / 2
        divergence += sum(x / 2 * math.log2(x / middle) for x in (a, b) if x)
    return math.sqrt(max(0.0, divergence))


def psi_noise(counts: Sequence[float], reference: Sequence[float], per_draw: int = 1) -> float:
    """The PSI that two samples of one distribution, as large as these, exceed once in 1,000 times."""
    n, m = sum(counts) / per_draw, sum(reference) / per_draw
    bins = sum(1 for a, b in zip(counts, reference, strict=True) if a or b)
    if bins < 2 or not n or not m:
        return 0.0
    # The quantile of chi-squared by Wilson and Hilferty (1931); 3.09 is the normal one.
    free = bins - 1
    quantile = free * (1 - 2 / (9 * free) + 3.09 * math.sqrt(2 / (9 * free))) ** 3
    return (1 / n + 1 / m) * quantile


def _category_counts(categories: Categories, earlier: Categories) -> tuple[list[int], list[int]]:
    """Counts of equal values, then those of others and of none.

    Where a side is capped, a value with a greater hash than all that it kept may be among its others: there
    both sides count it so.
    """
    values = sorted(categories.counts.keys() | earlier.counts.keys())
    hashes = dict(zip(values, hash_texts(values).tolist(), strict=True))
    kept = [max(map(hashes.__getitem__, side.counts)) for side in (categories, earlier) if side.capped]
    shared = [value for value in values if not kept or hashes[value] <= min(kept)]

    def counted(side: Categories) -> list[int]:
        found = [side.counts.get(value, 0) for value in shared]
        return [*found, sum(side.counts.values()) - sum(found) + side.other, side.nulls]

    return counted(categories), counted(earlier)


def _column(
    name: str,
    kind: Literal["histogram", "categories", "tokens"],
    counts: Sequence[int],
    reference: Sequence[int],
    limits: DriftLimits,
    *,
    shared: float | None = None,
) -> ColumnDrift:
    value = psi(counts, reference)
    noise = psi_noise(counts, reference, _WORDS_PER_DRAW if kind == "tokens" else 1)
    verdict: Verdict = "stable"
    if value >= limits.moderate and value > noise:
        verdict = "large" if value >= limits.large else "moderate"
    return ColumnDrift(
        column=name,
        kind=kind,
        psi=round(value, 6),
        noise=round(noise, 6),
        js_distance=round(js_distance(counts, reference), 6),
        vocabulary_overlap=shared,
        verdict=verdict,
    )


def _tokens(name: str, tokens: Tokens, reference: Tokens, limits: DriftLimits) -> ColumnDrift:
    # A sketch that is not full holds every word, so that the other's size is the one that counts.
    size = max(len(tokens.vocabulary), len(reference.vocabulary))
    shared = round(overlap(tokens.vocabulary, reference.vocabulary, size), 4)
    return _column(name, "tokens", tokens.buckets, reference.buckets, limits, shared=shared)


def _shares(counts: Sequence[float], reference: Sequence[float]) -> tuple[list[float], list[float]]:
    pairs = [(a, b) for a, b in zip(counts, reference, strict=True) if a or b]
    if not sum(counts) or not sum(reference):
        return [], []
    sides = [[pair[side] + 0.5 for pair in pairs] for side in (0, 1)]
    return tuple([value / sum(side) for value in side] for side in sides)  # type: ignore[return-value]


def _parts(profile: Profile) -> set[str]:
    return {*profile.histograms, *profile.categories, *(f"{name} (tokens)" for name in profile.tokens)}
