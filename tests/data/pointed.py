"""The dataset that ``--dataset`` points at: an artifact, a folder like one, or one's own files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.contracts import ArtifactRef, Manifest
from cluster.errors import NotFoundError
from cluster.settings import load_settings
from cluster.storage import ArtifactStore, ObjectStore, object_store
from jobs.preprocessing.files import SourceFile, opened, source_file
from tests.data.own_files import BATCH_ROWS, ROW_ID, data_files, own_tables, schema_of
from validation.data.profile import Profile, ProfileSpec, merge_profiles, profile_block
from validation.data.schema import Columns, describe_schema

SPLITS = ("train", "test")
PROFILE = "profile.json"


@dataclass(frozen=True)
class Pointed:
    """Where its splits' files are, and what is known beside them."""

    address: str
    splits: dict[str, list[SourceFile]]
    manifest: Manifest | None = None
    #: The profile that it came with.
    profile_json: bytes | None = None
    #: Of one's own files, which no job made: the columns of all.
    own: pa.Schema | None = None

    @property
    def identified(self) -> bool:
        """Whether its rows have ids of their own."""
        return self.own is None or ROW_ID in self.own.names

    @property
    def conversations(self) -> bool:
        """Whether its rows are conversations; else they are texts."""
        if self.own is None:
            return any("messages" in columns for columns in self.schemas().values())
        kind = describe_schema(self.own).get("messages")
        said = kind[0] if isinstance(kind, list) else None
        return isinstance(said, dict) and said.get("role") == said.get("content") == "string"

    def schemas(self) -> dict[str, Columns]:
        """By file."""
        files = [file for found in self.splits.values() for file in found]
        if self.own is not None:
            return {file.address: describe_schema(self.own) for file in files}
        return {file.address: describe_schema(_footer(file).schema.to_arrow_schema()) for file in files}

    def tables(self, split: str | None = None) -> Iterator[tuple[str, pa.Table]]:
        """Its rows in small tables, with the split they are of: never a whole file at once."""
        for name, files in self.splits.items():
            for file in files if split in (None, name) else []:
                for table in self.file_tables(file):
                    yield name, table

    def file_tables(self, file: SourceFile) -> Iterator[pa.Table]:
        """The rows of one of its files, as tables."""
        if self.own is not None:
            yield from own_tables(file, self.own)
            return
        with opened(file) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(BATCH_ROWS):
                yield pa.Table.from_batches([batch])

    def rows(self, split: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Its rows, one by one."""
        for name, table in self.tables(split):
            for row in table.to_pylist():
                yield name, row

    def count(self, split: str) -> int:
        """Rows of a split, by the files' footers if they have any."""
        files = self.splits[split]
        if any(file.format != "parquet" for file in files):
            return sum(table.num_rows for _, table in self.tables(split))
        return sum(_footer(file).num_rows for file in files)

    def profile(self, spec: ProfileSpec) -> Profile:
        """By ``spec``, computed anew from the rows that are there."""
        blocks = (profile_block(spec, with_parts(table, name)) for name, table in self.tables())
        return merge_profiles(spec, blocks)


def open_dataset(address: str) -> Pointed:
    """Open what ``address`` names. Raises a MantaError in one sentence."""
    here = Path(address).expanduser().exists()
    if not here and _is_artifact(address):
        return _artifact(address)
    if not here and not address.startswith("s3://") and not any(c in address for c in "*?["):
        raise NotFoundError(
            f"{address}: no such file or folder, and no artifact's address "
            "(<team>/dataset/<name>/<16 hex digits>, with or without s3://<bucket>/ before it)."
        )
    return _files(address)


def _artifact(address: str) -> Pointed:
    artifacts = ArtifactStore(_store(address))
    manifest = artifacts.open(address)
    names = sorted({f.path.partition("/")[0] for f in manifest.files if f.path.endswith(".parquet")})
    splits = {
        name: [source_file(uri, 0, None) for uri in artifacts.uris(manifest, name, ".parquet")]
        for name in names
        if name != "quarantine"
    }
    has_profile = any(f.path == PROFILE for f in manifest.files)
    profile = artifacts.read(manifest, PROFILE) if has_profile else None
    return Pointed(address, splits, manifest, profile)


def _files(address: str) -> Pointed:
    """A file, several, or a folder, which may have train/ and test/."""
    folder = address.rstrip("/")
    splits = {split: _below(f"{folder}/{split}") for split in SPLITS}
    splits = {split: files for split, files in splits.items() if files} or {"train": data_files(address)}
    files = [file for found in splits.values() for file in found]
    if not files:
        raise NotFoundError(
            f"{address} holds no Parquet, JSON Lines or CSV file, neither itself nor in train/ and test/."
        )
    profile = _profile(folder)
    if profile is not None or _made_by_a_job(files):
        return Pointed(address, splits, profile_json=profile)
    return Pointed(address, splits, own=schema_of(files))


def _below(folder: str) -> list[SourceFile]:
    """Files in a folder, and Parquet files at any depth below it."""
    found = {file.location: file for file in [*data_files(folder), *data_files(f"{folder}/**/*.parquet")]}
    return [found[location] for location in sorted(found)]


def _made_by_a_job(files: list[SourceFile]) -> bool:
    return all(f.format == "parquet" and ROW_ID in _footer(f).schema.to_arrow_schema().names for f in files)


def _footer(file: SourceFile) -> pq.FileMetaData:
    with opened(file) as stream:
        return pq.read_metadata(stream)


def _profile(folder: str) -> bytes | None:
    if folder.startswith("s3://"):
        store = object_store()
        key = store.key(f"{folder}/{PROFILE}")
        return store.get(key) if store.exists(key) else None
    told = Path(folder).expanduser() / PROFILE
    return told.read_bytes() if told.is_file() else None


def _is_artifact(address: str) -> bool:
    try:
        ArtifactRef.parse(address)
    except ValueError:
        return False
    return "://" in address or not address.startswith("/")


def open_reference(address: str) -> Profile:
    """The profile that ``--reference`` names: a profile.json, or a dataset that has one."""
    if address.endswith(".json"):
        return Profile.from_json(Path(address).read_bytes())
    found = open_dataset(address)
    if found.profile_json is None:
        raise NotFoundError(f"{address} has no profile.json: name the file, or a dataset that has one.")
    return Profile.from_json(found.profile_json)


def question(row: dict[str, Any]) -> bytes:
    """Equal for rows that ask the same: all messages but the answer, else everything but the id."""
    messages = row.get("messages")
    asked = messages[:-1] if messages else {k: v for k, v in row.items() if k not in ("row_id", "split")}
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).digest()[:16]


def with_parts(table: pa.Table, split: str, wanted: Container[str] | None = None) -> pa.Table:
    """With the columns that the shipped suites look at: split, and of messages prompt and completion.

    :param wanted: which of them; all if absent.
    """
    made = [name for name in ("split", "prompt", "completion") if wanted is None or name in wanted]
    if "split" in made and "split" not in table.column_names:
        table = table.append_column("split", pa.array([split] * table.num_rows, pa.string()))
    if (
        {"prompt", "completion"} & set(made)
        and "messages" in table.column_names
        and "prompt" not in table.column_names
    ):
        messages = [found or [] for found in table["messages"].to_pylist()]
        prompts = ["\n".join(str(m["content"]) for m in found[:-1]) for found in messages]
        answers = [found[-1]["content"] if found else None for found in messages]
        table = table.append_column("prompt", pa.array(prompts, pa.string()))
        table = table.append_column("completion", pa.array(answers, pa.string()))
    return table


def _store(address: str) -> ObjectStore:
    """The bucket in the address, else the settings'."""
    settings = load_settings().storage
    bucket = address.partition("://")[2].partition("/")[0] if "://" in address else settings.bucket
    return ObjectStore(bucket, settings)
