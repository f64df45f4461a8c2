"""Answered rows, durable while the batch still runs, so that a killed one goes on where it stood.

Beside the attempt ``attempts/<run id>/`` stands ``attempts/<run id>.rows/``: ``answers/`` in small Parquet
parts, written every few seconds; ``requests/`` as the engine reads them; ``plan.json`` with what was asked,
and ``progress.json`` with how far it is. None of it is part of the artifact: it is deleted once that is
committed, and collected by ``manta gc`` otherwise. A new run reads what others left and changes none of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cluster.job import JobRun
from cluster.storage import Attempt, canonical_json
from cluster.storage.attempt import ROWS
from jobs.batch.rows import answer_schema, write_part

ANSWERS, REQUESTS, PLAN, PROGRESS = "answers", "requests", "plan.json", "progress.json"


def rows_of(job: JobRun, run_id: str | None = None) -> Attempt:
    """Where a run keeps its rows until its commit: this one's, or another's at the same artifact."""
    return job.artifacts.attempt(job.ref, f"{run_id or job.run_id}{ROWS}")


class Journal:
    """Writes answered rows into small parts, in a thread of its own: the engine does not wait for storage.

    :param flush_rows: rows that fill a part.
    :param flush_s: seconds after which a part is written though it is not full.
    :param figures: how far the batch is, written beside the parts, at most once a second.

    Whatever storage raised is raised by the next :meth:`add` or by the end of the block.
    """

    def __init__(
        self, place: Attempt, flush_rows: int, flush_s: float, figures: Callable[[], dict[str, Any]]
    ) -> None:
        import pyarrow as pa

        self._place, self._flush_rows, self._flush_s, self._figures = place, flush_rows, flush_s, figures
        self._schema = answer_schema().append(pa.field("number", pa.int64()))
        self._waiting: list[Mapping[str, Any]] = []
        self._changed = threading.Condition()
        self._ended = False
        self._failed: Exception | None = None
        self._parts = 0
        self._thread = threading.Thread(target=self._run, name="batch-journal", daemon=True)

    def __enter__(self) -> Journal:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # However the block ended: what was answered is worth keeping.
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()
        if self._failed is not None:
            raise self._failed

    def add(self, row: Mapping[str, Any]) -> None:
        """Take one row; waits only while storage is two parts behind."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < 2 * self._flush_rows or self._failed)
            if self._failed is not None:
                raise self._failed
            self._waiting.append(row)
            if len(self._waiting) == self._flush_rows:
                self._changed.notify_all()

    def _run(self) -> None:
        told = 0.0
        try:
            for rows in self._full():
                write_part(self._place, f"{ANSWERS}/part-{self._parts:06d}.parquet", rows, self._schema)
                self._parts += 1
                if time.monotonic() - told >= 1.0:
                    self._place.write(PROGRESS, canonical_json(self._figures()))
                    told = time.monotonic()
        except Exception as error:
            with self._changed:
                self._failed = error
                self._changed.notify_all()

    def _full(self) -> Iterator[Sequence[Mapping[str, Any]]]:
        ended = False
        while not ended:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._ended or len(self._waiting) >= self._flush_rows, timeout=self._flush_s
                )
                rows, self._waiting, ended = self._waiting, [], self._ended
                self._changed.notify_all()
            if rows:
                yield rows
