"""The file with a training's curve, as OpenAI's API has it: CSV, one line a step."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from cluster.contracts.files import FileRecord
from cluster.contracts.tuning import TuningRecord
from cluster.errors import MantaError
from cluster.files import FileRepository
from cluster.storage import ArtifactStore, ObjectStore

#: What of a step is no figure of the model.
_COUNTED = frozenset({"step", "loss", "samples_seen", "elapsed_s"})


def keep_results(
    record: TuningRecord,
    token: int,
    checkpoint: str,
    files: FileRepository,
    store: ObjectStore,
    expiry_s: int | None,
) -> str:
    """Store the curve of ``checkpoint``; the file's id. Nobody sees it until the job's end is reported.

    :param token: of the worker's lease: each holder makes its own file, for one that lost it may go on.

    Raises UnavailableError, AccessError, or NotFoundError if the checkpoint is gone.
    """
    artifacts = ArtifactStore(store)
    manifest = artifacts.open(checkpoint)
    steps = [json.loads(line) for line in artifacts.read(manifest, "training.jsonl").splitlines()]
    content = curve(steps, manifest.summary.get("valid_loss"))
    now = datetime.now(UTC)
    made = FileRecord(
        id=f"file-{hashlib.sha256(f'{record.id}/results/{token}'.encode()).hexdigest()[:24]}",
        team=record.team,
        tenant=record.tenant,
        key_id=record.key_id,
        purpose="fine-tune-results",
        filename="step_metrics.csv",
        bytes=len(content),
        lines=len(steps) + 1,
        sha256=hashlib.sha256(content).hexdigest(),
        created_at=now,
        expires_at=None if expiry_s is None else now + timedelta(seconds=expiry_s),
    )
    with suppress(MantaError):  # Of an earlier try under this lease.
        files.give_up(made, store)
    files.announce(made)
    store.put(made.key, content)
    return made.id


def curve(steps: list[dict[str, float]], valid_loss: float | None) -> bytes:
    """The lines; the validation loss is the last step's. A method's own figures stand after the loss."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    figures = [name for name in (steps[0] if steps else {}) if name not in _COUNTED]
    writer.writerow(["step", "train_loss", *(f"train_{name}" for name in figures), "valid_loss"])
    for step in steps:
        last = step is steps[-1] and valid_loss is not None
        told = [step[name] for name in figures]
        writer.writerow([int(step["step"]), step["loss"], *told, valid_loss if last else ""])
    return sink.getvalue().encode()
