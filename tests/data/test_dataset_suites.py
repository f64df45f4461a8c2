"""The suites of CI for data pass a good dataset, and each fails on the one fault that it is there for."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.contracts import ArtifactRef, CodeRevision, Principal
from cluster.storage import ArtifactStore
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


def judge(*arguments: str) -> tuple[int, dict[str, str], str]:
    """Run the suites as a user does; exit status, outcome by test, and what was printed."""
    command = [sys.executable, "-m", "pytest", "tests/data/test_dataset.py", "-v", "-p", "no:cacheprovider"]
    run = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300)
    found = re.findall(r"::(test_\w+) (PASSED|FAILED|SKIPPED|ERROR)", run.stdout)
    return run.returncode, dict(found), run.stdout


def failed(outcomes: dict[str, str]) -> list[str]:
    return [name for name, outcome in outcomes.items() if outcome not in ("PASSED", "SKIPPED")]


def test_without_a_dataset_they_are_skipped_and_say_why() -> None:
    status, outcomes, said = judge()
    assert status == 0
    assert set(outcomes.values()) == {"SKIPPED"}
    assert "give --dataset" in said


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


FAULTS: dict[Callable[[Splits], None], tuple[str, str]] = {
    empty_message: (
        "test_no_message_is_empty_and_each_conversation_ends_with_an_answer",
        "has an empty message",
    ),
    no_answer: ("test_no_message_is_empty_and_each_conversation_ends_with_an_answer", "does not end with"),
    leaked: ("test_nothing_asked_in_test_is_asked_in_train", "'r7', 'r1002'"),
    repeated_id: ("test_row_ids_are_unique", "such as ['r8']"),
    longer: ("test_drift_from_the_reference_is_not_large", "large drift of messages.characters"),
}


@pytest.mark.slow
def test_a_good_dataset_passes_and_each_planted_fault_fails_its_own_test(tmp_path: Path) -> None:
    reference = write(tmp_path / "good", good())
    status, outcomes, said = judge("--dataset", str(reference), "--reference", str(reference))
    assert (status, failed(outcomes)) == (0, []), said
    assert list(outcomes.values()).count("PASSED") == 7, said
    for fault, (test, words) in FAULTS.items():
        splits = good()
        fault(splits)
        bad = write(tmp_path / fault.__name__, splits)
        status, outcomes, said = judge("--dataset", str(bad), "--reference", str(reference))
        assert (status, failed(outcomes)) == (1, [test]), said
        assert words in said
    told = write(tmp_path / "told", good(), told=profile({"train": rows(0, 89), "test": rows(1000, 10)}))
    assert failed(judge("--dataset", str(told))[1]) == ["test_the_profile_is_that_of_the_rows"]


@pytest.mark.integration
def test_an_artifact_is_held_to_its_manifest_and_a_suite(artifacts: ArtifactStore, team: str) -> None:
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

    fine = stored("fine", train=90, test=10)
    status, outcomes, said = judge("--dataset", fine, "--reference", fine, "--suite", "messages")
    assert (status, set(outcomes.values())) == (0, {"PASSED"}), said
    status, outcomes, said = judge(
        "--dataset", stored("short", train=91, test=10), "--suite", "prompt-shield"
    )
    assert failed(outcomes) == [
        "test_no_split_is_empty_and_the_counts_are_the_manifests",
        "test_the_suite_holds",
    ], said
    assert "other numbers of rows" in said
    assert "expect_column_values_to_be_in_set(completion)" in said
