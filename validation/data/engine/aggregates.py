"""Tasks for figures of a whole column, by parts that can be joined.

They read Arrow values; what a figure looks like in pandas (a float beside nulls, a Timestamp) is decided at
the end, when the whole table's nulls are known. Types that a task does not know are refused with
:class:`UnsupportedError`, which Great Expectations shows as the expectation's exception.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from validation.data.engine.frames import Block, Domain

if TYPE_CHECKING:
    import pyarrow as pa

#: A block, and the whole, may tell this many distinct values and how often each occurs.
MAX_BLOCK_VALUES, MAX_VALUES = 50_000, 500_000


class UnsupportedError(Exception):
    """A metric that this engine does not compute, or not on such a column."""


def values_of(block: Block, domain: Domain) -> pa.ChunkedArray | pa.Array:
    """The domain's values of its one column, in Arrow, nulls and all."""
    column = block.table[domain.columns[0]]
    if domain.clause or domain.drop_null:
        return column.take(block.records(domain).index.to_numpy())
    return column


def present(values: Any) -> Any:
    """Without what pandas calls null: nulls and NaN."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_floating(values.type):
        values = values.filter(pc.fill_null(pc.invert(pc.is_nan(values)), False))
    return values.drop_null() if values.null_count else values


@dataclass(frozen=True)
class OfColumn:
    """A task on one column."""

    domain: Domain

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the domain."""
        return self.domain.reads


@dataclass(frozen=True)
class Counts(OfColumn):
    """Rows of the domain, and those among them that are not null."""

    def block(self, block: Block) -> tuple[int, int]:
        """Count."""
        values = values_of(block, self.domain)
        return len(values), len(present(values))

    def join(self, first: Any, second: Any) -> tuple[int, int]:
        """Sum."""
        return first[0] + second[0], first[1] + second[1]


@dataclass(frozen=True)
class Rows(OfColumn):
    """Rows of a domain."""

    def block(self, block: Block) -> int:
        """Count."""
        return len(block.records(self.domain))

    def join(self, first: Any, second: Any) -> int:
        """Sum."""
        return int(first + second)


@dataclass(frozen=True)
class Extremes(OfColumn):
    """Least and greatest value, as an Arrow array of none, or of both."""

    def block(self, block: Block) -> pa.Array:
        """Of one block."""
        return _extremes(present(values_of(block, self.domain)))

    def join(self, first: Any, second: Any) -> pa.Array:
        """Of both."""
        import pyarrow as pa

        if not len(first) or not len(second):
            return first if len(first) else second
        return _extremes(pa.concat_arrays([first, second]))


def _extremes(values: Any) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = values.type
    if not len(values):
        return pa.array([], kind)
    try:
        ends = pc.min_max(values)
    except pa.ArrowNotImplementedError:
        raise UnsupportedError(f"least and greatest of {kind} values are not supported") from None
    if pa.types.is_timestamp(kind) or pa.types.is_duration(kind):
        # Nanoseconds do not fit Python's own types.
        return pa.array([ends["min"].value, ends["max"].value], pa.int64()).cast(kind)
    return pa.array([ends["min"].as_py(), ends["max"].as_py()], kind)


