"""Row conditions: for each of Great Expectations' pandas map metrics the same answer without importing it.

The import costs 8 CPU-seconds and 170 MB a process; each function here is the pandas expression that Great
Expectations evaluates, and `tests/data/test_conformance.py` holds them against it. A function gets the rows
of its domain and answers whether each meets the expectation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

Values = Mapping[str, Any]
Check = Callable[[Any, Values, Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Kernel:
    """How one condition metric is computed on rows."""

    check: Check
    #: The domain leaves nulls out (single columns only).
    drop_null: bool = True
    #: It only compares values, so small integers may as well be floats.
    exact: bool = False
    #: It looks at nothing but nulls: the form of the values does not matter at all.
    formless: bool = False


def _between(column: pd.Series, values: Values, _: Values) -> Any:
    import pandas as pd
    from dateutil.parser import parse

    low, high = values.get("min_value"), values.get("max_value")
    if low is None and high is None:
        raise ValueError("min_value and max_value cannot both be None")
    if low is not None and high is not None and low > high:
        raise ValueError("min_value cannot be greater than max_value")
    strict_low, strict_high = values.get("strict_min"), values.get("strict_max")
    dated = isinstance(column.dtype, pd.DatetimeTZDtype) or pd.api.types.is_datetime64_ns_dtype(column.dtype)
    if column.dtype in [int, float] or dated:
        if dated:
            low = parse(low) if isinstance(low, str) else low
            high = parse(high) if isinstance(high, str) else high
        return _within(column, low, high, strict_low, strict_high)

    def inside(value: Any) -> Any:
        for bound in (low, high):
            if bound is not None and isinstance(value, str) != isinstance(bound, str):
                raise TypeError(
                    "Column values, min_value, and max_value must either be None or of the same type."
                )
        return _within(value, low, high, strict_low, strict_high)

    return column.map(inside)


def _within(value: Any, low: Any, high: Any, strict_low: Any, strict_high: Any) -> Any:
    above = True if low is None else (value > low if strict_low else value >= low)
    below = True if high is None else (value < high if strict_high else value <= high)
    if low is None:
        return below
    return above if high is None else above & below


def _in_set(column: pd.Series, values: Values, _: Values) -> Any:
    import numpy as np

    wanted = values.get("value_set")
    return np.ones(len(column), dtype=np.bool_) if wanted is None else column.isin(wanted)


def _not_in_set(column: pd.Series, values: Values, _: Values) -> Any:
    import numpy as np
    import pandas as pd
    from dateutil.parser import parse

    barred = values.get("value_set")
    if barred is None:
        return np.ones(len(column), dtype=np.bool_)
    if pd.api.types.is_datetime64_any_dtype(column):
        barred = [parse(value) if isinstance(value, str) else value for value in barred]
    return ~column.isin(barred)


def _lengths_between(column: pd.Series, values: Values, _: Values) -> Any:
    lengths = column.astype(str).str.len()
    low, high = values.get("min_value"), values.get("max_value")
    if low is None and high is None:
        raise ValueError("Invalid configuration")
    return _within(lengths, low, high, values.get("strict_min"), values.get("strict_max"))


def _length_equals(column: pd.Series, values: Values, _: Values) -> Any:
    return column.astype(str).str.len() == values.get("value")


def _matches(column: pd.Series, values: Values, _: Values) -> Any:
    return column.astype(str).str.contains(values["regex"])


def _matches_not(column: pd.Series, values: Values, _: Values) -> Any:
    return ~column.astype(str).str.contains(values["regex"])


def _each_match(column: pd.Series, patterns: Any) -> pd.DataFrame:
    import pandas as pd

    text = column.astype(str)
    return pd.concat([text.str.contains(pattern) for pattern in patterns], axis=1, ignore_index=True)


def _matches_list(column: pd.Series, values: Values, _: Values) -> Any:
    found, match_on = _each_match(column, values["regex_list"]), values.get("match_on")
    if match_on not in ("any", "all"):
        raise ValueError("match_on must be either 'any' or 'all'")
    return found.any(axis="columns") if match_on == "any" else found.all(axis="columns")


def _matches_none(column: pd.Series, values: Values, _: Values) -> Any:
    return ~_each_match(column, values["regex_list"]).any(axis="columns")


def _strftime(column: pd.Series, values: Values, _: Values) -> Any:
    form = values["strftime_format"]

    def parses(value: Any) -> bool:
        try:
            datetime.strptime(value, form)
        except TypeError:
            raise TypeError(
                "Values passed to expect_column_values_to_match_strftime_format must be of type "
                "string.\nIf you want to validate a column of dates or timestamps, please call the "
                "expectation before converting from string format."
            ) from None
        except ValueError:
            return False
        return True

    return column.map(parses)


def _dateutil(column: pd.Series, _: Values, __: Values) -> Any:
    from dateutil.parser import parse

    def parses(value: Any) -> bool:
        try:
            if type(value) is not str:
                raise TypeError(
                    "Values passed to expect_column_values_to_be_dateutil_parseable must be of type "
                    "string.\nIf you want to validate a column of dates or timestamps, please call the "
                    "expectation before converting from string format."
                )
            parse(value)
        except (ValueError, OverflowError):
            return False
        return True

    return column.map(parses)


def _json(column: pd.Series, _: Values, __: Values) -> Any:
    def parses(value: Any) -> bool:
        try:
            json.loads(value)
        except Exception:
            return False
        return True

    return column.map(parses)


def _json_schema(column: pd.Series, values: Values, _: Values) -> Any:
    import jsonschema

    schema = values["json_schema"]

    def matches(value: Any) -> bool:
        try:
            jsonschema.validate(json.loads(value), schema)
        except jsonschema.ValidationError:
            return False
        return True

    return column.map(matches)


_NATIVE: dict[str, tuple[type, ...]] = {
    "none": (type(None),),
    "bool": (bool,),
    "int": (int,),
    "long": (int,),
    "float": (float,),
    "bytes": (bytes,),
    "complex": (complex,),
    "str": (str,),
    "string_types": (str,),
    "list": (list,),
    "dict": (dict,),
}


def _types_named(name: str) -> list[type]:
    import numpy as np
    import pandas as pd

    found: list[type] = []
    try:
        found.append(np.dtype(name).type)
    except TypeError:
        for module in (pd, pd.core.dtypes.dtypes):
            kind = getattr(module, name, None)
            if isinstance(kind, type):
                found.append(kind)
    return [*found, *_NATIVE.get(name.lower(), ())]


def _of_type(column: pd.Series, values: Values, _: Values) -> Any:
    wanted = tuple(_types_named(values["type_"]))
    if not wanted:
        raise ValueError(f"Unrecognized numpy/python type: {values['type_']}")
    return column.map(lambda value: isinstance(value, wanted))


def _of_types(column: pd.Series, values: Values, _: Values) -> Any:
    wanted = tuple(kind for name in values["type_list"] for kind in _types_named(name))
    if not wanted:
        raise ValueError(f"No recognized numpy/python type in list: {values['type_list']}")
    return column.map(lambda value: isinstance(value, wanted))


def _ordered(column: pd.Series, values: Values, rising: bool) -> Any:
    import pandas as pd

    steps = column.diff()
    zero = pd.Timedelta(0) if pd.api.types.is_timedelta64_dtype(steps.dtype) else 0
    if values.get("strictly"):
        in_order = steps > zero if rising else steps < zero
    else:
        in_order = steps >= zero if rising else steps <= zero
    return in_order | steps.isnull()


def _z_score(column: pd.Series, values: Values, known: Values) -> Any:
    import numpy as np
    import pandas as pd

    mean, deviation = known["mean"], known["deviation"]
    if deviation is None or deviation == 0:
        score = pd.Series(np.nan, index=column.index)
    else:
        score = (column - mean) / deviation
    threshold = values["threshold"]
    under = score.abs() < abs(threshold) if values.get("double_sided") else score < threshold
    return under | score.isna()


def _not_outlier(column: pd.Series, values: Values, known: Values) -> Any:
    low, high, spread = known["low"], known["high"], known["spread"]
    if low is None or high is None or spread is None:
        return column.notnull()
    reach = values.get("multiplier", 1.5) * spread
    if values.get("method", "iqr") == "iqr":
        return (column >= low - reach) & (column <= high + reach)
    return column == low if reach <= 0 else (column - low).abs() < reach


def _unique(rows: Any, _: Values, known: Values) -> Any:
    import pandas as pd

    from validation.data.engine.hashing import contained, row_hashes

    hashes = row_hashes(rows.to_frame() if isinstance(rows, pd.Series) else rows)
    return pd.Series(~contained(hashes, known["duplicated"]), index=rows.index)


def _pair_equal(rows: pd.DataFrame, _: Values, __: Values) -> Any:
    return rows.iloc[:, 0] == rows.iloc[:, 1]


def _pair_greater(rows: pd.DataFrame, values: Values, _: Values) -> Any:
    first, second = rows.iloc[:, 0], rows.iloc[:, 1]
    return first >= second if values.get("or_equal") else first > second


def _pair_in_set(rows: pd.DataFrame, values: Values, _: Values) -> Any:
    import numpy as np
    import pandas as pd

    if values.get("value_pairs_set") is None:
        return np.ones(len(rows), dtype=np.bool_)
    wanted = {(x, y) for x, y in values["value_pairs_set"]}
    frame = pd.DataFrame({"A": rows.iloc[:, 0], "B": rows.iloc[:, 1]})
    # A row's values take one common type, as when Great Expectations walks the rows.
    pairs = [tuple(None if pd.isnull(v) else v for v in row) for row in frame.to_numpy()]
    return pd.Series([pair in wanted for pair in pairs], index=rows.index)


def _sum_equals(rows: pd.DataFrame, values: Values, _: Values) -> Any:
    return rows.sum(axis=1, skipna=False) == values.get("sum_total")


def _all_equal(rows: pd.DataFrame, _: Values, __: Values) -> Any:
    first = rows.iloc[:, 0]
    equal = [(column == first) | (column.isna() & first.isna()) for _, column in rows.items()]
    return reduce(lambda a, b: a & b, equal)


def _distinct_within_row(rows: pd.DataFrame, _: Values, __: Values) -> Any:
    return rows.nunique(dropna=False, axis=1) >= len(rows.columns)


#: By the name of Great Expectations' condition metric; all look at one row at a time.
ROW_LOCAL: dict[str, Kernel] = {
    "column_values.nonnull": Kernel(lambda c, v, k: ~c.isnull(), drop_null=False, formless=True),
    "column_values.null": Kernel(lambda c, v, k: c.isnull(), drop_null=False, formless=True),
    "column_values.between": Kernel(_between, exact=True),
    "column_values.in_set": Kernel(_in_set, exact=True),
    "column_values.not_in_set": Kernel(_not_in_set, exact=True),
    "column_values.value_length.between": Kernel(_lengths_between),
    "column_values.value_length.equals": Kernel(_length_equals),
    "column_values.match_regex": Kernel(_matches),
    "column_values.not_match_regex": Kernel(_matches_not),
    "column_values.match_regex_list": Kernel(_matches_list),
    "column_values.not_match_regex_list": Kernel(_matches_none),
    "column_values.match_strftime_format": Kernel(_strftime),
    "column_values.dateutil_parseable": Kernel(_dateutil),
    "column_values.json_parseable": Kernel(_json),
    "column_values.match_json_schema": Kernel(_json_schema),
    "column_values.of_type": Kernel(_of_type),
    "column_values.in_type_list": Kernel(_of_types),
    "column_pair_values.equal": Kernel(_pair_equal, exact=True),
    "column_pair_values.a_greater_than_b": Kernel(_pair_greater, exact=True),
    "column_pair_values.in_set": Kernel(_pair_in_set, exact=True),
    "multicolumn_sum.equal": Kernel(_sum_equals, exact=True),
    "multicolumn_values.equal": Kernel(_all_equal, exact=True),
    "select_column_values.unique.within_record": Kernel(_distinct_within_row, exact=True),
}

#: A row against the one before it: see :class:`validation.data.engine.tasks.Ordered`.
ORDERED: dict[str, Kernel] = {
    "column_values.increasing": Kernel(lambda c, v, k: _ordered(c, v, True), exact=True),
    "column_values.decreasing": Kernel(lambda c, v, k: _ordered(c, v, False), exact=True),
}

#: These look at one row, once something about the whole column is known.
INFORMED: dict[str, Kernel] = {
    "column_values.z_score.under_threshold": Kernel(_z_score),
    "column_values.not_outliers": Kernel(_not_outlier),
    "column_values.unique": Kernel(_unique),
    "compound_columns.unique": Kernel(_unique),
}

KERNELS: dict[str, Kernel] = ROW_LOCAL | ORDERED | INFORMED
