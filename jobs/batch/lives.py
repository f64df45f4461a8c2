"""An engine that Ray Data runs, watched: if it falls silent it is killed, and a new one gets what is left."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from cluster.errors import UnavailableError
from jobs.batch.resume import Former

if TYPE_CHECKING:
    from ray.data import Dataset

Row = dict[str, Any]


class _SilentError(Exception):
    """No row for so many seconds."""


def lives(
    answer: Callable[[Dataset], Dataset],
    rows: Dataset,
    *,
    restarts: int,
    start_s: float,
    stall_s: float,
    say: Callable[[str], None],
) -> Iterator[Row]:
    """Answered rows as they come, each ``number`` once.

    :param answer: makes of asked rows a dataset with the column ``answer``, JSON of a stored row.
    :param rows: what is asked; with the column ``number``.
    :param restarts: how often the engine is killed and started anew before the batch is given up.
    :param start_s: seconds to a life's first row; ``stall_s`` from row to row.

    Raises UnavailableError when the last life falls silent too, and what Ray raises in a life without a row:
    an engine that cannot start is not started again.
    """
    from ray.exceptions import RayError

    done, left = Former(), rows
    for life in range(restarts + 1):
        before = done.count
        try:
            for row in _watched(answer(left), start_s, stall_s):
                if done.settle(row["number"]):
                    yield row
        except _SilentError as silence:
            if life == restarts:
                raise UnavailableError(
                    f"The dedicated engine gave no row for {silence} s, after {restarts} restarts; see its"
                    " worker's log in Ray's dashboard. Answered rows are kept: run this again."
                ) from None
            why = f"gave no row for {silence} s"
        except RayError as error:
            if life == restarts or done.count == before:
                raise
            why = f"failed ({type(error).__name__})"
        else:
            return
        say(f"the dedicated engine {why}: it is killed, and a new one gets the rows that are left")
        left = rows.filter(_Left(bytes(done.settled)))


class _Left:
    """Whether a row has no answer yet."""

    def __init__(self, settled: bytes) -> None:
        self._settled = settled

    def __call__(self, row: Row) -> bool:
        number = row["number"]
        return number >= len(self._settled) or not self._settled[number]


def _watched(dataset: Dataset, start_s: float, stall_s: float) -> Iterator[Row]:
    """The dataset's rows; its workers are killed if they fall silent."""
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

    waiting: queue.Queue[Row | BaseException | None] = queue.Queue(maxsize=10_000)
    before = set(threading.enumerate())

    def drain() -> None:
        try:
            for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                for text in batch.column("answer").to_pylist():
                    waiting.put(json.loads(text))
            waiting.put(None)
        except BaseException as error:
            waiting.put(error)

    threading.Thread(target=drain, daemon=True, name="batch-results").start()
    limit = start_s
    while True:
        try:
            item = waiting.get(timeout=limit)
        except queue.Empty:
            for thread in set(threading.enumerate()) - before:
                # Ray Data has no public way to kill a dataset's actors while a task of theirs hangs.
                if isinstance(thread, StreamingExecutor):
                    thread.shutdown(force=True)
            raise _SilentError(f"{limit:g}") from None
        if item is None:
            return
        if isinstance(item, BaseException):
            raise item
        limit = stall_s
        yield item
