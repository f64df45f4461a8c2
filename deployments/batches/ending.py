"""The end of a batch: its parts become an output and an error file, every row in exactly one of them."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, cast

from cluster.batches import entered
from cluster.contracts.batches import BatchProgress, BatchRecord, BatchStatus, BatchUsage
from cluster.contracts.files import FileRecord
from cluster.errors import MantaError
from cluster.files import FileRepository
from cluster.storage import ObjectStore
from deployments.batches.parts import Parts, rows_of, unasked_line

_MIB = 1024 * 1024
_UNASKED = {
    BatchStatus.EXPIRED: (
        "batch_expired",
        "This request could not be executed before the completion window expired.",
    ),
    BatchStatus.CANCELLED: ("batch_cancelled", "This batch was cancelled before this request was executed."),
}


def finish(
    record: BatchRecord,
    token: int,
    source: Path,
    parts: Parts,
    files: FileRepository,
    store: ObjectStore,
    expiry_s: int | None,
) -> BatchProgress:
    """Make both files; returns how the batch ended. Nobody sees them until that is reported.

    :param token: of the worker's lease: each holder makes its own files, for one that lost it may go on.
    :param source: the input file on disk.
    :param expiry_s: seconds that the files stay; for ever if None.

    Raises UnavailableError or AccessError.
    """
    cancelled = BatchStatus.CANCELLING in record.reached
    completed = failed = prompt = completion = 0
    seen = set[str]()
    with TemporaryFile() as output, TemporaryFile() as errors, source.open("rb") as rows:
        answers, failures = cast(BinaryIO, output), cast(BinaryIO, errors)
        for row in parts.read():
            seen.add(row.custom_id)
            _write(answers if row.answered else failures, row.line)
            completed += row.answered
            failed += not row.answered
            prompt += row.prompt_tokens
            completion += row.completion_tokens
        status = BatchStatus.CANCELLED if cancelled else BatchStatus.COMPLETED
        for unasked in rows_of(rows, seen):
            status = status if cancelled else BatchStatus.EXPIRED
            _write(failures, unasked_line(record.id, unasked, *_UNASKED[status]))
            failed += 1
        made = {
            kind: _keep(record, f"{kind}/{token}", file, count, files, store, expiry_s)
            for kind, file, count in (("output", answers, completed), ("error", failures, failed))
        }
    return entered(
        record,
        status,
        total=completed + failed,
        completed=completed,
        failed=failed,
        usage=BatchUsage(prompt_tokens=prompt, completion_tokens=completion),
        output_file_id=made["output"],
        error_file_id=made["error"],
    )


def _write(file: BinaryIO, line: dict[str, object]) -> None:
    file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")


def _keep(
    record: BatchRecord,
    name: str,
    file: BinaryIO,
    lines: int,
    files: FileRepository,
    store: ObjectStore,
    expiry_s: int | None,
) -> str | None:
    """Store one file, named by its kind and its maker's token; None if there is no line in it."""
    if not lines:
        return None
    digest = hashlib.sha256()
    file.seek(0)
    while part := file.read(_MIB):
        digest.update(part)
    now = datetime.now(UTC)
    made = FileRecord(
        id=f"file-{hashlib.sha256(f'{record.id}/{name}'.encode()).hexdigest()[:24]}",
        team=record.team,
        tenant=record.tenant,
        key_id=record.key_id,
        purpose="batch_output",
        filename=f"{record.id}_{name.partition('/')[0]}.jsonl",
        bytes=file.tell(),
        lines=lines,
        sha256=digest.hexdigest(),
        created_at=now,
        expires_at=None if expiry_s is None else now + timedelta(seconds=expiry_s),
    )
    file.seek(0)
    files.announce(made)
    try:
        store.upload_stream(file, made.key)
    except MantaError:
        with suppress(MantaError):  # If that fails too, a sweep does it.
            files.give_up(made, store)
        raise
    return made.id
