"""Where the prompts of a batch come from: files in S3 or on disk, or a split of a dataset artifact.

Every line is read and checked before anything runs: a line that cannot be asked is named, with its file
and number, and the whole batch is refused. Formats: JSONL in OpenAI's batch format, Parquet and CSV.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cluster.contracts import ArtifactInput
from cluster.errors import AccessError, NotFoundError, UsageError
from cluster.storage import ArtifactStore, ObjectStore
from jobs.batch.lines import bad, parse_openai_lines
from jobs.batch.rows import BatchRequest
from jobs.batch.sorting import SortedSpill
from jobs.inputs import find_artifact
from validation.data.schema import CONVERSATIONS, MESSAGES, SUMMARY_KEY, Columns, refuse_schema

if TYPE_CHECKING:
    from pyarrow import fs

#: A row's file and line; as bytes they sort as they stand.
_PLACE = struct.Struct(">IQ")
Format = Literal["openai", "parquet", "csv"]
FORMATS: dict[str, Format] = {
    ".jsonl": "openai",
    ".ndjson": "openai",
    ".parquet": "parquet",
    ".csv": "csv",
}


class SourceConfig(BaseModel):
    """The prompts: either ``path``, or ``dataset``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | None = Field(
        None, description="A file or folder, local or s3://: .jsonl (OpenAI batch), .parquet, .csv."
    )
    dataset: str | None = Field(None, description="A dataset artifact's address, or latest:<name>.")
    split: str = Field("test", description="Which split of the dataset.")
    messages_column: str | None = Field(
        None, description="Column with a list of {role, content}; 'messages' in a dataset."
    )
    prompt_column: str | None = Field(None, description="Column that holds the user's message.")
    prompt_template: str | None = Field(
        None, description="The user's message, with {column} for each column in it."
    )
    system_prompt: str | None = Field(
        None, description="System message put before a column's or template's prompt."
    )
    id_column: str | None = Field(
        None, description="Column with unique row ids; else they are hashed from file and row number."
    )
    expected_column: str | None = Field(
        None,
        description="Column with the right answer, by which compared models are judged; of a dataset the last"
        " message, if the assistant says it.",
    )
    limit: int | None = Field(None, ge=1, description="Only the first so many rows.")

    @model_validator(mode="after")
    def _one_source(self) -> SourceConfig:
        if (self.path is None) == (self.dataset is None):
            raise ValueError(
                "give either path (a file or folder) or dataset (an artifact), not both and not neither"
            )
        ways = [self.messages_column, self.prompt_column, self.prompt_template]
        if sum(way is not None for way in ways) > 1:
            raise ValueError("give one of messages_column, prompt_column and prompt_template")
        return self


@dataclass(frozen=True)
class SourceFile:
    """One file that holds prompts."""

    address: str
    path: str
    format: Format
    filesystem: fs.FileSystem

    def open(self) -> BinaryIO:
        """The file for reading, positioned anywhere."""
        try:
            return cast(BinaryIO, self.filesystem.open_input_file(self.path))
        except FileNotFoundError:
            raise NotFoundError(f"{self.address}: no such file.") from None
        except OSError as error:
            raise AccessError(f"{self.address} cannot be read: {_short(error)}.") from None

    def digest(self) -> str:
        """SHA-256 of the file's bytes."""
        with self.open() as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


