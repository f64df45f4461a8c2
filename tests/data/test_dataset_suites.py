"""The suites of CI for data pass a good dataset, and each fails on the one fault that it is there for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.contracts import ArtifactRef, CodeRevision, Principal
from cluster.storage import ArtifactStore, ObjectStore
from validation.data.profile import Profile, ProfileSpec, merge_profiles, profile_block
from validation.data.schema import describe_schema

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
SCHEMA = pa.schema([("row_id", pa.string()), ("messages", pa.list_(MESSAGE)), ("label", pa.string())])
SPEC = ProfileSpec(texts=["messages"], categories=["label"])
Splits = dict[str, list[dict[str, Any]]]


def rows(first: int, count: int, words: int = 3) -> list[dict[str, Any]]:
    return [
        {
            "row_id": f"r{n}",
            "messages": [
                {"role": "user", "content": f"question {n} " + "about " * words},
                {"role": "assistant", "content": "yes"},
            ],
            "label": "yes",
        }
        for n in range(first, first + count)
    ]


def good() -> Splits:
    return {"train": rows(0, 90), "test": rows(1000, 10)}


def table(found: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(found, schema=SCHEMA)


def profile(splits: Splits) -> Profile:
    blocks = [table(found).append_column("split", pa.array([s] * len(found))) for s, found in splits.items()]
    return merge_profiles(SPEC, [profile_block(SPEC, block) for block in blocks])


def write(folder: Path, splits: Splits, told: Profile | None = None) -> Path:
    for split, found in splits.items():
        (folder / split).mkdir(parents=True)
        pq.write_table(table(found), folder / split / "0.parquet")
    (folder / "profile.json").write_bytes((told or profile(splits)).to_json())
    return folder


#: Runs the suites once for each list of arguments that it reads, in one process: what they import is imported
#: once.
RUNNER = """
import contextlib, io, json, os, sys
import pytest
from cluster.settings import load_settings
from cluster.storage import object_store

class Outcomes:
    def __init__(self):
        self.found = {}
    def pytest_runtest_logreport(self, report):
        name = report.nodeid.rpartition("::")[2]
        if report.when == "call" or report.outcome != "passed":
            self.found[name] = report.outcome

for line in sys.stdin:
    arguments, environment = json.loads(line)
    os.environ.clear()
    os.environ.update(environment)
    load_settings.cache_clear()
    object_store.cache_clear()
    outcomes, said = Outcomes(), io.StringIO()
    with contextlib.redirect_stdout(said):
        status = pytest.main(["tests/data/test_dataset.py", "-p", "no:cacheprovider", *arguments], [outcomes])
    print(json.dumps([int(status), outcomes.found, said.getvalue()]), flush=True)
