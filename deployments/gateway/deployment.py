"""The gateway as a Serve deployment."""

from __future__ import annotations

import sys
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from deployments.gateway.args import GatewayArgs
from deployments.gateway.batches import Workers
from deployments.own_address import listen_on_own_address


def asgi_app(args: GatewayArgs, workers: Workers) -> ASGIApp:
    """The gateway as it runs in a replica, with all that it reads from and counts in.

    :param workers: what does batches.
    """
    from deployments.gateway.app import make_app
    from deployments.gateway.assembly import assemble

    return make_app(assemble(args, _running_replicas), workers, behind_proxy=True)


class WorkersByHandle:
    """By their handle. Whether they heard it is not waited for: they look for work by themselves, too."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    def wake(self) -> None:
        """See :class:`Workers`."""
        self._handle.wake.remote()

    def step_back(self) -> None:
        """See :class:`Workers`."""
        self._handle.step_back.remote()


def _running_replicas() -> int:
    """How many replicas of this one's deployment run. Asks Serve's controller, so it may wait."""
    own = serve.get_replica_context()
    deployment = serve.status().applications[own.app_name].deployments[own.deployment]
    return int(deployment.replica_states.get("RUNNING", 0))


@serve.deployment(
    name="gateway",
    # The pipeline refuses with an OpenAI body long before Serve does with a plain one.
    max_ongoing_requests=2048,
    ray_actor_options={"num_cpus": 0.2},
)
@serve.ingress()
class Gateway:
    """One replica of the gateway."""

    def __init__(self, args: GatewayArgs, batches: DeploymentHandle) -> None:
        self._args, self._workers = args, WorkersByHandle(batches)
        listen_on_own_address()

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Serve calls this in the replica, after the constructor."""
        return asgi_app(self._args, self._workers)

    def loaded_modules(self) -> list[str]:
        """Names of all modules in this process; a test holds that no engine is among them."""
        return sorted(sys.modules)

    def resources(self) -> dict[str, Any]:
        """This process: ``pid``, and ``rss_bytes`` of memory."""
        import os

        import psutil

        return {"pid": os.getpid(), "rss_bytes": psutil.Process().memory_info().rss}