@dataclass(frozen=True)
class Source:
    """Resolved prompts: immutable files, and the inputs that a manifest names."""

    config: SourceConfig
    files: list[SourceFile]
    inputs: list[ArtifactInput]

    @property
    def order(self) -> str:
        """SHA-256 of what decides which row has which number: the files, in their order."""
        named = [*(file.address for file in self.files), *(item.digest for item in self.inputs)]
        return hashlib.sha256("\0".join(named).encode()).hexdigest()

    def requests(self, ids: SortedSpill | None = None) -> Iterator[BatchRequest]:
        """Every row as a request, checked; that no id stands twice is known once all are read.

        :param ids: gets every row's id.

        Raises UsageError that names file and line for the first row that cannot be asked, or for no rows.
        """
        with SortedSpill() as own:
            ids = own if ids is None else ids
            yield from self._all(ids)
            self._refuse_repeated(ids)

    def _all(self, ids: SortedSpill) -> Iterator[BatchRequest]:
        count = 0
        for place, file in enumerate(self.files):
            for line, request in self._rows(file):
                ids.add(request.row_id, _PLACE.pack(place, line))
                yield request.at(count)
                count += 1
                if count == self.config.limit:
                    return
        if not count:
            where = self.config.path or f"{self.config.dataset}, split {self.config.split}"
            raise UsageError(f"{where} holds no rows; nothing was run.")

    def _refuse_repeated(self, ids: SortedSpill) -> None:
        first: tuple[bytes, bytes, str] | None = None
        before: tuple[str, bytes] = ("", b"")
        for row_id, place in ids:
            if row_id == before[0] and before[1] and (first is None or place < first[0]):
                first = (place, before[1], row_id)
            before = (row_id, place)
        if first is None:
            return
        file, line = _PLACE.unpack(first[0])
        earlier, earlier_line = _PLACE.unpack(first[1])
        where = f"{Path(self.files[earlier].path).name}:{earlier_line}"
        raise bad(self.files[file].address, line, f"the row id {first[2]!r} was used before ({where})")

    def _rows(self, file: SourceFile) -> Iterator[tuple[int, BatchRequest]]:
        if file.format == "openai":
            with file.open() as stream:
                # Arrow's files have no lines of their own.
                yield from parse_openai_lines(file.address, io.BufferedReader(cast(Any, stream)))
            return
        rows = _parquet_rows(file) if file.format == "parquet" else _csv_rows(file)
        for number, row in rows:
            yield number, self._request(file.address, number, row)

    def _request(self, address: str, number: int, row: Mapping[str, Any]) -> BatchRequest:
        row_id = self._row_id(address, number, row)
        messages, expected = self._messages(address, number, row), None
        if self.config.dataset is not None and len(messages) > 1 and messages[-1]["role"] == "assistant":
            *messages, last = messages  # A labelled row ends with the expected answer.
            expected = last["content"]
        if self.config.expected_column is not None:
            right = _column(address, row, self.config.expected_column)
            expected = None if right is None else str(right)
        return BatchRequest(row_id, row_id, "chat", {"messages": messages}, expected=expected)

    def _row_id(self, address: str, number: int, row: Mapping[str, Any]) -> str:
        column = self.config.id_column or ("row_id" if self.config.dataset is not None else None)
        if column is None:
            return row_id(address, number)
        value = _column(address, row, column)
        if value is None or value == "":
            raise bad(address, number, f"column {column!r} holds no row id")
        return str(value)

    def _messages(self, address: str, number: int, row: Mapping[str, Any]) -> list[dict[str, str]]:
        config = self.config
        if config.prompt_template is not None:
            prompt = _fill(config.prompt_template, address, row)
        elif config.prompt_column is not None:
            prompt = _column(address, row, config.prompt_column)
        else:
            return _listed(address, number, _column(address, row, config.messages_column or "messages"))
        if not isinstance(prompt, str) or not prompt.strip():
            raise bad(address, number, "the prompt is empty")
        system = [{"role": "system", "content": config.system_prompt}] if config.system_prompt else []
        return [*system, {"role": "user", "content": prompt}]


def resolve(config: SourceConfig, store: ObjectStore, team: str) -> Source:
    """Find the files behind ``config`` and their digests.

    Raises NotFoundError, AccessError or UsageError in one sentence.
    """
    if config.dataset is not None:
        return _from_dataset(config, store, team)
    files = _list_files(str(config.path), store)
    lines = next((file for file in files if file.format == "openai"), None)
    if lines is not None and config.expected_column is not None:
        raise UsageError(
            f"{lines.address} is in OpenAI's batch format, which has no column for right answers: leave"
            " source.expected_column out, or give the rows as Parquet or CSV."
        )
    return Source(
        config, files, [ArtifactInput(address=file.address, digest=file.digest()) for file in files]
    )


def row_id(address: str, number: int) -> str:
    """The id of a row without one: 16 hex digits of SHA-256 over its file's address and its number."""
    return hashlib.sha256(f"{address}#{number}".encode()).hexdigest()[:16]


