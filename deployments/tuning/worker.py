"""A worker: takes fine-tuning jobs from the record, one lease each, and follows each to its end.

    validating_files -> queued -> running -> succeeded | failed | cancelled

What it knows stands in SQL and in Ray: whatever dies, another worker finds the same Ray job by its id. If the
whole cluster is lost its successor does not know that id, the job is submitted again, and training goes on
from its last checkpoint. A cluster or storage that is away is waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from cluster.contracts import ModelRef
from cluster.contracts.tuning import TUNING_ENDED, TuningEvent, TuningRecord, TuningStatus
from cluster.errors import MantaError, NotFoundError, RefusedError, UnavailableError
from cluster.files import FileRepository
from cluster.storage import ObjectStore
from cluster.tuning import TuningRepository, changed, make_event
from deployments.gateway.args import TuningArgs
from deployments.gateway.errors import ApiError
from deployments.gateway.threads import waited
from deployments.gateway.view import Poller
from deployments.holding import hold
from deployments.tuning.choosing import choose
from deployments.tuning.endings import JobCancelledError, JobFailedError
from deployments.tuning.erasing import end, erase, is_left
from deployments.tuning.paying import Payments
from deployments.tuning.publishing import BaseGoneError, publish, withdraw
from deployments.tuning.reading import read_examples
from deployments.tuning.results import keep_results
from deployments.tuning.trainings import Base, Order, Trainings

logger = logging.getLogger("ray.serve")
_T = TypeVar("_T")
#: Jobs that one worker follows; of these ``jobs_at_once`` train. Besides, it follows as many that have ended:
#: what is deleted must not wait until others are trained.
_FOLLOWED = 16


@dataclass
class _Work:
    """One job in this worker's hands."""

    record: TuningRecord
    token: int
    cancelled: bool = False


