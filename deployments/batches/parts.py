"""What a batch has answered so far, a copy of its input, and the lines of the two files that it ends in.

Answered rows become durable in small parts, ``<team>/batches/<id>/parts/<token>-<number>.jsonl``, each
written whole. Names begin with the writer's fencing token: a worker that lost its lease may still write one,
and its rows may then stand in two parts. Readers take the first of each row, so every row ends in one file,
once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import IO, Any

from cluster.contracts.batches import BatchLine, BatchLineError, BatchLineResponse, BatchRecord
from cluster.storage import ObjectStore


@dataclass(frozen=True)
class Row:
    """One line of the input file."""

    number: int
    custom_id: str
    body: bytes


@dataclass(frozen=True)
class Done:
    """One row's end: a line of the output or of the error file."""

    custom_id: str
    answered: bool
    prompt_tokens: int
    completion_tokens: int
    line: dict[str, Any]

    def encode(self) -> bytes:
        """As a part's line."""
        return json.dumps(vars(self), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


class Parts:
    """The parts of one batch."""

    def __init__(self, store: ObjectStore, record: BatchRecord) -> None:
        self._store = store
        self._folder = record.folder
        self._prefix = f"{record.folder}parts/"
        #: Made when the batch begins: its input file may go before it has ended.
        self.input = f"{record.folder}input.jsonl"

    def write(self, token: int, number: int, rows: Iterable[Done]) -> None:
        """Make rows durable. Raises UnavailableError or AccessError."""
        self._store.put(f"{self._prefix}{token:06d}-{number:06d}.jsonl", b"".join(r.encode() for r in rows))

    def read(self) -> Iterator[Done]:
        """Every row that is done, once. Raises UnavailableError or AccessError."""
        seen = set[str]()
        for item in list(self._store.list(self._prefix)):
            for line in self._store.get(item.key).splitlines():
                row = Done(**json.loads(line))
                if row.custom_id not in seen:
                    seen.add(row.custom_id)
                    yield row

    def done(self) -> Iterator[Done]:
        """As :meth:`read`, without the lines, which may be more than memory holds."""
        return (replace(row, line={}) for row in self.read())

    def delete(self) -> None:
        """They are in the files now."""
        self._store.delete([item.key for item in self._store.list(self._folder)])


def rows_of(file: IO[bytes], skip: set[str]) -> Iterator[Row]:
    """The lines of an input file, checked when it was uploaded, without those in ``skip``."""
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        content = json.loads(line)
        if content["custom_id"] not in skip:
            yield Row(number, content["custom_id"], json.dumps(content["body"]).encode())


def response_line(row: Row, request_id: str, status: int, body: dict[str, Any]) -> dict[str, Any]:
    """A line with what the endpoint answered, an error's body too."""
    response = BatchLineResponse(status_code=status, request_id=request_id, body=body)
    return BatchLine(id=request_id, custom_id=row.custom_id, response=response).model_dump()


def unasked_line(batch_id: str, row: Row, code: str, message: str) -> dict[str, Any]:
    """A line for a row that was never asked."""
    name = hashlib.sha256(f"{batch_id}/{row.number}".encode()).hexdigest()[:24]
    error = BatchLineError(code=code, message=message)
    return BatchLine(id=f"batch_req_{name}", custom_id=row.custom_id, error=error).model_dump()