def _from_dataset(config: SourceConfig, store: ObjectStore, team: str) -> Source:
    artifacts, wanted = ArtifactStore(store), str(config.dataset)
    manifest = find_artifact(artifacts, team, "dataset", wanted)
    paths = [
        e.path
        for e in manifest.files
        if e.path.startswith(f"{config.split}/") and e.path.endswith(".parquet")
    ]
    if not paths:
        known = ", ".join(sorted({e.path.split("/")[0] for e in manifest.files if "/" in e.path}))
        raise UsageError(f"{manifest.ref} has no split {config.split!r}; it has {known}.")
    if SUMMARY_KEY in manifest.summary:
        refuse_schema(manifest.summary[SUMMARY_KEY], _needed(config), str(manifest.ref), "this batch")
    prefix = artifacts.prefix(manifest)
    files = [
        SourceFile(store.uri(prefix + path), f"{store.bucket}/{prefix}{path}", "parquet", store.filesystem())
        for path in sorted(paths)
    ]
    return Source(config, files, [ArtifactInput(address=str(manifest.ref), digest=manifest.data_digest)])


def _needed(config: SourceConfig) -> Columns:
    """The columns of a dataset that a request is made from. Those of a template are told with their row."""
    ids: Columns = {} if config.id_column else {"row_id": CONVERSATIONS["row_id"]}
    if config.prompt_template is not None:
        return ids
    if config.prompt_column is not None:
        return ids | {config.prompt_column: "string"}
    return ids | {config.messages_column or "messages": MESSAGES}


def _list_files(path: str, store: ObjectStore) -> list[SourceFile]:
    from pyarrow import fs

    remote = path.startswith("s3://")
    files = store.filesystem() if remote else fs.LocalFileSystem()
    inner = path.removeprefix("s3://").rstrip("/") if remote else str(Path(path).expanduser().absolute())
    try:
        info = files.get_file_info(inner)
        found = (
            files.get_file_info(fs.FileSelector(inner, recursive=True))
            if info.type == fs.FileType.Directory
            else [info]
        )
    except OSError as error:
        raise AccessError(f"{path} cannot be read: {_short(error)}.") from None
    if info.type == fs.FileType.NotFound:
        raise NotFoundError(f"{path}: no such file or folder.")
    names = sorted(
        entry.path for entry in found if entry.is_file and Path(entry.path).suffix.lower() in FORMATS
    )
    if not names:
        raise UsageError(
            f"{path} is of no known format; prompts come from {', '.join(sorted(FORMATS))} files."
        )
    scheme = "s3://" if remote else "file://"
    return [SourceFile(scheme + name, name, FORMATS[Path(name).suffix.lower()], files) for name in names]


def _parquet_rows(file: SourceFile) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    with file.open() as stream:
        try:
            for batch in pq.ParquetFile(stream).iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except pa.ArrowException as error:
            raise UsageError(
                f"{file.address} is no readable Parquet file: {_short(error)}; nothing was run."
            ) from None


def _csv_rows(file: SourceFile) -> Iterator[tuple[int, dict[str, Any]]]:
    import csv

    with file.open() as stream, io.TextIOWrapper(cast(Any, stream), encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise bad(
                        file.address, reader.line_num, "it has another number of fields than the header"
                    )
                yield reader.line_num, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise bad(file.address, reader.line_num + 1, f"it is no CSV ({error})") from None


def _column(address: str, row: Mapping[str, Any], column: str) -> Any:
    if column not in row:
        raise UsageError(
            f"{address} has no column {column!r}; it has {', '.join(map(str, row))}; nothing was run."
        )
    return row[column]


def _fill(template: str, address: str, row: Mapping[str, Any]) -> str:
    # Not str.format: a template may name columns, and nothing else of theirs.
    parts = []
    try:
        for text, name, spec, conversion in Formatter().parse(template):
            parts.append(text)
            if name is not None:
                if spec or conversion:
                    raise ValueError("a column takes no format")
                parts.append(str(_column(address, row, name)))
    except ValueError as error:
        raise UsageError(f"prompt_template cannot be filled: {error}; write {{{{ for a brace.") from None
    return "".join(parts)


def _listed(address: str, number: int, value: Any) -> list[dict[str, str]]:
    whole = (
        isinstance(value, list)
        and value
        and all(
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in value
        )
    )
    if not whole:
        raise bad(address, number, "the messages are no list of {role, content}")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