"""
Judged = tuple[int, dict[str, str], str]
#: Lists of arguments, and more of the environment, to each run's exit status, outcome by test, and output.
Judge = Callable[..., list[Judged]]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    log = tmp_path_factory.mktemp("runner") / "stderr"
    command = [sys.executable, "-c", RUNNER]
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as runner,
    ):
        asked, answered = runner.stdin, runner.stdout
        assert asked is not None
        assert answered is not None

        def one(arguments: list[str], environment: dict[str, str]) -> Judged:
            print(json.dumps([arguments, dict(os.environ) | environment]), file=asked, flush=True)
            for line in answered:
                if line.startswith("["):
                    status, outcomes, said = json.loads(line)
                    return status, outcomes, said
            raise AssertionError(log.read_text())

        yield lambda *runs, **environment: [one(arguments, environment) for arguments in runs]
        asked.close()


def failed(outcomes: dict[str, str]) -> list[str]:
    return [name for name, outcome in outcomes.items() if outcome not in ("passed", "skipped")]


def empty_message(splits: Splits) -> None:
    splits["train"][3]["messages"][0]["content"] = "  "


def no_answer(splits: Splits) -> None:
    splits["test"][3]["messages"].pop()


def leaked(splits: Splits) -> None:
    splits["train"][7]["messages"] = splits["test"][2]["messages"]


def repeated_id(splits: Splits) -> None:
    splits["train"][7]["row_id"] = "r8"


def longer(splits: Splits) -> None:
    splits["train"][:] = rows(0, 90, words=60)


CONVERSATION = "test_no_message_is_empty_and_each_conversation_ends_with_an_answer"
FAULTS: dict[Callable[[Splits], None], tuple[str, str]] = {
    empty_message: (CONVERSATION, "has an empty message"),
    no_answer: (CONVERSATION, "does not end with"),
    leaked: ("test_nothing_asked_in_test_is_asked_in_train", "'r7', 'r1002'"),
    repeated_id: ("test_row_ids_are_unique", "such as ['r8']"),
    longer: ("test_drift_from_the_reference_is_not_large", "large drift of messages.characters"),
}


def test_a_good_dataset_passes_and_each_planted_fault_fails_its_own_test(
    judge: Judge, tmp_path: Path
) -> None:
    reference = str(write(tmp_path / "good", good()))
    runs: list[list[str]] = [[], ["--dataset", reference, "--reference", reference]]
    for fault in FAULTS:
        splits = good()
        fault(splits)
        bad = str(write(tmp_path / fault.__name__, splits))
        runs.append(["--dataset", bad, "--reference", reference])
    other = profile({"train": rows(0, 89), "test": rows(1000, 10)})
    runs.append(["--dataset", str(write(tmp_path / "told", good(), told=other))])
    runs.append(["--dataset", str(tmp_path / "nothing")])
    for name, text in (("texts", "a text"), ("blanks", " ")):
        pq.write_table(pa.table({"row_id": ["a", "b"], "text": ["one", text]}), tmp_path / f"{name}.parquet")
        runs.append(["--dataset", str(tmp_path / f"{name}.parquet")])

    nothing, fine, *faulty, told, unknown, texts, blanks = judge(*runs)
    assert nothing[0] == 0
    assert set(nothing[1].values()) == {"skipped"}
    assert "give --dataset" in nothing[2]
    assert (fine[0], failed(fine[1])) == (0, []), fine[2]
    assert list(fine[1].values()).count("passed") == 7, fine[2]
    for (test, words), (status, outcomes, said) in zip(FAULTS.values(), faulty, strict=True):
        assert (status, failed(outcomes)) == (1, [test]), said
        assert words in said
    assert failed(told[1]) == ["test_the_profile_is_that_of_the_rows"], told[2]
    assert unknown[0] == 2
    assert "nothing: no such file or folder" in unknown[2]
    assert (texts[0], failed(texts[1])) == (0, []), texts[2]
    assert failed(blanks[1]) == ["test_no_text_is_empty"], blanks[2]


OWN: list[dict[str, Any]] = [
    {"text": "2009-09-09", "id": 1, "year": 1990},
    {"text": "two", "id": 2, "year": 2001},
    {"text": None, "id": 3, "year": 3020},
    {"text": "four", "id": 4, "year": 2020.5},
]
MINE = """
name: mine
expectations:
  - {type: expect_column_values_to_be_between, kwargs: {column: year, max_value: 2030}}
  - {type: expect_column_values_to_not_be_null, kwargs: {column: text}, severity: warning}
  - {type: expect_column_values_to_match_strftime_format, kwargs: {column: text, strftime_format: "%Y-%m-%d"},
     severity: info}
  - {type: expect_column_values_to_be_unique, kwargs: {column: id}}
  - {type: expect_table_columns_to_match_set, kwargs: {column_set: [row_id, text, id, year]}}
