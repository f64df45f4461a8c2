"""The dataset that ``--dataset`` points at: an artifact, a folder, or one Parquet file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from cluster.contracts import Manifest
from cluster.errors import NotFoundError
from cluster.settings import load_settings
from cluster.storage import ArtifactStore, ObjectStore
from validation.data.profile import Profile, ProfileSpec, merge_profiles, profile_block
from validation.data.schema import Columns, describe_schema

BATCH_ROWS = 10_000
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Pointed:
    """Where its splits' Parquet files are, and what is known beside them."""

    address: str
    filesystem: fs.FileSystem
    splits: dict[str, list[str]]
    manifest: Manifest | None = None
    #: The profile that it came with.
    profile_json: bytes | None = None

    @property
    def conversations(self) -> bool:
        """Whether its rows are conversations; else they are texts."""
        return any("messages" in columns for columns in self.schemas().values())

    def schemas(self) -> dict[str, Columns]:
        """By file."""
        files = [file for found in self.splits.values() for file in found]
        return {file: describe_schema(pq.read_schema(file, filesystem=self.filesystem)) for file in files}

    def tables(self, split: str | None = None) -> Iterator[tuple[str, pa.Table]]:
        """Its rows in small tables, with the split they are of: never a whole file at once."""
        for name, files in self.splits.items():
            for file in files if split in (None, name) else []:
                for table in self.file_tables(file):
                    yield name, table

    def file_tables(self, file: str) -> Iterator[pa.Table]:
        """The rows of one of its files, as tables."""
        with self.filesystem.open_input_file(file) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(BATCH_ROWS):
                yield pa.Table.from_batches([batch])

    def rows(self, split: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Its rows, one by one."""
        for name, table in self.tables(split):
            for row in table.to_pylist():
                yield name, row

    def count(self, split: str) -> int:
        """Rows of a split, by the files' footers."""
        return sum(pq.read_metadata(f, filesystem=self.filesystem).num_rows for f in self.splits[split])

    def profile(self, spec: ProfileSpec) -> Profile:
        """By ``spec``, computed anew from the rows that are there."""
        blocks = (profile_block(spec, with_parts(table, name)) for name, table in self.tables())
        return merge_profiles(spec, blocks)


def open_dataset(address: str) -> Pointed:
    """Open what ``address`` names. Raises NotFoundError or UsageError in one sentence."""
    path = Path(address).expanduser()
    if path.is_file():
        return Pointed(address, fs.LocalFileSystem(), {"train": [str(path)]})
    if path.is_dir():
        return _folder(address, path)
    if "://" not in address and address.count("/") != 3:
        raise NotFoundError(f"{address}: no such file or folder, and no artifact's address.")
    store = _store(address)
    artifacts = ArtifactStore(store)
    manifest = artifacts.open(address)
    names = sorted({f.path.partition("/")[0] for f in manifest.files if f.path.endswith(".parquet")})
    splits = {
        name: [uri.removeprefix("s3://") for uri in artifacts.uris(manifest, name, ".parquet")]
        for name in names
        if name != "quarantine"
    }
    has_profile = any(f.path == "profile.json" for f in manifest.files)
    profile = artifacts.read(manifest, "profile.json") if has_profile else None
    return Pointed(address, store.filesystem(), splits, manifest, profile)


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


def with_parts(table: pa.Table, split: str) -> pa.Table:
    """With the columns that the shipped suites look at: split, and of messages prompt and completion."""
    if "split" not in table.column_names:
        table = table.append_column("split", pa.array([split] * table.num_rows, pa.string()))
    if "messages" in table.column_names and "prompt" not in table.column_names:
        messages = [found or [] for found in table["messages"].to_pylist()]
        prompts = ["\n".join(str(m["content"]) for m in found[:-1]) for found in messages]
        answers = [found[-1]["content"] if found else None for found in messages]
        table = table.append_column("prompt", pa.array(prompts, pa.string()))
        table = table.append_column("completion", pa.array(answers, pa.string()))
    return table


def _folder(address: str, path: Path) -> Pointed:
    splits = {split: sorted(str(f) for f in (path / split).glob("**/*.parquet")) for split in SPLITS}
    splits = {split: files for split, files in splits.items() if files}
    splits = splits or {"train": sorted(str(f) for f in path.glob("*.parquet"))}
    if not any(splits.values()):
        raise NotFoundError(f"{address} holds no Parquet file, neither itself nor in train/ and test/.")
    told = path / "profile.json"
    profile = told.read_bytes() if told.is_file() else None
    return Pointed(address, fs.LocalFileSystem(), splits, profile_json=profile)


def _store(address: str) -> ObjectStore:
    """The bucket in the address, else the settings'."""
    settings = load_settings().storage
    bucket = address.partition("://")[2].partition("/")[0] if "://" in address else settings.bucket
    return ObjectStore(bucket, settings)
