"""An uploaded file of examples, looked through before anything is trained on it."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from cluster.contracts.tuning import TuningRecord
from cluster.errors import NotFoundError, RefusedError
from cluster.files import FileRepository
from cluster.storage import ObjectStore
from deployments.tuning.endings import JobFailedError
from validation.examples import learned

#: Of all conversations of a file, as training holds them in memory.
_MOST_CHARACTERS = 1_000_000_000


def read_examples(record: TuningRecord, param: str, files: FileRepository, store: ObjectStore) -> int:
    """Bytes, as JSON, of all conversations that an epoch reads.

    :param param: training_file or validation_file.

    Line by line, from disk: it may be large, and this process answers batches, too. Raises JobFailedError for
    a file that cannot be learned from.
    """
    number, answers, characters, size = 0, 0, 0, 0
    try:
        with TemporaryDirectory(prefix="tuning-") as folder:
            source = Path(folder) / "examples.jsonl"
            file = files.get(getattr(record, param), record.team)
            store.download_file(file.key, source)
            with source.open("rb") as lines:
                for line in lines:
                    number += 1
                    for said in learned(json.loads(line), record.method) if line.strip() else ():
                        answers += 1
                        size += len(json.dumps(said))
                        characters += sum(len(message["content"]) for message in said)
                        if characters > _MOST_CHARACTERS:
                            raise RefusedError(
                                "with it, answers and all that stands before each come to more than "
                                f"{_MOST_CHARACTERS:,} characters: give some answers weight 0."
                            )
    except NotFoundError:
        raise JobFailedError("file_not_found", "The file is no longer there.", param) from None
    except RefusedError as refused:
        raise JobFailedError(f"invalid_{param}", f"Line {number}: {refused}", param) from None
    if not answers:
        raise JobFailedError(f"invalid_{param}", "No example has an answer to learn.", param)
    return size
