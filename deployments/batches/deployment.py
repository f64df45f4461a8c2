"""The batch worker as a Serve deployment, behind the gateway in its application."""

from __future__ import annotations

import asyncio
import logging

from ray import serve

from deployments.gateway.args import GatewayArgs
from deployments.own_address import listen_on_own_address

logger = logging.getLogger("ray.serve")


@serve.deployment(name="batches", ray_actor_options={"num_cpus": 0.1})
class BatchWorkers:
    """One worker; more replicas share the batches."""

    async def __init__(self, args: GatewayArgs) -> None:  # type: ignore[misc]
        from cluster.batches import BatchRepository
        from cluster.files import FileRepository
        from cluster.settings import load_settings
        from cluster.snapshots import newest
        from cluster.storage import object_store
        from deployments.batches.worker import BatchWorker
        from deployments.gateway.limits import Limiter
        from deployments.gateway.pipeline import Pipeline
        from deployments.gateway.report import Report
        from deployments.gateway.upstream import Upstreams
        from deployments.gateway.view import Poller
        from deployments.guards import make_engine

        listen_on_own_address()
        url = load_settings().database_url
        self._poller = Poller(newest, make_engine, args.snapshot_interval_s)
        upstreams = Upstreams(args.upstream_timeout_s, args.upstream_key_variables)
        # A key's limits hold for its requests, and once more for its batches.
        pipeline = Pipeline(args, self._poller, upstreams, Limiter(lambda: 1), [Report(counters=True)])
        self._worker = BatchWorker(
            pipeline,
            BatchRepository(url),
            FileRepository(url),
            object_store(),
            args.batches,
            serve.get_replica_context().replica_id.unique_id,
            make_engine,
            args.file_expiry_s,
        )
        await self._poller.start()
        self._task = asyncio.create_task(self._worker.run())
        self._task.add_done_callback(_told)

    def wake(self) -> None:
        """There is work."""
        self._worker.wake()

    def step_back(self) -> None:
        """Interactive requests are at work."""
        self._worker.step_back()

    def check_health(self) -> None:
        """Serve starts another in its place if it does not work any more."""
        if self._task.done():
            raise RuntimeError("the batch worker has ended")


def _told(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("The batch worker has ended", exc_info=task.exception())