@dataclass(frozen=True)
class Moments(OfColumn):
    """Number, sum, mean and sum of squared deviations (Chan's merge) of what is not null.

    The sum of integers is an exact Python integer.
    """

    def block(self, block: Block) -> tuple[int, Any, float, float]:
        """Of one block."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        values = present(values_of(block, self.domain))
        kind = values.type
        whole = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
        if not (whole or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)):
            raise UnsupportedError(f"sum, mean and deviation of {kind} values are not supported")
        if not len(values):
            return 0, 0, 0.0, 0.0
        numbers = pc.cast(values, pa.float64(), safe=False).to_numpy().astype(np.float64)
        with np.errstate(all="ignore"):
            mean = float(numbers.mean())
            squares = float(((numbers - mean) ** 2).sum())
            total = _whole_sum(values) if whole else float(numbers.sum())
        return len(numbers), total, mean, squares

    def join(self, first: Any, second: Any) -> tuple[int, Any, float, float]:
        """Of both."""
        if not first[0] or not second[0]:
            return tuple(first if first[0] else second)
        count = first[0] + second[0]
        apart = second[2] - first[2]
        mean = first[2] + apart * second[0] / count
        squares = first[3] + second[3] + apart * apart * first[0] * second[0] / count
        return count, first[1] + second[1], mean, squares


def _whole_sum(values: Any) -> int:
    """Exact, however large: the sums of the halves of each number cannot overflow."""
    import numpy as np
    import pyarrow as pa

    numbers = values.cast(pa.int64() if not pa.types.is_uint64(values.type) else pa.uint64()).to_numpy()
    high, low = numbers >> 32, numbers & np.asarray(0xFFFFFFFF, numbers.dtype)
    return (int(high.sum()) << 32) + int(low.sum())


@dataclass(frozen=True)
class ValueCounts(OfColumn):
    """How often each value occurs, as an Arrow table; None when there are too many to tell."""

    def block(self, block: Block) -> pa.Table | None:
        """Of one block."""
        import pyarrow as pa
        import pyarrow.compute as pc

        values = present(values_of(block, self.domain))
        if pa.types.is_floating(values.type):
            values = pc.add(values, pa.scalar(0.0, values.type))  # Minus zero equals zero.
        try:
            counted = values.value_counts()
        except pa.ArrowNotImplementedError:
            raise UnsupportedError(f"distinct {values.type} values are not supported") from None
        if len(counted) > MAX_BLOCK_VALUES:
            return None
        return pa.table({"value": counted.field(0), "count": counted.field(1)})

    def join(self, first: Any, second: Any) -> pa.Table | None:
        """Of both."""
        import pyarrow as pa

        if first is None or second is None:
            return None
        both = pa.concat_tables([first, second], promote_options="permissive")
        if not len(first) or not len(second):
            return both
        summed = both.group_by("value", use_threads=False).aggregate([("count", "sum")])
        return summed.rename_columns(["value", "count"]) if len(summed) <= MAX_VALUES else None


@dataclass(frozen=True)
class Histogram(OfColumn):
    """NumPy's histogram over given edges."""

    bins: tuple[Any, ...]

    def block(self, block: Block) -> Any:
        """Of one block."""
        import numpy as np

        column = block.records(self.domain)[self.domain.columns[0]]
        return np.histogram(column[~column.isnull()], list(self.bins), density=False)[0]

    def join(self, first: Any, second: Any) -> Any:
        """Sum."""
        return first + second


@dataclass(frozen=True)
class Beyond(OfColumn):
    """Values below ``low`` or above ``high``."""

    low: Any
    high: Any
    strict: tuple[Any, Any]

    def block(self, block: Block) -> int:
        """Of one block."""
        import numpy as np

        column = block.records(self.domain)[self.domain.columns[0]]
        if self.low is None:
            return int(np.count_nonzero(column < self.high if self.strict[1] else column <= self.high))
        return int(np.count_nonzero(column > self.low if self.strict[0] else column >= self.low))

    def join(self, first: Any, second: Any) -> int:
        """Sum."""
        return int(first + second)


@dataclass(frozen=True)
class Lengths(OfColumn):
    """Least and greatest length of what is not null, or None."""

    def block(self, block: Block) -> tuple[int, int] | None:
        """Of one block."""
        lengths = block.records(self.domain)[self.domain.columns[0]].map(len)
        return (int(lengths.min()), int(lengths.max())) if len(lengths) else None

    def join(self, first: Any, second: Any) -> tuple[int, int] | None:
        """Of both."""
        if first is None or second is None:
            return first or second  # type: ignore[no-any-return]
        return int(min(first[0], second[0])), int(max(first[1], second[1]))


