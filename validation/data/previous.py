"""What suites may compare data with: figures of the version before, as Great Expectations' suite parameters.

A suite names them where it would write a value: ``min_value: {$PARAMETER: previous_rows * 0.9}``. Great
Expectations' own parser evaluates the expression. There is nothing to compare a first version with:
expectations that do are left out of its judgement, and told in the report. A later version must tell what the
suite names, or the suite is refused: a gate that was asked for never stands open unseen.

===================================== =================================================================
``previous_rows``                     rows kept; ``previous_input_rows``, ``previous_quarantined_rows``,
                                      ``previous_train_rows`` and ``previous_test_rows`` as counted
``previous_<column>_null_share``      0 to 1; of numbers, texts' lengths and categories
``previous_<column>_mean``            of numbers and lengths, as are ``_minimum`` and ``_maximum``
``previous_<column>_median``          roughly, by the profile's bins, as are ``_p05 _p25 _p75 _p95``
``previous_<column>_partition``       of numbers and lengths: a ``partition_object`` for KL, on fixed bins
``previous_<column>_values``          of categories: the list of values; ``_distinct``: their number
``previous_<column>_value_partition`` of categories: a ``partition_object`` for KL
===================================== =================================================================

A column is written with ``_`` for whatever is no letter or digit: lengths of ``text`` are the columns
``text.characters`` and ``text.words``, so ``previous_text_characters_mean``.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from cluster.errors import UsageError
from validation.data.measuring import MAX_CATEGORY_CHARS
from validation.data.profile import Categories, Histogram, Profile
from validation.data.suite import Suite

if TYPE_CHECKING:
    import pyarrow as pa

PARAMETER = "$PARAMETER"
_COUNTS = {
    "input": "input_rows",
    "quarantined": "quarantined_rows",
    "train": "train_rows",
    "test": "test_rows",
}
_QUANTILES = {"p05": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95}
_OF_NUMBERS = ("mean", "minimum", "maximum", *_QUANTILES, "partition", "null_share")
_OF_CATEGORIES = ("distinct", "values", "value_partition", "null_share")
STATISTICS = (*_OF_NUMBERS, *_OF_CATEGORIES[:-1])
_NAMES = re.compile(r"\bprevious_\w+", re.ASCII)


@dataclass(frozen=True)
class Previous:
    """A version that new data is compared with."""

    #: As it is told to people.
    address: str
    profile: Profile
    #: The manifest's counts of rows: input, train, test, quarantined.
    counts: Mapping[str, int] = field(default_factory=dict)


class Compared(NamedTuple):
    """A suite whose parameters have values."""

    suite: Suite
    #: What was left out, and why, a phrase each.
    left_out: tuple[str, ...] = ()


def compared(suite: Suite, previous: Previous | None, schema: pa.Schema) -> Compared:
    """Give the suite's parameters their values; imports Great Expectations if it has any.

    Raises UsageError that names the expectation whose parameter is none of those above or nothing that the
    version before tells, or whose expression cannot be evaluated.
    """
    if not compares(suite):
        return Compared(suite)
    values = parameters(previous, schema) if previous else {}
    kept, left_out = [], list[str]()
    for number, entry in enumerate(suite.document["expectations"], start=1):
        expressions = list(_expressions(entry.get("kwargs") if isinstance(entry, dict) else None))
        where = f"suite {suite.name}: expectation {number} ({_label(entry)})"
        named = [name for text in expressions for name in _named(text, schema, where)]
        if not expressions:
            kept.append(entry)
        elif previous is None:
            left_out.append(f"{_label(entry)}: no version before")
        else:
            _refuse_untold(named, values, previous, where)
            noted = f"{'; '.join(expressions)}, of {previous.address}"
            kept.append(_noted({**entry, "kwargs": _filled(entry["kwargs"], values, where)}, noted))
    document = {**suite.document, "expectations": kept}
    return Compared(replace(suite, document=document), tuple(left_out))


def compares(suite: Suite) -> bool:
    """Whether the suite asks for a figure of the version before."""
    return PARAMETER in str(suite.document["expectations"])


def _refuse_untold(names: Sequence[str], values: Mapping[str, Any], previous: Previous, where: str) -> None:
    missing = sorted(set(names) - set(values))
    if missing:
        raise UsageError(
            f"{where}: {previous.address} does not tell {', '.join(missing)}: the column is new there or of "
            f"another type, has no such figure, or more values than are counted; take the expectation out of "
            f"the suite, or name a figure that its profile.json has."
        )


def parameters(previous: Previous, schema: pa.Schema) -> dict[str, Any]:
    """All that the version before tells, by parameter. Values of categories have the new columns' types."""
    profile = previous.profile
    found: dict[str, Any] = {"rows": profile.rows}
    found |= {told: previous.counts[count] for count, told in _COUNTS.items() if count in previous.counts}
    columns: dict[str, dict[str, Any]] = {}
    for name, histogram in profile.histograms.items():
        columns[name] = _of_histogram(histogram)
    for name, categories in profile.categories.items():
        kind = schema.field(name).type if name in schema.names else None
        columns[name] = columns.get(name, {}) | _of_categories(categories, kind)
    written = Counter(map(_plain, columns))
    for name, told in columns.items():
        if written[_plain(name)] == 1:  # Else nobody knows which column is meant.
            found |= {f"{_plain(name)}_{statistic}": value for statistic, value in told.items()}
    # A limit that is no number, or infinite, would fail or pass whatever comes.
    return {
        f"previous_{name}": value
        for name, value in found.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }


