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
from jobs.preprocessing.duplicates import gathered, keys_of
from jobs.preprocessing.files import source_file
from jobs.preprocessing.finishing import Finishing
from jobs.preprocessing.marking import Marking, TextRule, refuse_unusable
from jobs.preprocessing.masking import mask_of, masked_report
from jobs.preprocessing.parts import renumbered
from jobs.preprocessing.reading import BLOCK_ROWS, READ, SIZE, read_tables
from jobs.preprocessing.rows import RowFormat, contract_schema
from jobs.preprocessing.shaping import Shape, Split, Template
from tests.data.in_process import over_blocks
from validation.data.gate import GatePlan, conclude, plan_gate
from validation.data.language import Language
from validation.data.personal import PersonalData
from validation.data.suite import Suite

UNIQUE = {
    "name": "final",
    "expectations": [{"type": "expect_column_values_to_be_unique", "kwargs": {"column": "row_id"}}],
}
BETWEEN = {"type": "expect_column_values_to_be_between", "kwargs": {"column": "n", "max_value": 10}}


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., str]:
    def write(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
        path = tmp_path / name
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(list(rows)), path)
        else:
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
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


def test_a_contract_judges_what_came_in_and_copies_are_made_of_what_keeps_it(
    written: Callable[..., str],
) -> None:
    form = RowFormat({"text": "string", "n": "int64"})
    plan = plan_of(
        form,
        BETWEEN | {"severity": "critical"},
        {"type": "expect_column_values_to_be_unique", "kwargs": {"column": "n"}},
        {"type": "expect_table_row_count_to_equal", "kwargs": {"value": 3}},
    )
    rows = [{"text": "a", "n": 1}, {"text": "b", "n": 2}, {"text": "c", "n": 99}]
    (table,) = read_tables(source_file(written("a.jsonl", rows), 0, "train"), form)
    block = marking_of(form, plan, augment=f"{__name__}:twice")(table)
    assert block["n"].to_pylist() == [1, 2, 99, 1, 1, 2, 2]
    again = without(block, {READ, SIZE}, copies=False)
    report = conclude(plan, partials_of(block), over_blocks([again]))
    assert [e.success for e in report.expectations] == [False, True, True]
    assert report.told() == [
        "failed: 2 of 3 expectations hold for 3 rows",
        "critical: expect_column_values_to_be_between(n) [1 of 3 rows] does not hold",
    ]
    # What is bad about a row that was read is bad about what was made of it.
    first = block["row_id"][0].as_py()
    assert len(keys_of(block, frozenset())) == 6
    assert len(keys_of(block, frozenset([first]))) == 3
    finished = Finishing(form, marking_of(form).shape)
    final = plan_gate(Suite("final", UNIQUE), finished.suite_schema())
    done, _ = finished(block, gathered(), {first: "it is bad"}, final)
    assert [
        (row["_stage"], row["_reason"]) for row in done.to_pylist() if row["row_id"].startswith(first)
    ] == [("contract", "it is bad")] * 3


def test_a_broken_line_is_told_with_its_column(tmp_path: Path) -> None:
    broken = tmp_path / "a.jsonl"
    broken.write_text('{"text": "on')
    (table,) = read_tables(source_file(str(broken), 0, "train"), RowFormat({"text": "string"}))
    assert table["_reason"].to_pylist() == [
        f"{broken} line 1: broken JSON (Unterminated string starting at column 10)."
    ]


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


EMAIL = "jane.doe@example.com"
SSN = "078-05-1120"
PROTECT = TextRule(
    "personal_data",
    "personal_data",
    PersonalData(entities={"EMAIL_ADDRESS": "mask", "PHONE_NUMBER": "mask", "US_SSN": "drop"}),
)


