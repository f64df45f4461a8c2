"""The forms in which a batch's rows are stored: Parquet, and lines as OpenAI's batches have them.

Both say the same of the same rows. Parquet has every column; a line has the endpoint's whole answer, or why
there is none, and is read by whatever reads the output file of OpenAI's batches.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cluster.contracts import ArtifactRef
from cluster.contracts.batches import BatchLine, BatchLineError, BatchLineResponse
from cluster.job import JobRun
from cluster.storage import Attempt
from jobs.batch.rows import ERRORS, OUTPUT, PartWriter, answer_schema, parts, read_parts

Format = Literal["parquet", "jsonl"]
#: Folder of the lines: what reads a whole folder of Parquet shall find nothing else in it.
LINES = "jsonl"
#: A file that has so many bytes is full, for until then it is in memory.
_FULL_BYTES = 32 * 1024 * 1024


class OutputConfig(BaseModel):
    """How the answered rows and the others are stored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    formats: list[Format] = Field(
        ["parquet"],
        min_length=1,
        description="parquet: output/ and errors/, every column. jsonl: jsonl/output/ and jsonl/errors/,"
        " lines in OpenAI's batch output format. Or both.",
    )

    @field_validator("formats")
    @classmethod
    def _as_a_set(cls, formats: list[Format]) -> list[Format]:
        # Whoever names them in another order, or twice, asks for the same.
        return sorted(set(formats), reverse=True)


class RowWriter(Protocol):
    """Takes stored rows one by one."""

    def add(self, row: Mapping[str, Any]) -> None:
        """Take one row."""

    def close(self) -> None:
        """Write what is left."""


def writers(
    job: JobRun, folder: str, output: OutputConfig, rows_per_file: int, model: str
) -> list[RowWriter]:
    """One writer a format, for the rows of ``folder``; answers name the model as ``model``."""
    made = list[RowWriter]()
    if "parquet" in output.formats:
        made.append(PartWriter(job.attempt, folder, answer_schema(), rows_per_file))
    if "jsonl" in output.formats:
        made.append(LineWriter(job.attempt, f"{LINES}/{folder}", job.ref, rows_per_file, model))
    return made


def stored_ids(job: JobRun, form: Format) -> Iterator[str]:
    """The ids of all rows that stand in the attempt's files of one format."""
    for folder in (OUTPUT, ERRORS):
        if form == "parquet":
            for row in read_parts(job.store, parts(job.store, job.attempt, folder), ["row_id"]):
                yield row["row_id"]
        else:
            for key in parts(job.store, job.attempt, f"{LINES}/{folder}"):
                path = f"{job.store.bucket}/{key}"
                with job.store.filesystem().open_input_file(path) as stream:
                    for line in io.BufferedReader(cast(Any, stream)):
                        yield json.loads(line)["custom_id"]


class LineWriter:
    """Writes rows as lines into numbered files of at most ``rows_per_file`` lines; no row, no file.

    A file of long lines has fewer.
    """

    def __init__(
        self, attempt: Attempt, folder: str, batch: ArtifactRef, rows_per_file: int, model: str
    ) -> None:
        self._attempt, self._folder, self._batch = attempt, folder, batch
        self._rows_per_file, self._model = rows_per_file, model
        self._file = io.BytesIO()
        self._parts = self._in_file = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Take one row; a full file goes to storage."""
        line = line_of(row, self._batch, self._model).model_dump()
        self._file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        self._in_file += 1
        if self._in_file == self._rows_per_file or self._file.tell() >= _FULL_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what is left."""
        if self._in_file:
            self._flush()

    def _flush(self) -> None:
        self._attempt.write(f"{self._folder}/part-{self._parts:05d}.jsonl", self._file.getvalue())
        self._file, self._parts, self._in_file = io.BytesIO(), self._parts + 1, 0


def line_of(row: Mapping[str, Any], batch: ArtifactRef, model: str) -> BatchLine:
    """A stored row as a line. Its id follows from batch and row: a batch made again gives the same."""
    name = hashlib.sha256(f"{batch}/{row['row_id']}".encode()).hexdigest()[:24]
    line_id, custom_id = f"batch_req_{name}", row["custom_id"]
    if row["status"] != "succeeded":
        error = BatchLineError(code=row["error_code"], message=row["error_message"])
        return BatchLine(id=line_id, custom_id=custom_id, error=error)
    body = json.loads(row["body"])
    prefix = "chatcmpl" if body.get("object") == "chat.completion" else "cmpl"
    whole = {
        "id": f"{prefix}-{name}",
        "created": int(time.time()),  # An engine of the batch's own does not say when.
        **body,
        "model": model,
    }
    # As the engine and its logs know the request.
    response = BatchLineResponse(status_code=200, request_id=f"batch-{row['row_id']}", body=whole)
    return BatchLine(id=line_id, custom_id=custom_id, response=response)