class TuningWorker:
    """One worker.

    :param poller: knows which keys are good.
    :param holder: its name in leases.
    :param publish_s: seconds after which every gateway knows what was published.
    """

    def __init__(
        self,
        poller: Poller,
        jobs: TuningRepository,
        files: FileRepository,
        store: ObjectStore,
        args: TuningArgs,
        holder: str,
        trainings: Trainings,
        file_expiry_s: int | None,
        publish_s: float,
    ) -> None:
        self._poller, self._jobs, self._files, self._store = poller, jobs, files, store
        self._args, self._holder, self._trainings = args, holder, trainings
        self._file_expiry_s, self._publish_s = file_expiry_s, publish_s
        self._awake = asyncio.Event()
        self._places = asyncio.Semaphore(args.jobs_at_once)
        self._reads = asyncio.Semaphore(1)  # Leases are renewed in the same threads.
        self._erasures = asyncio.Semaphore(1)  # Each is a process on the cluster's head.
        self._held = set[str]()
        self._payments = Payments()

    def wake(self) -> None:
        """Look for work now."""
        self._awake.set()

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._awake.clear()
                try:
                    while len(self._held) < 2 * _FOLLOWED and (found := await self._claim()):
                        self._held.add(found[0].id)
                        group.create_task(self._guarded(_Work(*found)))
                except MantaError as error:
                    logger.warning("Fine-tuning jobs wait: %s", error)
                except Exception:  # Whatever it is, it ends neither the others nor batches.
                    logger.exception("A fine-tuning job cannot be taken")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._args.poll_s):
                        await self._awake.wait()

    async def _claim(self) -> tuple[TuningRecord, int] | None:
        full = len(self._held) >= _FOLLOWED
        held, lease_s = set(self._held), self._args.lease_s
        return await waited(self._jobs.claim, self._holder, lease_s, held, ended=full)

    async def _guarded(self, work: _Work) -> None:
        """Follow one job; nothing that happens to it ends the worker."""
        job_id = work.record.id
        try:
            await hold(
                f"Fine-tuning job {job_id}",
                self._to_its_end(work),
                partial(self._renew, work),
                min(self._args.lease_s / 3, self._args.poll_s),
                partial(self._jobs.release, job_id, work.token),
            )
        finally:
            self._held.discard(job_id)

    async def _renew(self, work: _Work) -> None:
        """Keep the lease. Raises RefusedError once another has it."""
        status = await waited(self._jobs.renew, work.record.id, work.token, self._args.lease_s)
        work.cancelled = work.cancelled or status is TuningStatus.CANCELLED

    async def _to_its_end(self, work: _Work) -> None:
        try:
            if work.record.status not in TUNING_ENDED:
                await self._do(work)
        except JobFailedError as failed:
            event = make_event(work.record.id, "failed", failed.error.message, level="error")
            with contextlib.suppress(JobCancelledError):
                await self._report(
                    work,
                    event,
                    status=TuningStatus.FAILED,
                    error=failed.error,
                    finished_at=datetime.now(UTC),
                )
        except JobCancelledError:
            pass
        record = await waited(self._jobs.get, work.record.id, work.record.team)
        succeeded, deleted = record.status is TuningStatus.SUCCEEDED, record.deleted_at is not None
        if not succeeded:
            await end(record, self._trainings, self._args, self._asked)
        if deleted or (not succeeded and record.base):
            await self._asked(lambda: withdraw(record, self._store))
        key = self._poller.view.keys.get(record.key_id)
        if key is not None and (record.training_price is not None or not succeeded):
            await self._asked(lambda: self._payments.settle(record, key))
        if deleted or (not succeeded and await self._asked(lambda: is_left(record, self._store))):
            await self._erase(record)
        await waited(self._jobs.settle, record.id, work.token)

    async def _erase(self, record: TuningRecord) -> None:
        """Take away what came of it; nobody is sent there any more."""
        await asyncio.sleep(self._publish_s)  # Until then gateways may send requests there.
        async with self._erasures:
            why = await erase(record, self._trainings, self._args, self._asked)
        if why is not None:
            message = f"What was left of {record.tuned_name} could not be taken away: {why}"
            event = make_event(record.id, "not erased", message, level="error")
            await self._asked(lambda: self._jobs.tell(record.id, [event]))

    async def _do(self, work: _Work) -> None:
        """Bring it to its end. Raises JobFailedError, JobCancelledError."""
        # The gateway that took the job may know a key or a route that this process does not yet.
        await self._poller.look()
        if work.record.status is TuningStatus.VALIDATING_FILES:
            await self._validate(work)
        while self._places.locked():
            self._check(work)
            await asyncio.sleep(self._args.poll_s)
        async with self._places:
            result = await self._train(work)
            await self._finish(work, result)

    def _check(self, work: _Work) -> None:
        """Raises JobCancelledError or JobFailedError if it may not go on."""
        if work.cancelled:
            raise JobCancelledError
        try:
            self._poller.view.key_of(work.record.key_id)
        except ApiError as error:
            if error.status == 401:
                message = "The key of this job is no longer valid."
                raise JobFailedError("key_ended", message) from None

    async def _validate(self, work: _Work) -> None:
        """Look at every example; choose what was left to us."""
        record = work.record
        begun = make_event(record.id, "validating", f"Validating training file: {record.training_file}")
        await waited(self._jobs.tell, record.id, [begun])
        self._check(work)
        route = self._poller.view.routes.get(record.model)
        application = route.targets[0].application if route else None
        if application is None:
            raise JobFailedError("model_not_available", f"Model {record.model} is not served.", "model")
        base = await self._base(application)
        sizes = dict[str, int]()
        for param in ("training_file", "validation_file"):
            if getattr(record, param) is not None:
                async with self._reads:
                    read = partial(read_examples, record, param, self._files, self._store)
                    sizes[param] = await self._asked(read)
        examples = (await waited(self._files.get, record.training_file, record.team)).lines
        terms = {
            "chosen": choose(record.hyperparameters, examples),
            "application": application,
            "base": base.address,
            "training_price": route.price.training_per_million_tokens if route and route.price else None,
        }
        await self._hold(record.model_copy(update=terms), sizes["training_file"])
        event = make_event(record.id, "queued", "Files validated, moving job to queued state")
        await self._report(work, event, status=TuningStatus.QUEUED, **terms)

    async def _hold(self, record: TuningRecord, size: int) -> None:
        """Money for it. Raises JobFailedError if its key has not so much left."""
        key = self._poller.view.keys.get(record.key_id)
        if record.training_price is None or key is None:
            return
        try:
            await self._asked(lambda: self._payments.hold(record, key, size))
        except RefusedError as refused:
            raise JobFailedError("insufficient_quota", str(refused)) from None

    async def _base(self, application: str) -> Base:
        try:
            return await self._asked(lambda: self._trainings.base(application))
        except RefusedError as refused:
            raise JobFailedError("model_not_available", str(refused), "model") from None

    async def _train(self, work: _Work) -> dict[str, Any]:
        """Submit it, or find it submitted, and follow it; what it says at its end."""
        while True:
            self._check(work)
            record = work.record
            outcome = await self._asked(partial(self._trainings.outcome, record.submission_id))
            if outcome is None:
                await self._submit(work)
            elif outcome.status == "SUCCEEDED" and outcome.result and "summary" in outcome.result:
                return dict(outcome.result["summary"])
            elif outcome.status in ("SUCCEEDED", "FAILED", "STOPPED"):
                await self._again(work, outcome.message or "It ended without a result.")
                continue
            elif outcome.status == "RUNNING":
                await self._running(work)
            await asyncio.sleep(self._args.poll_s)

    async def _submit(self, work: _Work) -> None:
        record = work.record
        base = await self._base(record.application or "")
        if base.address != record.base:
            message = f"Application {record.application} serves another model now."
            raise JobFailedError("model_not_available", message, "model")

        def submit() -> None:
            try:
                training = self._files.get(record.training_file, record.team)
                other = record.validation_file
                validation = self._files.get(other, record.team) if other else None
            except NotFoundError as error:
                raise JobFailedError("file_not_found", str(error), "training_file") from None
            try:
                self._trainings.submit(Order(record, base, training, validation))
            except RefusedError as refused:
                raise JobFailedError("training_refused", str(refused)) from None

        await self._asked(submit)

    async def _again(self, work: _Work, why: str) -> None:
        """One more attempt, which goes on from checkpoints. Raises JobFailedError after the last."""
        record = work.record
        if record.attempt >= self._args.attempts:
            raise JobFailedError("training_failed", why)
        event = make_event(
            record.id,
            f"attempt {record.attempt} failed",
            f"Training ended and is begun again: {why}",
            level="warn",
        )
        await self._report(work, event, attempt=record.attempt + 1)

    async def _running(self, work: _Work) -> None:
        record = work.record
        if record.status is TuningStatus.QUEUED:
            event = make_event(record.id, "running", "Fine-tuning job started")
            await self._report(work, event, status=TuningStatus.RUNNING)
        newest = await self._asked(lambda: self._jobs.events(record.id, limit=1))
        data = newest[0].data if newest and newest[0].type == "metrics" else {}
        if data:
            left = data["elapsed_s"] / data["step"] * (data["total_steps"] - data["step"])
            finish = newest[0].created_at + timedelta(seconds=left)
            if finish != record.estimated_finish:
                await self._report(work, estimated_finish=finish, steps=data["total_steps"])

    async def _finish(self, work: _Work, result: dict[str, Any]) -> None:
        """Keep the curve, publish the route, and say so."""
        record = work.record
        keep = partial(keep_results, record, work.token, result["checkpoint"], self._files, self._store)
        try:
            file_id = await self._asked(partial(keep, self._file_expiry_s))
        except (NotFoundError, RefusedError) as error:
            raise JobFailedError("training_failed", f"What was trained is lost: {error}") from None
        base = await self._base(record.application or "")
        if base.address != record.base:
            message = f"Application {record.application} serves another model now."
            raise JobFailedError("model_not_available", message, "model")
        self._check(work)
        model = ModelRef.parse(result["model"])

        def held() -> None:
            if self._jobs.renew(record.id, work.token, self._args.lease_s) is TuningStatus.CANCELLED:
                raise JobCancelledError

        try:
            await self._asked(lambda: publish(record, model, result["digest"], self._store, held))
        except BaseGoneError as refused:
            raise JobFailedError("model_not_available", str(refused), "model") from None
        await asyncio.sleep(self._publish_s)  # Whoever hears that it is there may ask it at once.
        await self._report(
            work,
            *self._told_cost(record, result["trained_tokens"]),
            make_event(record.id, "created model", f"New fine-tuned model created: {record.tuned_name}"),
            make_event(record.id, "succeeded", "The job has successfully completed"),
            status=TuningStatus.SUCCEEDED,
            steps=result["steps"],
            trained_tokens=result["trained_tokens"],
            model_version=str(model),
            digest=result["digest"],
            last_loss=result["last_loss"],
            valid_loss=result.get("valid_loss"),
            result_files=[file_id],
            finished_at=datetime.now(UTC),
        )

    def _told_cost(self, record: TuningRecord, tokens: int) -> list[TuningEvent]:
        if record.training_price is None:
            return []
        message = f"Training on {tokens:,} tokens cost {record.cost(tokens).normalize():f}"
        return [make_event(record.id, "cost", message)]

    async def _report(self, work: _Work, *events: Any, **more: object) -> None:
        """Raises JobCancelledError if a client has ended it, RefusedError if another follows it."""
        progress = changed(work.record, **more)
        work.record = await self._asked(
            lambda: self._jobs.report(work.record.id, work.token, progress, self._args.lease_s, events)
        )
        if work.record.status is TuningStatus.CANCELLED:
            raise JobCancelledError

    async def _asked(self, work: Callable[[], _T]) -> _T:
        """What SQL, storage or the cluster answer; while they are away they are asked again."""
        told = False
        while True:
            try:
                return await waited(work)
            except UnavailableError as error:
                if not told:
                    logger.warning("Fine-tuning waits: %s", error)
                told = True
                await asyncio.sleep(self._args.poll_s)