@dataclass(frozen=True)
class Hashes(OfColumn):
    """Hashes of all rows of the domain in one of ``buckets`` parts of the hash space: 16 bytes a row."""

    bucket: int
    buckets: int

    def block(self, block: Block) -> list[Any]:
        """Of one block."""
        import numpy as np

        from validation.data.engine.hashing import row_hashes

        hashes = row_hashes(block.records(self.domain)[list(self.domain.columns)])
        if self.buckets > 1:
            hashes = hashes[hashes[:, 0] % np.uint64(self.buckets) == self.bucket]
        return [hashes]

    def join(self, first: Any, second: Any) -> list[Any]:
        """Both."""
        return [*first, *second]


@dataclass(frozen=True)
class KeyHistogram(OfColumn):
    """How many sort keys (see :func:`sort_keys`) lie in each of 65,536 steps of each range."""

    #: First key and the number of bits that a step has, of each range.
    ranges: tuple[tuple[int, int], ...]

    def block(self, block: Block) -> Any:
        """Of one block."""
        import numpy as np

        keys = sort_keys(block, self.domain)
        counts: Any = np.zeros((len(self.ranges), 65_536), dtype=np.int64)
        for number, (start, bits) in enumerate(self.ranges):
            inside = keys[keys >= np.uint64(start)] - np.uint64(start)
            steps = inside >> np.uint64(bits)
            counts[number] = np.bincount(steps[steps < 65_536].astype(np.int64), minlength=65_536)
        return counts

    def join(self, first: Any, second: Any) -> Any:
        """Sum."""
        return first + second


@dataclass(frozen=True)
class KeysBetween(OfColumn):
    """All sort keys in some ranges, the ends included."""

    ranges: tuple[tuple[int, int], ...]

    def block(self, block: Block) -> list[Any]:
        """Of one block."""
        import numpy as np

        keys = sort_keys(block, self.domain)
        inside: Any = np.zeros(len(keys), dtype=bool)
        for low, high in self.ranges:
            inside |= (keys >= np.uint64(low)) & (keys <= np.uint64(high))
        return [keys[inside]]

    def join(self, first: Any, second: Any) -> list[Any]:
        """Both."""
        return [*first, *second]


def sort_keys(block: Block, domain: Domain) -> Any:
    """Unsigned 64-bit numbers in the order of the values that are not null."""
    column = block.records(domain)[domain.columns[0]]
    return sort_keys_of(column[column.notnull()].to_numpy(), column.dtype)


def sort_keys_of(values: Any, dtype: Any) -> Any:
    """Sort keys of NumPy values. Raises UnsupportedError when they have no order on a line."""
    import numpy as np

    kind = values.dtype.kind
    if kind == "u":
        return values.astype(np.uint64)
    if kind in "imM":
        whole = values.astype(np.int64) if kind == "i" else values.view(np.int64)
        return whole.view(np.uint64) ^ np.uint64(1 << 63)
    if kind != "f":
        raise UnsupportedError(f"quantiles of {dtype} values are not supported")
    bits = (values.astype(np.float64) + 0.0).view(np.uint64)
    return np.where(bits >> np.uint64(63), ~bits, bits | np.uint64(1 << 63))


def from_sort_key(key: int, dtype: Any) -> Any:
    """The value of a sort key, in the column's own NumPy type."""
    import numpy as np

    bits = np.array([key], dtype=np.uint64)
    kind = np.dtype(dtype).kind
    if kind == "u":
        return bits.astype(dtype)[0]
    if kind in "mM":
        return (bits ^ np.uint64(1 << 63)).view(np.int64).view(dtype)[0]
    if kind == "i":
        return (bits ^ np.uint64(1 << 63)).view(np.int64).astype(dtype)[0]
    negative = not key >> 63
    bits = ~bits if negative else bits ^ np.uint64(1 << 63)
    return bits.view(np.float64).astype(dtype)[0]