def test_refused_rows_are_masked_whatever_stage_refused_them(written: Callable[..., str]) -> None:
    form = RowFormat({"text": "string", "label": "string"}, keep_broken=True, max_row_bytes=2000)
    plan = plan_of(
        form,
        {"type": "expect_column_values_to_not_match_regex", "kwargs": {"column": "text", "regex": "^no"}},
    )
    texts = [f"line\n{EMAIL}", f"no {EMAIL}", f"{SSN} is of {EMAIL}", f"{EMAIL} " * 200, f"a {EMAIL}"]
    rows: list[dict[str, Any]] = [{"text": text, "label": "a"} for text in texts]
    rows += [{"text": f"x {EMAIL}", "label": 5}, {"text": "y", "label": [EMAIL]}]
    template = Template(prompt="{text}", completion="{label}", values={"label": {"a": "A"}})
    shape = Shape(template, (), ("text",), Split())
    rows.append({"text": "z", "label": EMAIL})
    (table,) = read_tables(source_file(written("a 555-123-4567.jsonl", rows), 0, None), form)
    block = Marking(form, Normalise(), shape, contract=plan, rules=[PROTECT])(table)
    marked = block.drop_columns(["_summary", "_gate", "_key"]).to_pylist()
    stages = [None, "contract", "personal_data", "size", None, "read", "read", "shape"]
    assert [row["_stage"] for row in marked] == stages
    told = json.dumps(marked)
    assert "jane" not in told
    assert "example.com" not in told
    assert SSN not in told
    assert marked[0]["text"] == "line\n<EMAIL_ADDRESS>"
    assert marked[2]["text"] == "<US_SSN> is of <EMAIL_ADDRESS>"
    assert json.loads(marked[5]["_raw"]) == {"text": "x <EMAIL_ADDRESS>", "label": 5}
    assert "<EMAIL_ADDRESS>" in marked[7]["_reason"]
    assert "/a 555-123-4567.jsonl line 7: " in marked[6]["_reason"]


def test_an_empty_text_is_dropped_as_such_before_its_language_is_guessed(written: Callable[..., str]) -> None:
    form = RowFormat({"text": "string", "label": "string"})
    rule = TextRule("language", "language", Language(keep=("en",)))
    english = "The river is behind the garden, and the bridge is near the old market."
    texts = [english, "", None, " \u2003", "Der Fluss ist hinter dem Garten, und die Brücke am Markt."]
    (table,) = read_tables(
        source_file(written("a.jsonl", [{"text": text, "label": "a"} for text in texts]), 0, None), form
    )
    document, asked = (
        Shape(None, ("text",), ("text",), Split()),
        Template(prompt="{text}", completion="{label}"),
    )
    for shape, reason in (
        (document, "there is no text after normalising"),
        (Shape(asked, (), ("text",), Split()), "text is empty after normalising"),
    ):
        block = Marking(form, Normalise(), shape, rules=[rule])(table)
        assert list(zip(block["_stage"].to_pylist(), block["_reason"].to_pylist(), strict=True)) == [
            (None, None),
            *[("shape", reason)] * 3,
            ("language", "language_de"),
        ]
        assert told_by(block).tally.judged == {"language": 2}
    # What a template makes of other columns is there, and nobody can say in which language.
    labels = Shape(Template(prompt="What?", completion="{label}"), (), ("text",), Split())
    assert Marking(form, Normalise(), labels, rules=[rule])(table)["_stage"].to_pylist()[:4] == [None] * 4


def test_reports_are_masked() -> None:
    form = RowFormat({"text": "string"})
    table = pa.table({"row_id": ["a", "b"], "text": [EMAIL, f"{'word ' * 36}{EMAIL}"]})
    expectations = [
        {"type": "expect_column_values_to_be_in_set", "kwargs": {"column": "text", "value_set": ["x"]}},
        {
            "type": "expect_column_most_common_value_to_be_in_set",
            "kwargs": {"column": "text", "value_set": ["x"]},
        },
    ]
    plan = plan_of(form, *expectations)
    report = conclude(plan, [plan.judge_block(table).partial], over_blocks([table]))
    assert EMAIL in report.model_dump_json()
    told = masked_report(report, mask_of(PROTECT.rule))
    assert "jane" not in told.model_dump_json()
    assert "jane" not in " ".join(e.describe() for e in told.expectations)
    assert [e.unexpected_count for e in told.expectations] == [2, None]
    assert [row["row_id"] for row in told.expectations[0].examples] == ["a", "b"]


