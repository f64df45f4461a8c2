"""A worker: takes batches from the record, one lease each, and brings them to their end.

    validating -> in_progress -> finalizing -> completed | cancelled | expired

Whatever dies, another worker goes on where the parts end: rows that were asked and not yet durable are asked
again, all others are not. Storage or SQL that is away stops nothing that can wait: rows are kept in memory
until a part can be written, and no new ones are asked meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from cluster.batches import BatchRepository, entered
from cluster.contracts.batches import BatchError, BatchProgress, BatchRecord, BatchStatus, BatchUsage
from cluster.errors import AccessError, MantaError, NotFoundError, UnavailableError
from cluster.files import FileRepository
from cluster.storage import ObjectStore
from deployments.batches.asking import Asker, KeyEndedError
from deployments.batches.ending import finish
from deployments.batches.parts import Done, Parts, Row, rows_of
from deployments.gateway.args import BatchArgs
from deployments.gateway.pipeline import Pipeline
from deployments.gateway.threads import waited
from deployments.holding import hold
from validation.guards import GuardEngine, parse_policy
from validation.guards.policy import GuardPolicy

logger = logging.getLogger("ray.serve")
_SWEEP_S = 3600.0
#: For so long after a batch was made a worker is taken to be able to write a part of it.
_KEPT = timedelta(days=3)
#: How long a worker keeps back after the last news of interactive requests.
_BUSY_S = 1.5


@dataclass
class _Work:
    """One batch in this worker's hands."""

    record: BatchRecord
    token: int
    parts: Parts
    #: Rows that are done and not durable yet.
    waiting: list[Done] = field(default_factory=list)
    written: int = 0
    flushed: float = field(default_factory=time.monotonic)
    cancelled: bool = False

    @property
    def stops(self) -> bool:
        """Whether no more rows are to be asked."""
        over = datetime.now(UTC) >= self.record.expires_at
        return over or self.cancelled or self.record.status is BatchStatus.CANCELLING


