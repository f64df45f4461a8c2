"""Arrow's own kernels for the commonest row conditions, where they answer exactly as pandas does.

They read a block's columns as they are: no object is made of a text. What has a column, an argument or a
value of another kind takes the way over pandas (:mod:`validation.data.engine.conditions`), as do exceptions.
`tests/data/test_shortcuts.py` holds the two ways against each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from validation.data.engine.frames import Domain

if TYPE_CHECKING:
    import pyarrow as pa

Values = Mapping[str, Any]
#: Instead of a mask: every row holds.
NONE: Any = object()

#: Regular expressions that mean the same to Python's engine and to RE2, as long as the text is ASCII.
_ALIKE = re.compile(
    r"""(?:
        [A-Za-z0-9\ _@:/,=\#%&~<>!;'"-]                    # these stand for themselves,
      | \\[dw.\-/\\+*?()\[\]{}|^$]                         # digits, letters, and what is escaped,
      | \[\^?(?:[A-Za-z0-9\ _@:/,=\#%&~<>!;'".+*?(){}|$-]  # classes of these,
          | \\[dw.\-/\\\[\]^])+\]
      | \((?:\?:|(?!\?)) | [)|^$.]                         # groups, alternatives, anchors, any character,
      | (?:[*+?] | \{[0-9]+(?:,[0-9]*)?\})(?!\+)          # and how often.
    )*""",
    re.VERBOSE,
)


def unexpected(metric: str, domain: Domain, values: Values, table: pa.Table) -> tuple[int, Any] | None:
    """Rows of the domain, and positions of those that do not meet a condition; None to ask pandas."""
    import numpy as np

    check = _CHECKS.get(metric)
    if check is None or domain.clause or domain.ignore or len(domain.columns) != 1:
        return None
    if domain.columns[0] not in table.column_names:
        return None
    column = table[domain.columns[0]]
    broken = check(column, values)
    if broken is None:
        return None
    rows = len(column) - column.null_count if domain.drop_null else len(column)
    # What is null has no answer, and is no part of a domain that leaves nulls out.
    return rows, np.flatnonzero(broken.fill_null(False).to_numpy() if broken is not NONE else ())


def _null(column: Any, _: Values) -> Any:
    missing = _missing(column)
    return missing if missing is None or column.null_count or _is_real(column.type) else NONE


def _not_null(column: Any, _: Values) -> Any:
    import pyarrow.compute as pc

    missing = _missing(column)
    return None if missing is None else pc.invert(missing)


def _missing(column: Any) -> Any:
    """What pandas calls null, of the types whose nulls are Arrow's and NaN."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if not (_is_text(kind) or any(is_(kind) for is_ in (pa.types.is_integer, pa.types.is_boolean, _is_real))):
        return None
    return pc.is_null(column, nan_is_null=True)


def _between(column: Any, values: Values) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    # Whole numbers beside nulls are floats in pandas, and NaN is null there.
    if not pa.types.is_float64(column.type) or pc.any(pc.is_nan(column)).as_py():
        return None
    low, high = values.get("min_value"), values.get("max_value")
    if not _are_limits(low, high) or (low is not None and high is not None and low > high):
        return None
    return _outside(column, column, values)


def _lengths_between(column: Any, values: Values) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not _is_text(column.type) or not _are_limits(values.get("min_value"), values.get("max_value")):
        return None
    # A character has one to four bytes: most texts need not be counted.
    bytes_ = pc.binary_length(column)
    perhaps = _outside(pc.divide(bytes_, 4), bytes_, values)
    if not pc.any(perhaps).as_py():
        return NONE
    lengths = pc.utf8_length(column.filter(perhaps).combine_chunks())
    mask = pc.fill_null(perhaps, False).combine_chunks()
    return pa.chunked_array([pc.replace_with_mask(mask, mask, _outside(lengths, lengths, values))])


def _are_limits(low: Any, high: Any) -> bool:
    given = [bound for bound in (low, high) if bound is not None]
    return bool(given) and all(type(bound) in (int, float) and abs(bound) < 2**53 for bound in given)


def _outside(least: Any, most: Any, values: Values) -> Any:
    """Whether ``least`` is below the limits, or ``most`` above them."""
    import pyarrow.compute as pc

    low, high = values.get("min_value"), values.get("max_value")
    short = low is not None and (pc.less_equal if values.get("strict_min") else pc.less)(least, low)
    long = high is not None and (pc.greater_equal if values.get("strict_max") else pc.greater)(most, high)
    return pc.or_(short, long)


def _length_equals(column: Any, values: Values) -> Any:
    import pyarrow.compute as pc

    wanted = values.get("value")
    if not _is_text(column.type) or not _are_limits(wanted, None):
        return None
    return pc.not_equal(pc.utf8_length(column), wanted)


def _in_set(column: Any, values: Values) -> Any:
    import pyarrow.compute as pc

    found = _not_in_set(column, values)
    return None if found is None else pc.invert(found)


def _not_in_set(column: Any, values: Values) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = values.get("value_set")
    if not _is_text(column.type) or not isinstance(wanted, list | tuple | set) or not wanted:
        return None
    if not all(type(value) is str for value in wanted):
        return None
    found = pc.is_in(column, value_set=pa.array(list(wanted), column.type))
    # Arrow answers for nulls too.
    return pc.if_else(pc.is_valid(column), found, None) if column.null_count else found


def _matches(column: Any, values: Values) -> Any:
    import pyarrow.compute as pc

    found = _matches_not(column, values)
    return None if found is None else pc.invert(found)


def _matches_not(column: Any, values: Values) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    pattern = values.get("regex")
    if not _is_text(column.type) or not isinstance(pattern, str) or not means_the_same(pattern):
        return None
    if pc.any(pc.invert(pc.string_is_ascii(column))).as_py():
        return None
    # Before a line's end at the end of a text Python's $ matches too.
    if "$" in pattern and pc.any(pc.match_substring(column, "\n")).as_py():
        return None
    try:
        return pc.match_substring_regex(column, pattern)
    except pa.ArrowInvalid:
        return None


@lru_cache(maxsize=1024)
def means_the_same(pattern: str) -> bool:
    """Whether RE2 finds a pattern in the same ASCII texts as Python does."""
    if not _ALIKE.fullmatch(pattern):
        return False
    try:
        return bool(re.compile(pattern))
    except (re.error, RecursionError, OverflowError):
        return False


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_real(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_float32(kind) or pa.types.is_float64(kind))


#: Which rows break a condition, by its metric; null or anything where the column is null.
_CHECKS: dict[str, Callable[[Any, Values], Any]] = {
    "column_values.nonnull": _null,
    "column_values.null": _not_null,
    "column_values.between": _between,
    "column_values.in_set": _in_set,
    "column_values.not_in_set": _not_in_set,
    "column_values.value_length.between": _lengths_between,
    "column_values.value_length.equals": _length_equals,
    "column_values.match_regex": _matches,
    "column_values.not_match_regex": _matches_not,
}
