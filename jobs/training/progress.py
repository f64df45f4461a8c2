"""What the workers tell while they train, as lines and metrics of the job."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cluster.errors import MantaError
from cluster.job import JobRun

_POLL_S = 0.5
#: What of a step's record is no figure of the model.
_COUNTED = frozenset({"step", "samples_seen", "elapsed_s"})
OnStep = Callable[[dict[str, Any]], None]


@contextmanager
def worker_progress(job: JobRun, on_step: OnStep | None = None) -> Iterator[Any]:
    """A ``ray.util.queue.Queue`` for the workers; what they put into it becomes progress and metrics.

    :param on_step: gets each step's record, too; what it raises is a warning.
    """
    from ray.util.queue import Queue

    queue, stop = Queue(actor_options={"num_cpus": 0}), threading.Event()
    reader = threading.Thread(
        target=_read, args=(job, queue, stop, on_step), name="training-progress", daemon=True
    )
    reader.start()
    try:
        yield queue
    finally:
        stop.set()
        reader.join(timeout=60)  # Seconds, on a busy machine; it reads what is left and ends.
        queue.shutdown(force=True)


def _read(job: JobRun, queue: Any, stop: threading.Event, on_step: OnStep | None) -> None:
    from ray.exceptions import RayError
    from ray.util.queue import Empty

    lines = _Lines()
    while True:
        ending = stop.is_set()
        try:
            record = queue.get(timeout=_POLL_S)
        except Empty:
            if ending:
                return
            continue
        except RayError:  # The cluster is going away; the training's own error says why.
            return
        job.progress(lines.of(record))
        if "loss" in record:
            measured = {name: value for name, value in record.items() if name not in _COUNTED}
            job.log_metrics(measured, step=record["step"])
            if on_step is not None:
                try:
                    on_step(record | {"steps": lines.steps})
                except MantaError as error:  # Training does not end because a database is away.
                    print(f"warning: step {record['step']} is not told: {error}", file=sys.stderr, flush=True)


class _Lines:
    """Words for records, with the time that is left by the pace since the last (re)start."""

    def __init__(self) -> None:
        self._steps, self._first, self._clock = 0, 0, 0.0

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self._steps

    def of(self, record: dict[str, Any]) -> str:
        if "begins_at" in record:
            self._steps, self._first, self._clock = record["steps"], record["begins_at"], time.monotonic()
            how = f"resumes at step {self._first}" if self._first else "begins"
            return f"training {how}: {self._steps} steps over {record['rows']:,} rows"
        done = record["step"] - self._first
        left = (time.monotonic() - self._clock) / max(1, done) * (self._steps - record["step"])
        margin = f" reward margin {record['reward_margin']:.4f}," if "reward_margin" in record else ""
        return (
            f"step {record['step']}/{self._steps}, loss {record['loss']:.4f},{margin}"
            f" {record['samples_seen']:,} rows seen, about {left:.0f} s left"
        )
