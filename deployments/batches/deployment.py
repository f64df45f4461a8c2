"""The batch and fine-tuning workers as a Serve deployment, behind the gateway in its application."""

from __future__ import annotations

import asyncio
import logging

from ray import serve

from deployments.gateway.args import GatewayArgs
from deployments.own_address import listen_on_own_address

logger = logging.getLogger("ray.serve")
#: What a gateway's look for a newer snapshot may take.
_LOOK_S = 1.0


@serve.deployment(name="batches", ray_actor_options={"num_cpus": 0.1})
class BatchWorkers:
    """One worker of each kind; more replicas share batches and fine-tuning jobs."""

    async def __init__(self, args: GatewayArgs) -> None:  # type: ignore[misc]
        from cluster.batches import BatchRepository
        from cluster.files import FileRepository
        from cluster.settings import load_settings
        from cluster.storage import object_store
        from cluster.tuning import TuningRepository
        from deployments.batches.worker import BatchWorker
        from deployments.gateway.assembly import assemble
        from deployments.guards import make_engine
        from deployments.tuning.trainings import RayTrainings
        from deployments.tuning.worker import TuningWorker

        listen_on_own_address()
        settings, store = load_settings(), object_store()
        url, files = settings.database_url, FileRepository(settings.database_url)
        holder = serve.get_replica_context().replica_id.unique_id
        # A key's limits hold for its requests, and once more for its batches; its budget holds for both.
        self._assembled = assemble(args, lambda: 1)
        self._worker = BatchWorker(
            self._assembled.pipeline,
            BatchRepository(url),
            files,
            store,
            args.batches,
            holder,
            make_engine,
            args.file_expiry_s,
        )
        self._tuning = TuningWorker(
            self._assembled.pipeline.poller,
            TuningRepository(url),
            files,
            store,
            args.tuning,
            holder,
            RayTrainings(args.tuning, store, settings.team),
            args.file_expiry_s,
            args.snapshot_interval_s + _LOOK_S,
        )
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(_told)

    async def _run(self) -> None:
        async with self._assembled.running(), asyncio.TaskGroup() as group:
            group.create_task(self._worker.run())
            group.create_task(self._tuning.run())

    def wake(self) -> None:
        """There is work."""
        self._worker.wake()
        self._tuning.wake()

    def step_back(self) -> None:
        """Interactive requests are at work."""
        self._worker.step_back()

    def check_health(self) -> None:
        """Serve starts another in its place if it does not work any more."""
        if self._task.done():
            raise RuntimeError("the batch worker has ended")

    async def __del__(self) -> None:
        """Serve calls this when the replica stops: another goes on with its batches at once."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def _told(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("The batch worker has ended", exc_info=task.exception())
