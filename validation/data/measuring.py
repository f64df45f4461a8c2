"""What one block adds to a profile, computed by Arrow's and NumPy's kernels."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import UsageError
from validation.data.sketches import TokenSketch, ValueCounts, hash_texts, mixed

if TYPE_CHECKING:
    import pyarrow as pa

    from validation.data.profile import ProfileSpec

#: Longer words are cut, so that a text without white space does not enter the profile whole.
MAX_TOKEN_CHARS = 64
MAX_CATEGORY_CHARS = 200
#: Every float is a whole multiple of 2**-FLOAT_BITS.
FLOAT_BITS = 1074
#: A column with more values is none of splits.
MAX_SPLITS = 100
#: What stands at a word's ends and is no part of it: ASCII's, then Latin quotes and dashes, then CJK marks.
_MARKS = (
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
    "\u00ab\u00bb\u201c\u201d\u201e\u2018\u2019\u201a\u2013\u2014\u2026\u00b7\u2022"
    "\u3001\u3002\uff0c\uff01\uff1f\uff1a\uff1b\uff08\uff09\u300c\u300d\u300e\u300f"
)


class Bins(BaseModel):
    """A histogram that is still growing."""

    # JSON has no number for what is infinite.
    model_config = ConfigDict(ser_json_inf_nan="strings")

    counts: list[int]
    nulls: int = 0
    low: float | None = None
    high: float | None = None
    #: Exact sum, times 2**scale: a sum of rounded floats would depend on the order. None if it is not finite.
    total: int | None = None
    scale: int = 0

    def add(self, other: Bins) -> None:
        """Take in another part."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.nulls += other.nulls
        self.low = min((v for v in (self.low, other.low) if v is not None), default=None)
        self.high = max((v for v in (self.high, other.high) if v is not None), default=None)
        scale = max(self.scale, other.scale)
        if self.total is not None and other.total is not None:
            self.total = (self.total << scale - self.scale) + (other.total << scale - other.scale)
        else:
            self.total = None
        self.scale = scale

    @property
    def mean(self) -> float | None:
        """Of all values; None without any, or if they are not all finite."""
        number = sum(self.counts)
        return (
            float(Fraction(self.total, number << self.scale)) if self.total is not None and number else None
        )


class Partial(BaseModel):
    """What one block, or several together, adds to the profile."""

    rows: int = 0
    splits: dict[str, int] = Field(default_factory=dict)
    bins: dict[str, Bins] = Field(default_factory=dict)
    values: dict[str, ValueCounts] = Field(default_factory=dict)
    tokens: dict[str, TokenSketch] = Field(default_factory=dict)

    def add(self, other: Partial) -> None:
        """Take in another part."""
        self.rows += other.rows
        for name, count in other.splits.items():
            self.splits[name] = self.splits.get(name, 0) + count
        self.refuse_splits()
        _join(self.bins, other.bins)
        _join(self.values, other.values)
        _join(self.tokens, other.tokens)

    def refuse_splits(self) -> None:
        """Raise UsageError if there are so many splits that they are none."""
        if len(self.splits) > MAX_SPLITS:
            raise UsageError(
                f"The column of splits has more than {MAX_SPLITS} values, such as"
                f" {next(iter(self.splits))!r}: name another one, or null, as the profile's split."
            )


def _join(held: dict[str, Any], more: dict[str, Any]) -> None:
    for name, part in more.items():
        if name in held:
            held[name].add(part)
        else:
            held[name] = part


def measure(spec: ProfileSpec, table: pa.Table) -> Partial:
    """Measure one block. Raises UsageError if a column is missing or has a type that does not fit."""
    partial = Partial(rows=table.num_rows)
    if spec.split is not None:
        partial.splits = _value_counts(_column(table, spec.split), spec.split)
        partial.refuse_splits()
    for name, edges in spec.numbers.items():
        partial.bins[name] = _numbers(_column(table, name), name, edges)
    for name in spec.categories:
        counts = _value_counts(_column(table, name), name)
        partial.values[name] = ValueCounts.of(counts, spec.max_categories)
    for name in spec.texts:
        _texts(partial, spec, name, _column(table, name))
    return partial


