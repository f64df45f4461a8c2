"""The pass over single rows, from files to marked blocks and what these tell; no Ray."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import UsageError
from jobs.preprocess import PreprocessConfig, _files
from jobs.preprocessing.blocks import partials_of, told_by, without
from jobs.preprocessing.cleaning import Normalise
from jobs.preprocessing.files import source_file
from jobs.preprocessing.marking import Marking
from jobs.preprocessing.parts import renumbered
from jobs.preprocessing.reading import BLOCK_ROWS, READ, SIZE, read_tables
from jobs.preprocessing.rows import RowFormat, contract_schema
from jobs.preprocessing.shaping import Shape, Split
from validation.data.engine.rounds import over_blocks
from validation.data.gate import GatePlan, conclude, plan_gate
from validation.data.suite import Suite

BETWEEN = {"type": "expect_column_values_to_be_between", "kwargs": {"column": "n", "max_value": 10}}


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., str]:
    def write(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
        path = tmp_path / name
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(list(rows)), path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def plan_of(form: RowFormat, *expectations: dict[str, Any]) -> GatePlan:
    suite = Suite("contract", {"name": "contract", "expectations": list(expectations)})
    return plan_gate(suite, contract_schema(form))


def marking_of(form: RowFormat, plan: GatePlan | None = None, **fields: Any) -> Marking:
    text = tuple(name for name, kind in form.columns.items() if kind in ("string", "messages"))
    return Marking(
        form, Normalise(), Shape(None, tuple(form.columns), text, Split()), contract=plan, **fields
    )


def test_blocks_that_ray_data_joins_add_all_that_they_tell(written: Callable[..., str]) -> None:
    """Its output buffer makes one block of the small tables that a task yields."""
    form = RowFormat({"text": "string", "n": "int64"})
    rows = [{"text": f"r{i}", "n": 1 if i < BLOCK_ROWS else 99} for i in range(BLOCK_ROWS + 10)]
    plan = plan_of(form, BETWEEN | {"severity": "critical"})
    marking = marking_of(form, plan)
    file = source_file(written("a.jsonl", rows), 7, None)
    tables = [marking(table) for table in read_tables(file, form)]
    assert len(tables) == 2
    block = pa.concat_tables(tables)
    report = conclude(plan, partials_of(block), over_blocks([without(block, {READ, SIZE})]))
    assert (report.rows, report.success) == (len(rows), False)
    told = told_by(block).tally
    assert told.rows["read"] == len(rows)
    assert told.files == {"7": len(rows)}
    # As a part is stored, and loaded by a run in which the file has another number.
    assert told_by(renumbered(renumbered(block, -7), 2)).tally.files == {"2": len(rows)}


def twice(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [row, row]


def test_a_file_is_told_to_have_the_rows_that_were_read_of_it(written: Callable[..., str]) -> None:
    form = RowFormat({"text": "string"})
    marking = marking_of(form, augment=f"{__name__}:twice")
    (table,) = read_tables(source_file(written("a.jsonl", [{"text": "a"}, {"text": "b"}]), 1, "train"), form)
    tally = told_by(marking(table)).tally
    assert (tally.rows["augmented"], tally.files) == (4, {"1": 2})


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.arrow"])
def test_a_file_keeps_its_own_values_of_columns_that_are_joined(
    written: Callable[..., str], tmp_path: Path, name: str
) -> None:
    rows = [{"text": "a", "label": "own"}, {"text": "b", "label": None}]
    if name == "a.arrow":
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(tmp_path / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
    else:
        written(name, rows)
    form = RowFormat({"text": "string", "label": "string"}, joined=frozenset({"label"}))
    (table,) = read_tables(source_file(str(tmp_path / name), 0, None), form)
    assert table["label"].to_pylist() == ["own", None]


def config_of(**fields: Any) -> PreprocessConfig:
    base = {"name": "n", "columns": {"text": "string"}, "license": {"name": "CC0-1.0", "source": "made up"}}
    return PreprocessConfig.model_validate(base | fields)


def test_a_file_is_read_once_however_many_patterns_name_it(
    written: Callable[..., str], tmp_path: Path
) -> None:
    names = [written(f"{n}.jsonl", [{"text": "a"}]) for n in "ab"]
    sources = [str(tmp_path / "*.jsonl"), names[0], f"{tmp_path}/./b.jsonl"]
    assert [(f.address, f.number) for f in _files(config_of(train=sources))] == [(names[0], 0), (names[1], 1)]
    with pytest.raises(UsageError, match=r"b\.jsonl is among the files of train and of test"):
        _files(config_of(train=sources, test=[names[1]]))
