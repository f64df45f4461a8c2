"""The gate: a suite's verdict on a Ray Dataset."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from cluster.errors import RefusedError, UsageError
from validation.data.judge import (
    ROW_LOCAL,
    SCHEMA,
    TEXTUAL,
    WHOLE_COLUMN,
    Partial,
    columns_of,
    judge_frame,
    merge,
    partials,
    report_partial,
    report_whole,
)
from validation.data.report import ExpectationReport, GateReport
from validation.data.suite import Suite

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import ray.data

#: Up to this much data is judged in the driver; more goes to Ray tasks, each of which pays for importing
#: Great Expectations once a worker process.
DRIVER_BYTES = 64 * 2**20
#: Whole-column expectations bring their columns to the driver, up to this size.
MAX_COLUMN_BYTES = 2 * 2**30
BLOCK_ROWS = 100_000


def gate(
    dataset: ray.data.Dataset,
    suite: Suite,
    row_id: str = "row_id",
    *,
    driver_bytes: int = DRIVER_BYTES,
    num_cpus: float = 0.5,
) -> GateReport:
    """Judge ``dataset`` by ``suite``; the verdict is that of Great Expectations on the whole data.

    Materialise the dataset first if making it is costly: its columns are read in up to three passes.
    Row-local expectations are judged block by block (in Ray tasks of ``num_cpus`` logical CPUs if the data
    exceeds ``driver_bytes``), others on their own columns brought to the driver. ``row_id`` names the
    string column that identifies a row in the report.

    Raises UsageError that names the expectation which this gate cannot judge, RefusedError when
    a column that is needed whole is larger than :data:`MAX_COLUMN_BYTES`.
    """
    expectations = suite.build()
    _refuse_unsupported(suite, expectations)
    names = list(dataset.schema().names) if dataset.schema() is not None else []
    if row_id not in names:
        raise UsageError(f"suite {suite.name}: the data has no row id column {row_id}; it has {names}.")
    judged: dict[int, tuple[ExpectationReport, list[str]]] = {}
    present = []
    for position, expectation in enumerate(expectations):
        missing = [c for c in columns_of(expectation) if c not in names]
        if missing and expectation.configuration.type not in SCHEMA:
            judged[position] = _missing(expectation, missing[0], names)
        else:
            present.append((position, expectation))
    judged |= _row_local(dataset, _of(present, ROW_LOCAL), row_id, driver_bytes, num_cpus)
    judged |= _whole(_empty_frame(names), _of(present, SCHEMA), row_id)
    judged |= _whole_columns(dataset, suite, _of(present, WHOLE_COLUMN), row_id)
    return _assemble(suite, dataset.count(), judged)


Placed = list[tuple[int, Any]]
Judged = dict[int, tuple[ExpectationReport, list[str]]]


def _of(placed: Placed, types: frozenset[str]) -> Placed:
    return [(position, e) for position, e in placed if e.configuration.type in types]


def _refuse_unsupported(suite: Suite, expectations: Sequence[Any]) -> None:
    for expectation in expectations:
        configuration = expectation.configuration
        if configuration.type not in ROW_LOCAL | SCHEMA | WHOLE_COLUMN:
            raise UsageError(f"suite {suite.name}: {configuration.type} cannot be judged on blocks yet.")
        if configuration.kwargs.get("row_condition") is not None:
            raise UsageError(
                f"suite {suite.name}: {configuration.type} has a row_condition, not supported yet."
            )
        if "$PARAMETER" in json.dumps(dict(configuration.kwargs), default=str):
            raise UsageError(f"suite {suite.name}: {configuration.type} has a $PARAMETER, not supported yet.")


def _missing(expectation: Any, column: str, names: list[str]) -> tuple[ExpectationReport, list[str]]:
    info = {
        "raised_exception": True,
        "exception_message": f"no column {column}; there are {', '.join(names)}",
    }
    return report_whole(expectation, {"success": False, "result": {}, "exception_info": info}, "")


def _row_local(
    dataset: ray.data.Dataset, placed: Placed, row_id: str, driver_bytes: int, num_cpus: float
) -> Judged:
    if not placed:
        return {}
    expectations = [e for _, e in placed]
    narrow = dataset.select_columns(_columns(expectations, row_id))
    if (narrow.size_bytes() or 0) <= driver_bytes:
        blocks = _in_driver(narrow, expectations, row_id)
    else:
        blocks = _in_tasks(narrow, expectations, row_id, num_cpus)
    totals = merge(blocks, len(expectations))
    return {
        position: (report_partial(expectation, total), total.ids)
        for (position, expectation), total in zip(placed, totals, strict=True)
    }


def _in_driver(narrow: ray.data.Dataset, expectations: list[Any], row_id: str) -> Iterator[list[Partial]]:
    types = _types(narrow)
    for block in narrow.iter_batches(batch_size=BLOCK_ROWS, batch_format="pyarrow"):
        if block.num_rows:
            yield _judge_block(block, types, expectations, row_id)


def _in_tasks(
    narrow: ray.data.Dataset, expectations: list[Any], row_id: str, num_cpus: float
) -> Iterator[list[Partial]]:
    types = _types(narrow)
    configurations = [e.configuration.to_json_dict() for e in expectations]

    def judge(block: pa.Table) -> pa.Table:
        import pyarrow as pa

        if not block.num_rows:
            return pa.table({"partials": pa.array([], pa.string())})
        built = Suite("block", {"expectations": configurations}).build()
        found = [p.model_dump(mode="json") for p in _judge_block(block, types, built, row_id)]
        return pa.table({"partials": [json.dumps(found)]})

    judged = narrow.map_batches(judge, batch_size=BLOCK_ROWS, batch_format="pyarrow", num_cpus=num_cpus)
    for row in judged.iter_rows():
        yield [Partial.model_validate(part) for part in json.loads(row["partials"])]


def _whole_columns(dataset: ray.data.Dataset, suite: Suite, placed: Placed, row_id: str) -> Judged:
    judged: Judged = {}
    # One expectation at a time: only its own columns need to be in memory together.
    for position, expectation in placed:
        narrow = dataset.select_columns(_columns([expectation], row_id))
        size = narrow.size_bytes() or 0
        if size > MAX_COLUMN_BYTES:
            label = f"suite {suite.name}: {expectation.configuration.type}"
            raise RefusedError(
                f"{label} needs {size / 2**30:.1f} GiB of columns in "
                f"one place, more than the {MAX_COLUMN_BYTES / 2**30:.0f} GiB that the gate brings together."
            )
        judged |= _whole(_together(narrow).to_pandas(ignore_metadata=True), [(position, expectation)], row_id)
    return judged


def _whole(frame: pd.DataFrame, placed: Placed, row_id: str) -> Judged:
    if not placed:
        return {}
    results = judge_frame(frame, [e for _, e in placed], row_id)
    return {
        position: report_whole(expectation, result, row_id)
        for (position, expectation), result in zip(placed, results, strict=True)
    }


def _columns(expectations: Sequence[Any], row_id: str) -> list[str]:
    return list(dict.fromkeys([row_id, *(c for e in expectations for c in columns_of(e))]))


def _types(dataset: ray.data.Dataset) -> dict[str, Any]:
    schema = dataset.schema()
    return dict(zip(schema.names, schema.types, strict=True)) if schema is not None else {}


def _together(narrow: ray.data.Dataset) -> pa.Table:
    import pyarrow as pa

    blocks = list(narrow.iter_batches(batch_size=None, batch_format="pyarrow"))
    filled = [b for b in blocks if b.num_rows] or blocks[:1]
    # A block without any value has Arrow's null type, one with a null among integers none: promote.
    return pa.concat_tables(filled, promote_options="permissive") if filled else pa.table({})


def _aligned(block: pa.Table, types: dict[str, Any]) -> pa.Table:
    """Give every block the dataset's own types: a block without values, or without nulls, may have others."""
    import pyarrow as pa

    columns = []
    for name, column in zip(block.column_names, block.columns, strict=True):
        wanted = types.get(name)
        if isinstance(wanted, pa.DataType) and wanted != column.type:
            # What cannot be cast is left as it is: Great Expectations judges what is there.
            with suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
                column = column.cast(wanted)
        columns.append(column)
    return pa.table(columns, names=block.column_names)