def _column(table: pa.Table, name: str) -> Any:
    if name not in table.column_names:
        raise UsageError(f"The profile looks at column {name}, but the data has {table.column_names}.")
    column = table[name].combine_chunks()
    return column.combine_chunks() if hasattr(column, "chunks") else column


def _value_counts(column: Any, name: str) -> dict[str, int]:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.large_string())
    bytes_kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    refused = UsageError(f"The profile cannot count the values of column {name}: it is {kind}.")
    if any(is_bytes(column.type) for is_bytes in (*bytes_kinds, pa.types.is_binary_view, pa.types.is_nested)):
        raise refused
    counts: dict[str, int] = {}
    try:
        found = pc.value_counts(pc.drop_null(column))
        texts = pc.utf8_slice_codeunits(found.field(0).cast(pa.large_string()), 0, MAX_CATEGORY_CHARS)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        raise refused from None
    for value, count in zip(texts.to_pylist(), found.field(1).to_pylist(), strict=True):
        counts[value] = counts.get(value, 0) + count
    return counts


def _numbers(column: Any, name: str, edges: list[float]) -> Bins:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        raise UsageError(f"The profile needs numbers in column {name}, which is {kind}.")
    values = pc.drop_null(column).to_numpy(zero_copy_only=False)
    if not pa.types.is_floating(kind):
        return _bins(values, edges, len(column) - len(values))
    real = values[~np.isnan(values)]
    return _bins(real, edges, len(column) - len(real))


def _bins(values: Any, edges: list[float], nulls: int) -> Bins:
    places = np.searchsorted(np.asarray(edges), values, side="right")
    whole = not np.issubdtype(values.dtype, np.floating)
    scale, total = (0, int(values.sum(dtype=object))) if whole else (FLOAT_BITS, _exact_sum(values))
    return Bins(
        counts=np.bincount(places, minlength=len(edges) + 1).tolist(),
        nulls=nulls,
        # Adding 0.0 makes one of the two zeros.
        low=float(values.min()) + 0.0 if len(values) else None,
        high=float(values.max()) + 0.0 if len(values) else None,
        total=total,
        scale=scale,
    )


def _exact_sum(values: Any) -> int | None:
    """The sum of floats in units of the smallest one, 2**-FLOAT_BITS; None if one is infinite."""
    if not np.isfinite(values).all():
        return None
    shares, exponents = np.frexp(values.astype(np.float64))
    # 53 bits each; sums of halves of them stay within 64.
    whole, total = np.ldexp(shares, 53).astype(np.int64), 0
    for exponent in np.unique(exponents).tolist():
        part = whole[exponents == exponent]
        sum_ = (int((part >> 26).sum()) << 26) + int((part & (2**26 - 1)).sum())
        # The smallest floats have fewer bits, and zeros for the others.
        shift = exponent - 53 + FLOAT_BITS
        total += sum_ << shift if shift >= 0 else sum_ >> -shift
    return total


def _texts(partial: Partial, spec: ProfileSpec, name: str, column: Any) -> None:
    """Lengths and tokens of a column of text, or of messages (structs with a content)."""
    held, lengths, tokens = _measured(name, column, spec.vocabulary)
    partial.tokens[name] = tokens
    nulls = len(column) - len(held)
    partial.bins |= {f"{name}.{unit}": _bins(values, spec.lengths, nulls) for unit, values in lengths.items()}