def _of_histogram(histogram: Histogram) -> dict[str, Any]:
    rows = histogram.values + histogram.nulls
    found: dict[str, Any] = {
        "mean": histogram.mean,
        "minimum": histogram.minimum,
        "maximum": histogram.maximum,
        "null_share": histogram.nulls / rows if rows else None,
        **{name: histogram.quantile(share) for name, share in _QUANTILES.items()},
    }
    if histogram.values:
        found["partition"] = _partition(histogram)
    return found


def _partition(histogram: Histogram) -> dict[str, list[float]]:
    """The bins that have values, and the tails; one row is spread over all, so that none has no weight."""
    counts, last = histogram.counts, len(histogram.edges) - 1
    used = [min(max(place, 1), last) for place, count in enumerate(counts) if count]
    low, high = used[0], used[-1]
    joined = [sum(counts[:low]), *counts[low : high + 1], sum(counts[high + 1 :])]
    shares = [(count + 1 / len(joined)) / (histogram.values + 1) for count in joined]
    edges = histogram.edges[low - 1 : high + 1]
    # Great Expectations' last bin has its upper edge in, the profile's has not.
    edges[-1] = math.nextafter(edges[-1], -math.inf)
    return {"bins": edges, "weights": shares[1:-1], "tail_weights": [shares[0], shares[-1]]}


def _of_categories(categories: Categories, kind: pa.DataType | None) -> dict[str, Any]:
    counted = sum(categories.counts.values())
    rows = counted + categories.other + categories.nulls
    found: dict[str, Any] = {"null_share": categories.nulls / rows if rows else None}
    found["distinct"] = None if categories.capped else categories.distinct
    whole = not categories.capped and all(len(value) < MAX_CATEGORY_CHARS for value in categories.counts)
    if whole and counted:
        values = _typed(list(categories.counts), kind)
        weights = [count / counted for count in categories.counts.values()]
        if values is not None:
            found |= {"values": values, "value_partition": {"values": values, "weights": weights}}
    return found


def _typed(values: list[str], kind: pa.DataType | None) -> list[Any] | None:
    """Values that a profile keeps as text, as the column has them; None if its type has no such values."""
    import pyarrow as pa

    if kind is None or not (pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        return values
    try:
        return list(pa.array(values, pa.string()).cast(kind).to_pylist())
    except pa.ArrowInvalid:
        return None


def _expressions(value: Any) -> list[str]:
    if isinstance(value, dict):
        if PARAMETER in value:
            return [str(value[PARAMETER])]
        return [text for part in value.values() for text in _expressions(part)]
    return [text for part in value for text in _expressions(part)] if isinstance(value, list) else []


def _named(expression: str, schema: pa.Schema, where: str) -> list[str]:
    """The parameters in an expression. Raises UsageError for one that no version could tell."""
    names = _NAMES.findall(expression)
    known = {"rows", *_COUNTS.values()}
    known |= {f"{_plain(name)}_{told}" for name in schema.names for told in _told_of(schema.field(name).type)}
    unknown = [name for name in names if name.removeprefix("previous_") not in known]
    if unknown or not names:
        raise UsageError(
            f"{where}: {PARAMETER} {unknown[0] if unknown else expression!r} is nothing that the version "
            f"before tells: write previous_rows, previous_input_rows or previous_<column>_<statistic>, "
            f"with a column of the data (of text, its characters or words) and one of "
            f"{', '.join(STATISTICS)}."
        )
    return names


def _told_of(kind: pa.DataType) -> list[str]:
    """What a profile may tell of a column of that type: of texts and messages, their lengths."""
    import pyarrow.types as types

    found = list(_OF_CATEGORIES)
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        found += _OF_NUMBERS
    elif not types.is_boolean(kind):
        found += [f"{unit}_{told}" for unit in ("characters", "words", "messages") for told in _OF_NUMBERS]
    return found


def _filled(value: Any, values: Mapping[str, Any], where: str) -> Any:
    """Arguments with each parameter's value in its place, by Great Expectations' own parser."""
    from great_expectations.core.suite_parameters import parse_suite_parameter

    if isinstance(value, list):
        return [_filled(part, values, where) for part in value]
    if not isinstance(value, dict):
        return value
    if PARAMETER not in value:
        return {key: _filled(part, values, where) for key, part in value.items()}
    try:
        return parse_suite_parameter(str(value[PARAMETER]), dict(values))
    except Exception as error:
        why = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UsageError(f"{where}: {PARAMETER} {value[PARAMETER]!r} has no value: {why}.") from None


def _noted(entry: dict[str, Any], note: str) -> dict[str, Any]:
    """With a note that says where its figures come from, as Great Expectations keeps notes."""
    meta = entry.get("meta") or {}
    told = meta.get("notes") or entry.get("notes") or []
    notes = [*(told if isinstance(told, list) else [told]), f"Compared with {note}."]
    return {**entry, "meta": {**meta, "notes": notes}} if meta.get("notes") else {**entry, "notes": notes}


def _label(entry: Any) -> str:
    told = entry if isinstance(entry, dict) else {}
    kwargs = told.get("kwargs")
    column = kwargs.get("column") if isinstance(kwargs, dict) else None
    return f"{told.get('type')}({column})" if column else str(told.get("type"))


def _plain(name: str) -> str:
    return re.sub(r"\W", "_", name, flags=re.ASCII)