def _judge_block(
    block: pa.Table, types: dict[str, Any], expectations: Sequence[Any], row_id: str
) -> list[Partial]:
    """Judge one block, whatever nulls it happens to have.

    Pandas turns integers beside a null into floats, which compare alike but read "7.0" as text. So
    expectations on text see integer columns as nullable integers; the others do not, because Great
    Expectations fails on those when it compares two columns.
    """
    block = _aligned(block, types)
    judged: dict[int, Partial] = {}
    for textual in (False, True):
        chosen = [i for i, e in enumerate(expectations) if (e.configuration.type in TEXTUAL) == textual]
        if chosen:
            mapper = _nullable_integers().get if textual else None
            frame = block.to_pandas(types_mapper=mapper, ignore_metadata=True)
            found = partials(frame, [expectations[i] for i in chosen], row_id)
            judged |= dict(zip(chosen, found, strict=True))
    return [judged[i] for i in range(len(expectations))]


def _nullable_integers() -> dict[Any, Any]:
    import pandas as pd
    import pyarrow as pa

    names = ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64")
    return {getattr(pa, name.lower())(): getattr(pd, f"{name}Dtype")() for name in names}


def _empty_frame(names: list[str]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame({name: [] for name in names})


def _assemble(suite: Suite, rows: int, judged: Judged) -> GateReport:
    reports, bad = [], dict[str, list[str]]()
    for position in sorted(judged):
        report, ids = judged[position]
        reports.append(report)
        if report.severity == "critical":
            for identity in ids:
                bad.setdefault(identity, []).append(report.label)
    success = all(r.success for r in reports if r.severity == "critical")
    return GateReport(
        suite=suite.name,
        suite_digest=suite.digest,
        rows=rows,
        success=success,
        expectations=reports,
        bad_rows=bad,
    )
