"""Rows of a batch: what is asked, what came back, and the files that hold either."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from cluster.contracts import Finding
from cluster.storage import Attempt, ObjectStore, canonical_json

if TYPE_CHECKING:
    import pyarrow as pa

Endpoint = Literal["chat", "completions"]
Status = Literal["succeeded", "blocked", "failed"]

#: Folders of the artifact.
OUTPUT, ERRORS = "output", "errors"
#: Rows that are in memory as Python values while a file is written.
_ROWS_PER_GROUP = 1000
#: Columns that tell how an answer was made and not what it is: equal answers have one digest without them.
MEASURED = frozenset({"seconds"})


@dataclass(frozen=True)
class BatchRequest:
    """One input row, normalised: an OpenAI request body and the names by which it is found again."""

    row_id: str
    custom_id: str
    endpoint: Endpoint
    body: dict[str, Any]
    #: Place in the source, from 0: by it a resumed batch knows which rows are answered.
    number: int = 0
    #: The right answer, where the source has one. No model sees it, and it is not stored.
    expected: str | None = None

    @property
    def prompt(self) -> str:
        """What a reader would call the prompt: the last message, or the completion's prompt."""
        if self.endpoint == "completions":
            return str(self.body.get("prompt", ""))
        messages = self.body.get("messages") or [{}]
        return text_of(messages[-1].get("content"))

    def at(self, number: int) -> BatchRequest:
        """The same row at its place in the source."""
        return replace(self, number=number)

    def with_body(self, body: dict[str, Any]) -> BatchRequest:
        """The same row with another body."""
        return replace(self, body=body)


@dataclass(frozen=True)
class Answer:
    """What became of one row. ``request`` is what the model saw, so redactions are in it."""

    request: BatchRequest
    status: Status
    response: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    body: dict[str, Any] | None = None
    input_findings: Sequence[Finding] = field(default_factory=tuple)
    output_findings: Sequence[Finding] = field(default_factory=tuple)
    error_code: str = ""
    error_message: str = ""
    seconds: float = 0.0

    def columns(self) -> dict[str, Any]:
        """The row as it is stored; the same columns in output/ and errors/, and its number besides."""
        return {
            "row_id": self.request.row_id,
            "custom_id": self.request.custom_id,
            "status": self.status,
            # A blocked prompt may hold the very thing that the policy keeps out of storage.
            "prompt": "" if self.status == "blocked" else self.request.prompt,
            "response": self.response,
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "body": canonical_json(self.body).decode() if self.body is not None else None,
            "input_action": strongest(self.input_findings),
            "output_action": strongest(self.output_findings),
            "guards": canonical_json({"input": self.input_findings, "output": self.output_findings}).decode(),
            "error_code": self.error_code,
            "error_message": self.error_message,
            "seconds": self.seconds,
            "number": self.request.number,
        }


def answer_schema() -> pa.Schema:
    """Arrow schema of output/ and errors/: fixed, so that an empty or all-null file has it too."""
    import pyarrow as pa

    text, whole = pa.string(), pa.int64()
    return pa.schema(
        {
            "row_id": text,
            "custom_id": text,
            "status": text,
            "prompt": text,
            "response": text,
            "finish_reason": text,
            "prompt_tokens": whole,
            "completion_tokens": whole,
            "body": text,
            "input_action": text,
            "output_action": text,
            "guards": text,
            "error_code": text,
            "error_message": text,
            "seconds": pa.float64(),
        }.items()
    )


def request_schema() -> pa.Schema:
    """Arrow schema of the scratch requests; a body is JSON, since no two need have the same keys."""
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("row_id", "custom_id", "endpoint", "body")]
    return pa.schema([*texts, ("number", pa.int64())])


def request_columns(request: BatchRequest) -> dict[str, Any]:
    """A request as stored."""
    return {
        "row_id": request.row_id,
        "custom_id": request.custom_id,
        "endpoint": request.endpoint,
        "body": canonical_json(request.body).decode(),
        "number": request.number,
    }


def request_of(columns: Mapping[str, Any]) -> BatchRequest:
    """A request as read back."""
    return BatchRequest(
        columns["row_id"],
        columns["custom_id"],
        columns["endpoint"],
        json.loads(columns["body"]),
        columns["number"],
    )


class PartWriter:
    """Writes rows into numbered Parquet files of at most ``rows_per_file`` rows below an attempt's folder.

    Of a file that is not full yet only few rows are in memory as such; the others are as they will be stored.
    """

    def __init__(self, attempt: Attempt, folder: str, schema: pa.Schema, rows_per_file: int) -> None:
        self._attempt, self._folder, self._schema, self._rows = attempt, folder, schema, rows_per_file
        self._waiting: list[Mapping[str, Any]] = []
        self._sink: pa.BufferOutputStream | None = None
        self._parts = self._in_file = self.count = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Take one row; a full part goes to storage."""
        self._waiting.append(row)
        self.count += 1
        if self._in_file + len(self._waiting) >= self._rows:
            self._flush()
        elif len(self._waiting) >= _ROWS_PER_GROUP:
            self._group()

    def close(self) -> None:
        """Write what is left, and one empty file if there was no row, so that readers find the schema."""
        if self._waiting or self._in_file or not self._parts:
            self._flush()

    def _group(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._sink is None:
            self._sink = pa.BufferOutputStream()
            self._file = pq.ParquetWriter(self._sink, self._schema, compression="zstd")
        self._file.write_table(pa.Table.from_pylist(list(self._waiting), schema=self._schema))
        self._in_file += len(self._waiting)
        self._waiting = []

    def _flush(self) -> None:
        self._group()
        assert self._sink is not None, "there is a file now"
        self._file.close()
        name = f"{self._folder}/part-{self._parts:05d}.parquet"
        self._attempt.write(name, self._sink.getvalue().to_pybytes())
        self._parts, self._in_file, self._sink = self._parts + 1, 0, None


def write_part(attempt: Attempt, path: str, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Rows as one Parquet file, there whole or not at all; columns that the schema lacks are left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, sink = pa.Table.from_pylist(list(rows), schema=schema), pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    attempt.write(path, sink.getvalue().to_pybytes())


def parts(store: ObjectStore, attempt: Attempt, folder: str) -> list[str]:
    """Keys of the files in an attempt's folder, in the order in which they were written."""
    return sorted(stored.key for stored in store.list(f"{attempt.prefix}{folder}/"))


def read_parts(
    store: ObjectStore, keys: Iterable[str], columns: list[str] | None = None
) -> Iterator[dict[str, Any]]:
    """All rows of those files, a row group at a time."""
    import pyarrow.parquet as pq

    files = store.filesystem()
    for key in keys:
        with files.open_input_file(f"{store.bucket}/{key}") as source:
            for batch in pq.ParquetFile(source).iter_batches(batch_size=1024, columns=columns):
                yield from batch.to_pylist()


def text_of(content: Any) -> str:
    """The text of a message's content, which OpenAI allows to be a string or a list of parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def strongest(findings: Iterable[Finding]) -> str:
    """The strongest action among those that counted: block, redact, flag, or none."""
    actions = {finding.action.value for finding in findings if not finding.shadow}
    return next((action for action in ("block", "redact", "flag") if action in actions), "none")
