"""The whole preprocess job, through its command, on the real S3 server and a real Ray."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.contracts import Manifest
from cluster.demo.data import put_demo_data
from cluster.job import command
from cluster.storage import ArtifactStore, ObjectStore
from jobs.preprocess import PreprocessConfig, run

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("local_ray")]

README = Path(__file__).parents[2] / "README.md"
CONTRACT = {
    "name": "small",
    "expectations": [
        {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "text", "mostly": 0.5}},
        {
            "type": "expect_column_values_to_be_in_set",
            "kwargs": {"column": "label", "value_set": [0, 1], "mostly": 0.6},
            "severity": "critical",
        },
        {
            "type": "expect_column_value_lengths_to_be_between",
            "kwargs": {"column": "text", "max_value": 3},
            "severity": "info",
        },
    ],
}


class Preprocess:
    """Runs the command in a folder of its own, and reads what it made."""

    def __init__(self, folder: Path, store: ObjectStore, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.store, self.artifacts, self._capsys = folder, store, ArtifactStore(store), capsys
        self.name = f"t{abs(hash(folder)) % 10**12}"

    def file(self, name: str, content: str | bytes) -> str:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def config(self, **fields: Any) -> str:
        suite = self.folder / "suite.yaml"
        if not suite.exists():
            suite.write_text(yaml.safe_dump(CONTRACT))
        values: dict[str, Any] = {
            "name": self.name,
            "columns": {"text": "string", "label": "int64"},
            "contract": str(suite),
            "template": {
                "prompt": "Say {text}",
                "completion": "{label}",
                "values": {"label": {"0": "no", "1": "yes"}},
            },
            "license": {"name": "CC0-1.0", "source": "made up"},
        }
        return self.file("config.yaml", yaml.safe_dump(values | fields))

    def __call__(self, *arguments: str, **fields: Any) -> int:
        return command(PreprocessConfig, run, ["--config", self.config(**fields), *arguments])

    def refused(self, words: str, status: int = 1, **fields: Any) -> str:
        """Run, expect one sentence with ``words``, and nothing visible; return the sentence."""
        self._capsys.readouterr()
        assert self(**fields) == status
        error = self._capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        assert words in error, error
        assert "Traceback" not in error
        assert self.manifest is None
        return error

    @property
    def manifest(self) -> Manifest | None:
        return self.artifacts.latest("default", "dataset", self.name)

    def made(self, folder: str) -> list[dict[str, Any]]:
        assert self.manifest is not None
        files = [f.path for f in self.manifest.files if f.path.startswith(f"{folder}/")]
        return rows([self.artifacts.read(self.manifest, path) for path in files])

    def checks(self) -> dict[str, Any]:
        assert self.manifest is not None
        found: dict[str, Any] = json.loads(self.artifacts.read(self.manifest, "checks.json"))
        return found


def rows(files: list[bytes]) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    assert files
    return [row for data in files for row in pq.read_table(io.BytesIO(data)).to_pylist()]


@pytest.fixture
def preprocess(tmp_path: Path, store: ObjectStore, capsys: pytest.CaptureFixture[str]) -> Preprocess:
    return Preprocess(tmp_path, store, capsys)


def test_every_row_is_kept_quarantined_or_a_duplicate(
    preprocess: Preprocess, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = preprocess.file(
        "train.csv",
        "text,label,extra\n"
        "one,0,x\n"
        '  one\x07 ,0,"a line\nbreak"\n'  # Equal to the first once normalised.
        "cafe\u0301,1,x\n"
        "shared,1,x\n"  # In test too.
        "odd,0,x\n"
        "odd,1,x\n"  # Contradicts the row before it.
        "seven,7,x\n"  # Breaks the contract, within its tolerance.
        "\x07,1,x\n"  # Empty once normalised.
        ",1,x\n"
        "{braces},0,x\n",
    )
    test = preprocess.file("test.csv", "text,label\nshared,1\nlast,0\n")
    assert preprocess(train=[train], test=[test], keep=["label"]) == 0

    # A gate says what does not hold, and the last lines where the pages are, which README's line fetches.
    said = capsys.readouterr().out
    assert "suite small passed: 2 of 3 expectations hold for 12 rows" in said
    assert "suite small info: expect_column_value_lengths_to_be_between(text) [6 of 12 rows] does not" in said
    *_, card, docs, apart_at, _ = [line.rpartition(": ")[2] for line in said.strip().splitlines()]
    monkeypatch.chdir(preprocess.folder)
    fetch = re.search(r'python -c "(.+copy_files\(\'s3:.+)"', README.read_text())
    assert fetch is not None
    address = card.removeprefix("s3://manta/").removesuffix("/card.html")
    line = fetch[1].replace("ADDRESS/attempts/RUN", address)
    subprocess.run([sys.executable, "-c", line], check=True)
    assert "<h1>" in Path("card.html").read_text()
    assert preprocess.store.exists(preprocess.store.key(docs))
    assert list(preprocess.store.list(preprocess.store.key(apart_at)))

    manifest = preprocess.manifest
    assert manifest is not None
    assert manifest.counts == {"input": 12, "train": 3, "test": 2, "quarantined": 7, "duplicates": 4}
    kept, held_out = preprocess.made("train"), preprocess.made("test")
    assert set(kept[0]) == {"row_id", "messages", "label"}
    by_prompt = {row["messages"][0]["content"]: row for row in kept + held_out}
    assert set(by_prompt) == {"Say one", "Say caf\u00e9", "Say {braces}", "Say shared", "Say last"}
    assert by_prompt["Say caf\u00e9"]["messages"][1] == {"role": "assistant", "content": "yes"}
    assert by_prompt["Say caf\u00e9"]["label"] == "yes"
    assert {row["messages"][0]["content"] for row in held_out} == {"Say shared", "Say last"}

    apart = {row["line"]: row for row in preprocess.made("quarantine")}
    assert {line: row["stage"] for line, row in apart.items()} == {
        3: "exact_duplicates",
        6: "exact_duplicates",
        7: "exact_duplicates",
        8: "exact_duplicates",
        9: "contract",
        10: "shape",
        11: "contract",
    }
    assert apart[9]["reason"] == "expect_column_values_to_be_in_set(label)"
    assert json.loads(apart[9]["raw"]) == {"text": "seven", "label": 7}
    assert apart[9]["source"] == train
    ids = [row["row_id"] for row in (*kept, *held_out, *apart.values())]
    assert len(set(ids)) == 12

    assert manifest.summary["contaminated"] == 1
    assert manifest.summary["license"]["name"] == "CC0-1.0"
    checks = preprocess.checks()
    assert checks["suites"]["contract"]["success"]
    assert [e["severity"] for e in checks["suites"]["contract"]["expectations"]] == [
        "critical",
        "critical",
        "info",
    ]
    assert checks["suites"]["final"]["rows"] == 5


def test_equal_inputs_are_found_done_and_other_files_make_the_same_data(preprocess: Preprocess) -> None:
    lines = [json.dumps({"id": f"r{i}", "text": f"text {i}", "label": i % 2}) for i in range(40)]
    first = preprocess.file("a.jsonl", "\n".join(lines) + "\n")
    columns = {"id": "string", "text": "string", "label": "int64"}
    fields: dict[str, Any] = {"columns": columns, "id_column": "id", "split": {"test_fraction": 0.3}}
    assert preprocess(train=[first], **fields) == 0
    once = preprocess.manifest
    assert once is not None
    assert once.counts["train"] + once.counts["test"] == 40
    assert 4 <= once.counts["test"] <= 20
    assert preprocess(train=[first], **fields) == 0
    assert preprocess.manifest == once

    # The same rows in another order, in two compressed files: another artifact, the same data.
    preprocess.file("b-1.jsonl.gz", gzip.compress("\n".join(lines[20:]).encode()))
    preprocess.file("b-2.jsonl.gz", gzip.compress("\n\n".join(lines[:20]).encode()))
    assert preprocess(train=[str(preprocess.folder / "b-*.jsonl.gz")], **fields) == 0
    again = preprocess.manifest
    assert again is not None
    assert again.ref != once.ref
    assert again.data_digest == once.data_digest


def test_a_changed_suite_makes_another_version(preprocess: Preprocess) -> None:
    train = preprocess.file("a.csv", "text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(30)))
    assert preprocess(train=[train]) == 0
    once = preprocess.manifest
    (preprocess.folder / "suite.yaml").write_text(
        yaml.safe_dump(CONTRACT | {"expectations": CONTRACT["expectations"][:2]})
    )
    assert preprocess(train=[train]) == 0
    assert preprocess.manifest is not None
    assert once is not None
    assert preprocess.manifest.ref.fingerprint != once.ref.fingerprint


def test_parquet_messages_from_s3(preprocess: Preprocess) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    talks = [
        [{"role": "user", "content": f"q{i} "}, {"role": "assistant", "content": "a"}] for i in range(30)
    ]
    talks[7] = talks[7][:1]  # Ends with the user.
    sink = io.BytesIO()
    pq.write_table(pa.table({"talk": talks, "text": [f"t{i}" for i in range(30)], "label": [0] * 30}), sink)
    preprocess.store.put(f"raw/{preprocess.name}/x/part-0.parquet", sink.getvalue())
    status = preprocess(
        train=[preprocess.store.uri(f"raw/{preprocess.name}/*/part-*.parquet")],
        columns={"talk": "messages", "text": "string", "label": "int64"},
        template={"messages": "talk"},
        split={"test_fraction": 0.3},
    )
    assert status == 0
    assert len(preprocess.made("train")) + len(preprocess.made("test")) == 29
    assert preprocess.made("train")[0]["messages"][0]["content"].startswith("q")
    assert [row["reason"] for row in preprocess.made("quarantine")] == [
        "the conversation does not end with the assistant"
    ]


def test_broken_lines_can_be_kept_apart(preprocess: Preprocess) -> None:
    good = [json.dumps({"text": f"t{i}", "label": i % 2}) for i in range(30)]
    broken = [
        '{"text": "a", "lab',
        "[1, 2]",
        '{"text": 5, "label": 1}',
        '{"text": "\\ud800", "label": 1}',
        "\xff",
    ]
    content = "\n".join([*good, *broken]).encode("latin-1")
    train = preprocess.file("a.jsonl", content)
    assert preprocess(train=[train], broken_lines="quarantine") == 0
    apart = preprocess.made("quarantine")
    assert [row["line"] for row in apart] == [31, 32, 33, 34, 35]
    assert {row["stage"] for row in apart} == {"read"}
    assert apart[0]["raw"] == broken[0]
    assert preprocess.manifest is not None
    assert preprocess.manifest.counts["input"] == 35


GOOD = '{"text": "t", "label": 1}\n'


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "a.jsonl",
            GOOD * 2 + '{"text": "x" "label"}\n' + GOOD,
            "a.jsonl line 3: broken JSON (Expecting ','",
        ),
        ("a.jsonl", GOOD + "[" * 100_000 + "\n", "a.jsonl line 2: broken JSON (nested too deeply)"),
        ("a.jsonl", b'{"text": "\xff", "label": 1}\n', "a.jsonl line 1: broken JSON (byte 11 is not UTF-8)"),
        ("a.jsonl", "[]\n", "a.jsonl line 1: an array, where one JSON object a line is due"),
        ("a.jsonl", GOOD + '{"text": "x", "label": "one"}\n', 'line 2: label is "one", not int64'),
        ("a.jsonl", GOOD + '{"text": "x", "label": 1e400}\n', "line 2: label is Infinity, not int64"),
        ("a.jsonl", '{"text": "x"}\n', "a.jsonl has no column label: it has text"),
        ("a.jsonl", "", "a.jsonl is empty"),
        ("a.jsonl", "\n\n", "a.jsonl is empty"),
        ("a.csv", "text,label\n", "a.csv is empty"),
        ("a.csv", "", "a.csv is empty"),
        ("a.csv", "prompt,label\nx,1\n", "a.csv has no column text: it has label, prompt"),
        ("a.csv", "text,text,label\nx,y,1\n", "a.csv has more than one column text"),
        ("a.csv", "text,label\nx,1\nx,1,2\n", "a.csv line 3: 3 fields, where the header has 2"),
        ("a.csv", 'text,label\n"open,1\n', "a.csv line 2: broken CSV"),
        ("a.csv", "text,label\nx,1.5\n", 'a.csv line 2: label is "1.5", not int64'),
        ("a.csv", b"text,label\n\xff\xfe,1\n", "a.csv is not UTF-8"),
        (
            "a.csv.gz",
            gzip.compress(b"text,label\n" + os.urandom(5000).hex().encode() + b",1\n")[:-2000],
            "a.csv.gz",
        ),
        ("a.csv.gz", "text,label\nx,1\n", "a.csv.gz cannot be read"),
        ("a.parquet", "no parquet at all", "a.parquet cannot be read"),
    ],
)
def test_a_bad_file_is_told_in_one_sentence(
    preprocess: Preprocess, name: str, content: str | bytes, words: str
) -> None:
    preprocess.refused(words, train=[preprocess.file(name, content)])


def test_files_that_cannot_be_had(preprocess: Preprocess) -> None:
    missing = str(preprocess.folder / "none.csv")
    preprocess.refused("none.csv: no such file", train=[missing])
    preprocess.refused("no such file", train=[str(preprocess.folder / "*.csv")])
    preprocess.refused("no such file", train=[preprocess.store.uri("raw/none.csv")])
    preprocess.refused("MANTA_STORAGE__BUCKET", status=2, train=["s3://elsewhere/none.csv"])
    preprocess.refused("its ending says no known format", status=2, train=[preprocess.file("a.xlsx", "x")])
    (preprocess.folder / "folder").mkdir()
    preprocess.refused("folder: no such file", train=[str(preprocess.folder / "folder")])
    # Opens, and cannot be read by anybody.
    (preprocess.folder / "b.csv").symlink_to("/proc/self/mem")
    preprocess.refused("b.csv cannot be read", train=[str(preprocess.folder / "b.csv")])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission(preprocess: Preprocess) -> None:
    path = preprocess.file("a.csv", "text,label\nx,1\n")
    Path(path).chmod(0)
    preprocess.refused("a.csv cannot be read: permission denied", train=[path])


def test_an_id_that_is_none(preprocess: Preprocess) -> None:
    columns = {"id": "string", "text": "string", "label": "int64"}
    twice = preprocess.file("a.csv", "id,text,label\na,x,1\nb,y,1\na,z,1\n")
    preprocess.refused("'a' at line 4", train=[twice], columns=columns, id_column="id")
    absent = preprocess.file("b.csv", "id,text,label\n,x,1\n")
    preprocess.refused(
        "b.csv line 2: no value in the id column id", train=[absent], columns=columns, id_column="id"
    )


def test_a_failing_suite_names_the_expectations_and_leaves_the_rows_to_look_at(
    preprocess: Preprocess,
) -> None:
    train = preprocess.file("a.csv", "text,label\n" + "".join(f"t{i},{i % 4}\n" for i in range(40)))
    error = preprocess.refused("expect_column_values_to_be_in_set(label) [20 of 40 rows]", train=[train])
    assert "refuses the 40 rows" in error
    prefix = preprocess.store.key(error.rsplit(" ", 1)[-1].rstrip("."))
    keys = [item.key for item in preprocess.store.list(prefix)]
    apart = rows([preprocess.store.get(key) for key in keys])
    assert len(apart) == 20
    assert {json.loads(row["raw"])["label"] for row in apart} == {2, 3}
    checks = json.loads(preprocess.store.get(prefix.removesuffix("quarantine/") + "checks.json"))
    assert checks["suites"]["contract"]["success"] is False


@pytest.mark.parametrize(
    ("suite", "column", "words"),
    [
        ("contract", "lable", "lable (did you mean label?); the columns are row_id, label, text."),
        (
            "contract",
            "completion",
            "completion (finished rows have it: name it in final); the columns",
        ),
        ("final", "label", "label (finished rows have it if keep names it); the columns are row_id, split, "),
    ],
)
@pytest.mark.parametrize("severity", ["critical", "info"])
def test_a_column_that_no_row_has_is_a_mistake_of_the_suite(
    preprocess: Preprocess, suite: str, column: str, words: str, severity: str
) -> None:
    kind = "expect_column_values_to_not_be_null"
    wrong = {"type": kind, "kwargs": {"column": column}, "severity": severity}
    # That one judges which columns there are.
    exists = {"type": "expect_column_to_exist", "kwargs": {"column": "nothing"}, "severity": "info"}
    content = {"name": "wrong", "expectations": [exists, wrong]}
    # It is told before a row is read: this file could not be.
    fields: dict[str, Any] = {"train": [preprocess.file("a.csv", "nothing\n")]}
    fields[suite] = preprocess.file(f"{suite}-wrong.yaml", yaml.safe_dump(content))
    error = preprocess.refused(words, 2, **fields)
    assert error.startswith(f"error: suite wrong: {kind}({column}): there is no column {words}")


def test_more_cpus_than_there_are_is_refused(preprocess: Preprocess) -> None:
    train = preprocess.file("a.csv", "text,label\nx,1\n")
    preprocess.refused("Preprocessing asks for 64 CPUs", train=[train], num_cpus=64)


def test_a_split_without_rows_is_refused(preprocess: Preprocess) -> None:
    train = preprocess.file("train.csv", "text,label\nx,1\ny,0\n")
    test = preprocess.file("test.csv", "text,label\nx,1\nx,0\n")
    error = preprocess.refused("no row is left for test", train=[train], test=[test])
    assert "test_fraction" not in error
    # Of few rows a small share is none: the sentence says which would do.
    few = preprocess.file("few.csv", "text,label\n" + "".join(f"t{i},{i % 3}\n" for i in range(30)))
    fields: dict[str, Any] = {"train": [few], "split": {"test_fraction": 0.001}}
    error = preprocess.refused("no row is left for test: 20 train, 0 test, 10 quarantined", **fields)
    told = re.search(r"split\.test_fraction 0\.001 holds out none .*: (\S+) would, .* and 0 makes", error)
    assert told is not None
    prefix = preprocess.store.key(error.rsplit(" ", 1)[-1].rstrip("."))
    assert len(rows([preprocess.store.get(item.key) for item in preprocess.store.list(prefix)])) == 10
    assert preprocess(**fields | {"split": {"test_fraction": float(told[1])}}) == 0
    assert preprocess.made("test")
    assert preprocess(**fields | {"split": {"test_fraction": 0}}) == 0
    assert len(preprocess.made("train")) == 20


def test_the_demo_data(
    preprocess: Preprocess, store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    data = put_demo_data(store)
    assert put_demo_data(store) == data
    assert b"MIT License" in store.get(store.key(data.license))
    config = "jobs/configs/demo/preprocess.yaml"
    arguments = [
        "--config",
        config,
        "--name",
        preprocess.name,
        "--train",
        data.train,
        "--test",
        data.test,
        "--json",
    ]
    assert command(PreprocessConfig, run, arguments) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert result["summary"]["train"] > 11_000
    assert result["summary"]["test"] == 2101
    manifest = preprocess.manifest
    assert manifest is not None
    counts = manifest.counts
    assert counts["input"] == 13_190
    assert counts["train"] + counts["test"] + counts["quarantined"] == counts["input"]
    assert {row["messages"][-1]["content"] for row in preprocess.made("test")} == {"safe", "attack"}
    assert {json.loads(row["raw"])["text"] for row in preprocess.made("quarantine")} >= {"#NAME?"}
