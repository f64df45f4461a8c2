"""A dataset with other columns is refused before anything is computed on it, in one sentence."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.contracts import ArtifactRef, CodeRevision, Manifest, Principal
from cluster.errors import RefusedError
from cluster.storage import ArtifactStore
from jobs.batch.source import SourceConfig, resolve
from jobs.rows import Row, read_rows, split_files
from validation.data.schema import CONVERSATIONS, MESSAGES, describe_schema, refuse_schema

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
WIDE = pa.struct([("role", pa.large_string()), ("content", pa.large_string()), ("name", pa.string())])
GOOD = pa.schema([("row_id", pa.string()), ("messages", pa.list_(MESSAGE))])


@pytest.mark.parametrize("kind", [pa.list_(MESSAGE), pa.large_list(WIDE)])
def test_how_arrow_stores_a_column_does_not_matter(kind: pa.DataType) -> None:
    ids = pa.dictionary(pa.int32(), pa.string())
    found = describe_schema(pa.schema([("row_id", ids), ("messages", kind), ("score", pa.float64())]))
    assert (found["row_id"], found["score"]) == ("string", "double")
    refuse_schema(found, CONVERSATIONS, "the dataset", "training")
    assert describe_schema(GOOD) == CONVERSATIONS


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"row_id": "string"}, "d has no column messages (its columns: row_id), which training needs"),
        ({}, "d has no column row_id, messages (its columns: none)"),
        ({"row_id": "int64", "messages": MESSAGES}, "d: column row_id is int64, but training needs string"),
        (
            {"row_id": "string", "messages": "string"},
            "is string, but training needs [{role: string, content: string}]",
        ),
        ({"row_id": "string", "messages": [{"role": "string"}]}, "column messages is [{role: string}]"),
        ({"row_id": "string", "messages": [{"role": "string", "content": "binary"}]}, "content: binary"),
    ],
)
def test_a_column_that_is_missing_or_of_another_type_is_named(columns: dict[str, Any], words: str) -> None:
    with pytest.raises(RefusedError) as refused:
        refuse_schema(columns, CONVERSATIONS, "d", "training")
    assert words in str(refused.value)
    assert str(refused.value).count(". ") == 0


def stored(artifacts: ArtifactStore, team: str, name: str, *tables: pa.Table, **summary: Any) -> Manifest:
    ref = ArtifactRef(team=team, kind="dataset", name=name, fingerprint="0" * 16)
    attempt = artifacts.attempt(ref, "run-1")
    for number, table in enumerate(tables):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        attempt.write(f"train/{number}.parquet", sink.getvalue().to_pybytes())
    return attempt.commit(
        owner=Principal(key_id="tester", team=team),
        configuration={},
        summary=summary,
        code=CodeRevision(git_revision=None, package=None, epoch=1),
        started_at=datetime.now(UTC),
    )


def rows(schema: pa.Schema = GOOD) -> pa.Table:
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    return pa.Table.from_pylist(
        [{"row_id": "b", "messages": said}, {"row_id": "a", "messages": said}], schema=schema
    )


@pytest.mark.integration
def test_readers_take_what_fits_and_refuse_the_rest(artifacts: ArtifactStore, team: str) -> None:
    good = stored(artifacts, team, "good", rows(), schema=describe_schema(GOOD))
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    assert read_rows(artifacts, good, "train") == [Row("a", said), Row("b", said)]

    raw = pa.table({"row_id": ["a"], "text": ["x"]})
    # A version whose schema was not recorded is known by its files.
    for name, summary in (("told", {"schema": describe_schema(raw.schema)}), ("untold", {})):
        other = stored(artifacts, team, name, raw, **summary)
        with pytest.raises(RefusedError, match=f"{other.ref} has no column messages .*fine-tuning needs"):
            split_files(artifacts, other, "train", reader="fine-tuning")

    # A file that is not what the manifest says is refused when it is read.
    odd = stored(artifacts, team, "odd", rows(), raw, schema=describe_schema(GOOD))
    with pytest.raises(RefusedError, match=r"train/1\.parquet, has no column messages"):
        read_rows(artifacts, odd, "train")


@pytest.mark.integration
def test_a_batch_over_a_dataset_is_refused_before_it_starts(artifacts: ArtifactStore, team: str) -> None:
    other = stored(
        artifacts,
        team,
        "plain",
        pa.table({"row_id": ["a"], "text": ["x"]}),
        schema={"row_id": "string", "text": "string"},
    )
    asked = SourceConfig(dataset=str(other.ref), split="train")
    with pytest.raises(RefusedError, match=r"has no column messages .*this batch needs"):
        resolve(asked, artifacts.store, team)
    fits = asked.model_copy(update={"prompt_column": "text"})
    assert [r.row_id for r in resolve(fits, artifacts.store, team).requests()] == ["a"]
