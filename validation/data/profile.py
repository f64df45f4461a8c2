"""A dataset's profile, made block by block and merged: what a version looks like, and what drift compares.

Workers call :func:`profile_block`, the driver :func:`merge_profiles`. Everything in a partial adds up exactly
(counts on fixed bins, sketches whose merge knows no order), so that any split of the rows into blocks, merged
in any order, gives the equal profile. A partial's size does not grow with its block.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cluster.errors import UsageError
from validation.data.measuring import Bins, Partial, measure
from validation.data.sketches import TokenSketch, ValueCounts

if TYPE_CHECKING:
    import pyarrow as pa

#: Two bins an octave, up to a million: lengths spread over magnitudes.
LENGTHS = [0.0, 1.0, *(float(f * 2**n) for n in range(1, 20) for f in (1, 1.5)), float(2**20)]
#: Four bins an octave from a thousandth to a million, on both sides of zero: figures of any kind.
_MAGNITUDES = [2 ** (n / 4) for n in range(-40, 81)]
NUMBERS = [*(-edge for edge in reversed(_MAGNITUDES)), 0.0, *_MAGNITUDES]
TOKEN_BUCKETS = 1024


class ProfileSpec(BaseModel):
    """Which columns a profile looks at, and on which bins."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: str | None = Field("split", description="Column whose values are counted as splits; none if null.")
    texts: list[str] = Field(
        default_factory=list,
        description="Columns of text, or of messages: lengths in characters and words, and their tokens.",
    )
    numbers: dict[str, list[float]] = Field(
        default_factory=dict, description="Column of numbers to the edges of its bins, rising; e.g. a score."
    )
    categories: list[str] = Field(default_factory=list, description="Columns whose values are counted.")
    lengths: list[float] = Field(LENGTHS, description="Edges of the bins of lengths, rising.")
    max_categories: int = Field(
        256, ge=1, description="Values counted in a column; of more, those with the smallest hashes."
    )
    vocabulary: int = Field(
        2048, ge=16, description="Hashes kept of the vocabulary; its size is known to 1/sqrt(this)."
    )
    top_tokens: int = Field(50, ge=0, description="Most frequent tokens to name.")

    @field_validator("numbers", "lengths")
    @classmethod
    def _rising(cls, value: Any) -> Any:
        for edges in value.values() if isinstance(value, dict) else [value]:
            if len(edges) < 2 or any(not a < b for a, b in pairwise(edges)):
                raise ValueError("a histogram needs at least two edges, each greater than the one before it")
        return value


class Histogram(BaseModel):
    """Counts on fixed bins: below the first edge, between each two (lower edge in), from the last on."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    edges: list[float] = Field(description="Edges of the bins, rising.")
    counts: list[int] = Field(description="One more than edges: the first and the last bin are open.")
    nulls: int = Field(0, description="Rows without a value, or whose value is NaN.")
    minimum: float | None = Field(None, description="Smallest value; null if there is none.")
    maximum: float | None = Field(None, description="Greatest value; null if there is none.")
    mean: float | None = Field(None, description="Mean of the values; null if not all are finite.")

    @property
    def values(self) -> int:
        """Values counted."""
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """Roughly: where ``share`` of the values lies, by the bins, between minimum and maximum."""
        if self.minimum is None or self.maximum is None:
            return None
        wanted, below = share * self.values, 0
        bounds = [self.minimum, *self.edges, self.maximum]
        for number, count in enumerate(self.counts):
            if count and below + count >= wanted:
                low, high = max(bounds[number], self.minimum), min(bounds[number + 1], self.maximum)
                return low + (high - low) * (wanted - below) / count
            below += count
        return self.maximum


class Categories(BaseModel):
    """How often each value of a column occurs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    counts: dict[str, int] = Field(description="Value to rows, the most frequent first.")
    nulls: int = Field(0, description="Rows without a value.")
    other: int = Field(0, description="Rows whose value is not in counts.")
    distinct: int = Field(description="Number of values; an estimate if capped.")
    capped: bool = Field(False, description="Whether there are more values than are counted.")