class BatchWorker:
    """One worker.

    :param holder: its name in leases.
    :param make_engine: guards of a policy.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        batches: BatchRepository,
        files: FileRepository,
        store: ObjectStore,
        args: BatchArgs,
        holder: str,
        make_engine: Callable[[GuardPolicy], GuardEngine],
        file_expiry_s: int | None,
    ) -> None:
        self._pipeline, self._batches, self._files, self._store = pipeline, batches, files, store
        self._args, self._holder, self._make_engine = args, holder, make_engine
        self._file_expiry_s = file_expiry_s
        self._awake = asyncio.Event()
        self._suspects = asyncio.Lock()
        self._busy_until = 0.0
        self._held = set[str]()

    def wake(self) -> None:
        """Look for work now."""
        self._awake.set()

    def step_back(self) -> None:
        """Interactive requests are at work: for a while leave them the models."""
        self._busy_until = time.monotonic() + _BUSY_S

    def _share(self) -> int:
        """Rows that one batch may ask at once."""
        busy = time.monotonic() < self._busy_until
        rows = self._args.busy_concurrency if busy else self._args.concurrency
        return max(1, rows // max(1, len(self._held)))

    async def run(self) -> None:
        """Work until cancelled; several batches at once."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sweep())
            tasks = set[asyncio.Task[None]]()
            while True:
                self._awake.clear()
                tasks = {task for task in tasks if not task.done()}
                try:
                    while len(tasks) < self._args.batches_at_once and (found := await self._claim()):
                        tasks.add(group.create_task(self._guarded(*found)))
                except MantaError as error:
                    logger.warning("Batches wait: %s", error)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._args.poll_s):
                        await self._awake.wait()

    async def _claim(self) -> tuple[BatchRecord, int] | None:
        return await waited(self._batches.claim, self._holder, self._args.lease_s, set(self._held))

    async def _sweep(self) -> None:
        while True:
            try:
                await waited(self._files.sweep, self._store)
                await waited(self._sweep_parts)
            except MantaError as error:
                logger.warning("What batches and files left waits: %s", error)
            await asyncio.sleep(_SWEEP_S)

    def _sweep_parts(self) -> None:
        """Delete what workers left of batches that have ended, because they died or wrote too late."""
        for record in self._batches.ended(datetime.now(UTC) - _KEPT):
            Parts(self._store, record).delete()

    async def _guarded(self, record: BatchRecord, token: int) -> None:
        """Work on one batch; nothing that happens to it ends the worker."""
        work = _Work(record, token, Parts(self._store, record))
        release = partial(self._batches.release, record.id, token)
        self._held.add(record.id)
        try:
            await hold(
                f"Batch {record.id}",
                self._work(work),
                partial(self._renew, work),
                self._args.lease_s / 3,
                release,
            )
        finally:
            self._held.discard(record.id)

    async def _renew(self, work: _Work) -> None:
        """Keep the lease. Raises RefusedError once another has it."""
        status = await waited(self._batches.renew, work.record.id, work.token, self._args.lease_s)
        work.cancelled = work.cancelled or status is BatchStatus.CANCELLING

    async def _work(self, work: _Work) -> None:
        """Bring one batch to its end. Raises RefusedError once another holds it, MantaError."""
        record = work.record
        with TemporaryDirectory() as folder:
            source = Path(folder) / "input.jsonl"
            try:
                await waited(self._bring, work, source)
            except NotFoundError:
                error = BatchError(code="file_not_found", message="The input file is no longer there.")
                await self._report(work, entered(record, BatchStatus.FAILED, errors=[error]))
                return
            if record.status is BatchStatus.VALIDATING:
                total = await waited(_count, source)
                await self._report(work, entered(record, BatchStatus.IN_PROGRESS, total=total))
            if work.record.status is not BatchStatus.FINALIZING:
                await self._answer(work, source)
                await self._report(work, entered(work.record, BatchStatus.FINALIZING))
            end = await waited(
                finish,
                work.record,
                work.token,
                source,
                work.parts,
                self._files,
                self._store,
                self._file_expiry_s,
            )
            await self._report(work, end)
        await waited(work.parts.delete)

    def _bring(self, work: _Work, source: Path) -> None:
        """The input to this machine's disk. Raises NotFoundError if it went before the batch began."""
        try:
            self._store.download_file(work.parts.input, source)
        except NotFoundError:
            file = self._files.get(work.record.input_file_id, work.record.team)
            self._store.download_file(file.key, source)
            self._store.upload_file(source, work.parts.input)

    async def _answer(self, work: _Work, source: Path) -> None:
        """Ask every row that has no answer yet, until all have one or no more are to be asked."""
        # The gateway that took the batch may know a key or a route that this process does not yet.
        await self._pipeline.poller.look()
        before = await waited(lambda: list(work.parts.done()))
        work.record = _counted(work.record, BatchProgress.model_validate(_reset(work.record)), before)
        if work.stops:  # Even if its policy cannot be read any more.
            return
        done = {row.custom_id for row in before}
        engine = self._make_engine(parse_policy(work.record.policy.body, f"the policy of {work.record.id}"))
        asker = Asker(self._pipeline, work.record, engine, self._args.attempts, self._suspects)
        with source.open("rb") as file:
            rows = rows_of(file, done)
            try:
                await self._ask_all(work, rows, asker)
            except KeyEndedError:
                error = BatchError(code="key_ended", message="The key of this batch is no longer valid.")
                work.record = _merged(
                    work.record, entered(work.record, BatchStatus.CANCELLING, errors=[error])
                )
        await self._flush(work, last=True)

    async def _ask_all(self, work: _Work, rows: Iterator[Row], asker: Asker) -> None:
        tasks, exhausted = set[asyncio.Task[Done]](), False
        try:
            while not work.stops:
                known_end = exhausted
                # While parts cannot be written no more is asked than memory should hold.
                room = self._args.rows_at_once - len(work.waiting)
                while len(tasks) < min(room, self._share()):
                    row = next(rows, None)
                    if row is None:
                        exhausted = True
                        break
                    tasks.add(asyncio.create_task(asker.ask(row)))
                if not tasks and not work.waiting:
                    return
                left_s = max(0.0, work.flushed + self._args.flush_s - time.monotonic())
                if exhausted and not known_end and not tasks:
                    left_s = 0.0  # Nothing more comes. Once: storage that is away gets its rest.
                finished = set[asyncio.Task[Done]]()
                if tasks:
                    finished, tasks = await asyncio.wait(
                        tasks, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
                    )
                else:
                    await asyncio.sleep(left_s)
                # All of them, before one that failed ends this.
                good = [task for task in finished if task.exception() is None]
                work.waiting += [task.result() for task in good]
                for task in finished:
                    task.result()
                # Not whenever none is in flight: one row at a time would make one part each.
                if time.monotonic() - work.flushed >= self._args.flush_s or (exhausted and not tasks):
                    await self._flush(work)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _flush(self, work: _Work, *, last: bool = False) -> None:
        """Make what is done durable, tell how far it is, and look whether it shall go on.

        Raises RefusedError if another holds it; MantaError if it is the last time and storage is away.
        """
        rows, work.flushed = work.waiting, time.monotonic()
        try:
            if rows:
                await waited(work.parts.write, work.token, work.written, rows)
                work.written += 1
                work.waiting = []
                work.record = _counted(work.record, work.record, rows)
            await self._report(work, work.record)
        except (UnavailableError, AccessError) as error:
            if last:
                raise
            logger.warning("Batch %s waits for storage: %s", work.record.id, error)

    async def _report(self, work: _Work, progress: BatchProgress) -> None:
        work.record = await waited(
            self._batches.report, work.record.id, work.token, progress, self._args.lease_s
        )


def _count(source: Path) -> int:
    with source.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _reset(record: BatchRecord) -> dict[str, object]:
    """Its progress, to be counted anew."""
    kept = {name: getattr(record, name) for name in BatchProgress.model_fields}
    return kept | {"completed": 0, "failed": 0, "usage": BatchUsage()}


def _counted(record: BatchRecord, progress: BatchProgress, rows: list[Done]) -> BatchRecord:
    answered = sum(row.answered for row in rows)
    return record.model_copy(
        update={
            "completed": progress.completed + answered,
            "failed": progress.failed + len(rows) - answered,
            "usage": BatchUsage(
                prompt_tokens=progress.usage.prompt_tokens + sum(row.prompt_tokens for row in rows),
                completion_tokens=progress.usage.completion_tokens
                + sum(row.completion_tokens for row in rows),
            ),
        }
    )


def _merged(record: BatchRecord, progress: BatchProgress) -> BatchRecord:
    return record.model_copy(update={name: getattr(progress, name) for name in BatchProgress.model_fields})