@pytest.mark.parametrize(("column", "again"), [("text", True), ("n", False), ("row_id", False)])
def test_columns_that_a_contract_needs_after_they_are_masked_are_known(column: str, again: bool) -> None:
    form = RowFormat({"text": "string", "n": "int64"})
    plan = plan_of(form, {"type": "expect_column_values_to_be_unique", "kwargs": {"column": column}})
    assert plan.read_again == [column]
    assert bool(set(plan.read_again) & set(marking_of(form, plan, rules=[PROTECT]).masked_columns)) is again
    assert marking_of(form, plan).masked_columns == []


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv"])
def test_a_row_is_as_large_as_its_bytes(written: Callable[..., str], tmp_path: Path, name: str) -> None:
    texts = ["é" * 400, "é" * 600, "e" * 600]
    if name == "a.csv":
        (tmp_path / name).write_text("".join(f"{text}\n" for text in ["text", *texts]))
    else:
        written(name, [{"text": text} for text in texts])
    form = RowFormat({"text": "string"}, max_row_bytes=1000)
    (table,) = read_tables(source_file(str(tmp_path / name), 0, None), form)
    assert table["_stage"].to_pylist() == [None, SIZE, None]


def test_messages_count_with_their_contents(written: Callable[..., str]) -> None:
    rows = [{"m": [{"role": "user", "content": "x" * size}] * 2} for size in (10, 600)]
    form = RowFormat({"m": "messages"}, max_row_bytes=1000)
    (table,) = read_tables(source_file(written("a.parquet", rows), 0, None), form)
    assert table["_stage"].to_pylist() == [None, SIZE]
    assert table["_score"].to_pylist()[1] == 1208


def test_blocks_of_parquet_end_by_bytes(written: Callable[..., str]) -> None:
    rows = [{"m": [{"role": "user", "content": "x" * 2**20}]} for _ in range(40)]
    form = RowFormat({"m": "messages"})
    tables = list(read_tables(source_file(written("a.parquet", rows), 0, None), form))
    assert [len(table) for table in tables] == [16, 16, 8]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize(("kind", "value"), [("string", " "), ("string", ""), ("float64", float("nan"))])
def test_an_id_that_says_nothing_is_none(
    written: Callable[..., str], name: str, kind: Any, value: Any
) -> None:
    form = RowFormat({"id": kind, "text": "string"}, "id")
    (table,) = read_tables(source_file(written(name, [{"id": value, "text": "a"}]), 0, None), form)
    assert table["_stage"].to_pylist() == [READ]
    assert "no value in the id column id" in table["_reason"][0].as_py()


def nothing(row: dict[str, Any]) -> Any:
    return None


def failing(row: dict[str, Any]) -> Any:
    return row["nothing"]


def numbers(row: dict[str, Any]) -> Any:
    return [1]


@pytest.mark.parametrize("hook", ["nothing", "failing", "numbers"])
def test_a_hook_that_gives_no_rows_is_named_with_the_row(written: Callable[..., str], hook: str) -> None:
    form = RowFormat({"id": "string", "text": "string"}, "id")
    rows = [{"id": "r1", "text": "a"}]
    (table,) = read_tables(source_file(written("a.jsonl", rows), 0, "train"), form)
    with pytest.raises(UsageError, match=rf"augment \S+:{hook}: .* row r1\.$"):
        marking_of(form, augment=f"{__name__}:{hook}")(table)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"augment": "mine.hook:lower"}, r"^augment mine\.hook:lower: No module named 'mine'; write package"),
        ({"augment": f"{__name__}:lower"}, r"has no attribute 'lower'; write package\.module:function\.$"),
        ({"augment": f"{__name__}:EMAIL"}, "is no function"),
        ({"language": {"keep": ["english"]}}, "^language english: not known"),
    ],
)
def test_what_no_worker_could_use_is_refused_before(fields: dict[str, Any], words: str) -> None:
    config = config_of(train=["a.jsonl"], **fields)
    with pytest.raises(UsageError, match=words):
        refuse_unusable(config.augment, config.rules)


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