"""


def own(folder: Path) -> list[str]:
    """The rows as files of each kind: in a folder with splits, as JSON Lines, as CSV, as Parquet."""
    import gzip

    lines = [json.dumps(row) for row in OWN]
    (folder / "both" / "train").mkdir(parents=True)
    (folder / "both" / "test").mkdir()
    (folder / "both" / "train" / "a.jsonl").write_text("\n".join(lines[:2]))
    (folder / "both" / "test" / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[2:]).encode()))
    (folder / "one.jsonl").write_text("\ufeff" + "\n\n".join(lines) + "\n")
    fields = [",".join("" if value is None else str(value) for value in row.values()) for row in OWN]
    (folder / "two.csv").write_text("\n".join(["text,id,year", *fields]))
    rows = [row | {"year": float(row["year"])} for row in OWN]
    pq.write_table(pa.Table.from_pylist(rows), folder / "four.parquet")
    return [str(folder / name) for name in ("both", "one.jsonl", "two.csv", "four.parquet")]


def test_ones_own_files_are_looked_at_as_far_as_they_can_be(judge: Judge, tmp_path: Path) -> None:
    files = own(tmp_path)
    (tmp_path / "broken.jsonl").write_text('{"text": "one"}\n{"text": \n')
    (tmp_path / "blank.csv").write_text("text,note\none,\n,\n")
    nowhere = tmp_path / "no" / "such" / "thing"
    wrong = [tmp_path / "broken.jsonl", tmp_path / "mine.txt", nowhere]
    (tmp_path / "mine.txt").write_text("a line")
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.csv").write_text("a\none\n")
    (tmp_path / "mixed" / "b.csv").write_text("a\n1\n")
    runs = [["--dataset", str(name)] for name in (*files, *wrong, tmp_path / "mixed", tmp_path / "blank.csv")]
    *fine, broken, text, missing, mixed, blank = judge(*runs)
    for status, outcomes, said in fine:
        assert (status, failed(outcomes)) == (0, []), said
        assert "these files have no column row_id" in said
    # What can leak is looked for, where there are two splits.
    assert [list(outcomes.values()).count("passed") for _, outcomes, _ in fine] == [3, 2, 2, 2]
    for (status, outcomes, said), words in (
        (broken, "broken.jsonl line 2: broken JSON"),
        (text, "mine.txt is no Parquet, JSON Lines or CSV file"),
        (missing, f"{nowhere}: no such file or folder"),
        (mixed, "a column holds values of several types"),
    ):
        assert (status, outcomes) == (2, {}), said
        assert f"--dataset: {tmp_path}" in said
        assert words in said
        assert "Traceback" not in said
    assert failed(blank[1]) == ["test_no_text_is_empty"], blank[2]
    assert "blank.csv:2" in blank[2]


@pytest.mark.integration
def test_ones_own_files_are_judged_by_ones_own_suite(
    judge: Judge, tmp_path: Path, store: ObjectStore, team: str, local_ray: None
) -> None:
    import ray

    bad, good_suite = tmp_path / "mine.yaml", tmp_path / "lenient.yaml"
    bad.write_text(MINE)
    good_suite.write_text(MINE.replace("max_value: 2030", "max_value: 4000"))
    _, jsonl, table_, _ = own(tmp_path)
    store.put(f"raw/{team}/train/one.jsonl", Path(jsonl).read_bytes())
    refused, passed, remote, unknown = judge(
        ["--dataset", jsonl, "--suite", str(bad)],
        ["--dataset", table_, "--suite", str(good_suite)],
        ["--dataset", store.uri(f"raw/{team}"), "--suite", str(good_suite)],
        ["--dataset", jsonl, "--suite", str(tmp_path / "none.yaml")],
        RAY_ADDRESS=ray.get_runtime_context().gcs_address,
    )
    assert failed(refused[1]) == ["test_the_suite_holds"], refused[2]
    for words in (
        "suite mine refuses the 4 rows:",
        f"critical: expect_column_values_to_be_between(year) [1 of 4 rows], such as {jsonl}:3",
        "warning: expect_column_values_to_not_be_null(text) [1 of 4 rows]",
        "info: expect_column_values_to_match_strftime_format(text) [2 of 4 rows]",
    ):
        assert words in refused[2]
    assert "gate(" not in refused[2]  # No code of ours.
    for status, outcomes, said in (passed, remote):
        assert (status, failed(outcomes)) == (0, []), said
        assert "suite mine: warning: expect_column_values_to_not_be_null(text) [1 of 4 rows]" in said
    assert unknown[0] == 2
    assert "--suite: suite" in unknown[2]


@pytest.mark.integration
def test_an_artifact_is_held_to_its_manifest_and_a_suite(
    judge: Judge, artifacts: ArtifactStore, team: str, local_ray: None
) -> None:
    import ray

    def stored(name: str, **counts: int) -> str:
        ref = ArtifactRef(team=team, kind="dataset", name=name, fingerprint="0" * 16)
        attempt = artifacts.attempt(ref, "run-1")
        for split, found in good().items():
            sink = pa.BufferOutputStream()
            pq.write_table(table(found), sink)
            attempt.write(f"{split}/0.parquet", sink.getvalue().to_pybytes())
        attempt.write("profile.json", profile(good()).to_json())
        attempt.commit(
            owner=Principal(key_id="tester", team=team),
            configuration={},
            counts=counts,
            summary={"schema": describe_schema(SCHEMA)},
            code=CodeRevision(git_revision=None, package=None, epoch=1),
            started_at=datetime.now(UTC),
        )
        return artifacts.store.uri(str(ref))

    fine, short = stored("fine", train=90, test=10), stored("short", train=91, test=10)
    good_run, bad_run = judge(
        ["--dataset", fine, "--reference", fine, "--suite", "messages"],
        ["--dataset", short, "--suite", "prompt-shield"],
        RAY_ADDRESS=ray.get_runtime_context().gcs_address,
    )
    assert (good_run[0], failed(good_run[1])) == (0, []), good_run[2]
    # Only that of texts is not for it.
    assert [name for name, outcome in good_run[1].items() if outcome == "skipped"] == [
        "test_no_text_is_empty"
    ]
    assert failed(bad_run[1]) == [
        "test_no_split_is_empty_and_the_counts_are_the_manifests",
        "test_the_suite_holds",
    ], bad_run[2]
    assert "other numbers of rows" in bad_run[2]
    assert "expect_column_values_to_be_in_set(completion)" in bad_run[2]