class Tokens(BaseModel):
    """The words of a column: lower-cased, split at white space, punctuation at their ends removed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    total: int = Field(description="Words in all.")
    distinct: int = Field(description="Different words; an estimate from the vocabulary's sketch.")
    vocabulary: list[int] = Field(description="Smallest 53-bit hashes of the vocabulary (bottom-k sketch).")
    top: dict[str, int] = Field(description="Frequent words to their counts (Count-Min: never too low).")
    buckets: list[int] = Field(description="Words by hash bucket: a distribution to compare.")


class Profile(BaseModel):
    """What a dataset looks like. Its JSON form is the artifact's ``profile.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    profile_version: int = Field(1, description="Version of this schema.")
    spec: ProfileSpec = Field(description="What it was made by; only equal bins can be compared.")
    rows: int = Field(description="Rows in all.")
    splits: dict[str, int] = Field(default_factory=dict, description="Rows of each split.")
    histograms: dict[str, Histogram] = Field(
        default_factory=dict, description="By column (numbers) or column.characters, .words, .messages."
    )
    categories: dict[str, Categories] = Field(default_factory=dict, description="By column.")
    tokens: dict[str, Tokens] = Field(default_factory=dict, description="By column of text.")

    def to_json(self) -> bytes:
        """The content of ``profile.json``."""
        return self.model_dump_json().encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read ``profile.json``. Raises UsageError if it is none."""
        from pydantic import ValidationError

        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "its beginning"
            raise UsageError(f"The profile cannot be read: {first['msg']} at {where}.") from None


def profile_block(spec: ProfileSpec, table: pa.Table) -> bytes:
    """One block's partial profile, some 100 kB at most.

    Raises UsageError if the table lacks a column of the spec, or has one whose type does not fit.
    """
    return _packed(measure(spec, table) if table.num_rows else Partial())


def combine_profiles(partials: Iterable[bytes]) -> bytes:
    """Several partials as one: to merge in a tree, or to keep beside the data so that a profile can grow."""
    return _packed(_merged(partials))


def merge_profiles(spec: ProfileSpec, partials: Iterable[bytes]) -> Profile:
    """The profile of all blocks, whose partials come in any order and are read one at a time."""
    whole = _merged(partials)
    return Profile(
        spec=spec,
        rows=whole.rows,
        splits=dict(sorted(whole.splits.items())),
        histograms={
            name: _histogram(spec.numbers.get(name, spec.lengths), bins)
            for name, bins in sorted(whole.bins.items())
        },
        categories={name: _categories(values, whole.rows) for name, values in sorted(whole.values.items())},
        tokens={name: _tokens(spec, tokens) for name, tokens in sorted(whole.tokens.items())},
    )


def _histogram(edges: list[float], bins: Bins) -> Histogram:
    return Histogram(
        edges=edges, counts=bins.counts, nulls=bins.nulls, minimum=bins.low, maximum=bins.high, mean=bins.mean
    )


def _categories(values: ValueCounts, rows: int) -> Categories:
    return Categories(
        counts=dict(sorted(values.counts.items(), key=lambda pair: (-pair[1], pair[0]))),
        nulls=rows - values.total,
        other=values.total - sum(values.counts.values()),
        distinct=values.distinct.distinct,
        capped=values.capped,
    )


def _tokens(spec: ProfileSpec, tokens: TokenSketch) -> Tokens:
    return Tokens(
        total=tokens.total,
        distinct=tokens.vocabulary.distinct,
        vocabulary=tokens.vocabulary.hashes,
        top=tokens.top(spec.top_tokens),
        buckets=tokens.buckets(TOKEN_BUCKETS),
    )


def _packed(partial: Partial) -> bytes:
    return zlib.compress(partial.model_dump_json().encode(), 1)


def _merged(partials: Iterable[bytes]) -> Partial:
    whole = Partial()
    for data in partials:
        whole.add(Partial.model_validate_json(zlib.decompress(data)))
    return whole