def text_lengths(table: pa.Table, name: str) -> dict[str, Any]:
    """Lengths of a column of text or messages by unit, as Arrow arrays that are null where it is.

    Raises UsageError for a column of another type.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    column = _column(table, name)
    _, lengths, _ = _measured(name, column, 1)
    places = np.cumsum(pc.is_valid(column).to_numpy(zero_copy_only=False)) - 1
    at = pa.array(places, mask=pc.is_null(column).to_numpy(zero_copy_only=False))
    return {unit: pa.array(values, pa.int64()).take(at) for unit, values in lengths.items()}


def _measured(name: str, column: Any, vocabulary: int) -> tuple[Any, dict[str, Any], TokenSketch]:
    """The rows that are not null, their lengths by unit, and their tokens."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if _is_text(kind) or (column.null_count == len(column) and not pa.types.is_nested(kind)):
        column = column.cast(pa.large_string())
    held = pc.drop_null(column)
    lengths: dict[str, Any] = {}
    if _is_messages(column.type):
        # Which row each message belongs to; lengths of a row are the sums of its messages'.
        parents = pc.list_parent_indices(held).to_numpy()
        texts = pc.struct_field(pc.list_flatten(held), "content")
        lengths["messages"] = np.bincount(parents, minlength=len(held))
    elif pa.types.is_large_string(column.type):
        parents, texts = None, held
    else:
        raise UsageError(f"The profile needs text or messages in column {name}, which is {kind}.")
    texts = texts.cast(pa.large_string())
    words = pc.utf8_split_whitespace(pc.fill_null(texts, ""))
    tokens, numbers = _tokens(words, vocabulary)
    characters = pc.fill_null(pc.utf8_length(texts), 0).to_numpy(zero_copy_only=False)
    for unit, values in {"characters": characters, "words": numbers}.items():
        if parents is not None:
            values = np.bincount(parents, weights=values, minlength=len(held)).astype(np.int64)
        lengths[unit] = values
    return held, lengths, tokens


def _tokens(words: Any, size: int) -> tuple[TokenSketch, Any]:
    """The tokens of lists of words, and how many each list has."""
    import pyarrow.compute as pc

    encoded = words.flatten().dictionary_encode()
    # Only distinct words are brought to their form; then equal forms are one token.
    forms = pc.utf8_trim(pc.utf8_lower(encoded.dictionary), characters=_MARKS)
    forms = pc.utf8_slice_codeunits(forms, 0, MAX_TOKEN_CHARS).dictionary_encode()
    codes = forms.indices.to_numpy(zero_copy_only=False)[encoded.indices.to_numpy(zero_copy_only=False)]
    tokens = forms.dictionary.to_numpy(zero_copy_only=False)
    real = tokens != ""
    offsets = words.offsets.to_numpy(zero_copy_only=False)
    offsets = offsets - offsets[0]
    counts = np.bincount(codes, minlength=len(tokens))
    drawn = _draw(offsets, codes, hash_texts(tokens))
    sketch = TokenSketch.of(tokens[real], counts[real], drawn[real], size)
    return sketch, _sums(offsets, real[codes], np.int64)


def _draw(offsets: Any, codes: Any, hashes: Any) -> Any:
    """For each token the smallest of the numbers that it draws in the texts where it stands."""
    numbers = hashes[codes]
    # A text is known by the sum of its words' hashes, modulo 2**64.
    texts = mixed(_sums(offsets, numbers, np.uint64))
    numbers ^= np.repeat(texts, np.diff(offsets))
    numbers *= np.uint64(0xBF58476D1CE4E5B9)
    numbers ^= numbers >> np.uint64(32)
    drawn: Any = np.full(len(hashes), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(drawn, codes, numbers)
    return drawn


def _sums(offsets: Any, values: Any, kind: Any) -> Any:
    """Sums of consecutive stretches, some of which may be empty."""
    whole = np.zeros(len(values) + 1, kind)
    np.cumsum(values, dtype=kind, out=whole[1:])
    return whole[offsets[1:]] - whole[offsets[:-1]]


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(is_text(kind) for is_text in kinds)


def _is_messages(kind: Any) -> bool:
    import pyarrow as pa

    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_struct(
        kind.value_type
    ):
        return False
    at = kind.value_type.get_field_index("content")
    if at < 0:
        return False
    content = kind.value_type.field(at).type
    return _is_text(content.value_type if pa.types.is_dictionary(content) else content)
