"""Where guards run: our own in the process that asks, those from packages in an application of their own.

    applications:
    - name: guards-<policy digest>
      route_prefix: null
      import_path: deployments.guards:build
      args: {policy: {...the policy's content...}}

``manta deploy`` adds it for each policy that has packaged guards. Its name holds the policy's digest, so that
an old and a new policy are never mixed up while one follows the other.
"""

# No postponed annotations here: Serve reads the type of build's argument.

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from cluster.contracts import Finding, Segment
from deployments.own_address import listen_on_own_address
from validation.guards import GuardEngine, GuardPolicy, explain, parse_policy
from validation.guards.breaker import GuardUnavailableError

if TYPE_CHECKING:
    from ray.serve import Application

logger = logging.getLogger("ray.serve")
DEPLOYMENT = "guards"
#: Most replicas that a policy's packaged guards may grow to.
MAX_REPLICAS = 4
#: Texts that one guard is given at a time: few, as the first waits for the last.
BATCH = 8


class GuardsArgs(BaseModel):
    """``args`` of a guards application."""

    model_config = ConfigDict(extra="forbid")

    policy: dict[str, Any] = Field(description="Content of the policy's file.")


def application_name(policy_digest: str) -> str:
    """The name of the application that runs a policy's packaged guards."""
    return f"guards-{policy_digest[:12]}"


def build(args: GuardsArgs) -> "Application":
    """The application that Serve runs. Raises UsageError for a policy that is wrong."""
    from ray import serve

    parse_policy(args.policy)
    options = {
        "name": DEPLOYMENT,
        "max_ongoing_requests": 64,
        # What waits beyond this is refused at once, with a status that says to come again.
        "max_queued_requests": 256,
        "autoscaling_config": {
            "min_replicas": 1,
            "max_replicas": MAX_REPLICAS,
            "target_ongoing_requests": 16,
            "upscale_delay_s": 5,
        },
        "health_check_period_s": 5,
        "ray_actor_options": {"num_cpus": 0.2},
    }
    return serve.deployment(PackagedGuardsReplica, **options).bind(args.policy)


class PackagedGuardsReplica:
    """One process with the packaged validators of one policy, loaded before it is ready.

    Texts that wait for the same guard are judged together; a guard that hangs keeps none waiting but its own.
    """

    def __init__(self, policy: dict[str, Any]) -> None:
        from validation.guards.packaged import PackagedGuards

        listen_on_own_address()
        self._policy = parse_policy(policy)
        self._guards = PackagedGuards(self._policy)
        self._guards.load()
        self._batches = {
            spec.name: self._batch(spec.name) for spec in self._policy.guards if spec.kind == "guardrails"
        }

    async def check(self, guard: str, policy_digest: str, segment: dict[str, Any]) -> list[dict[str, Any]]:
        """See :class:`validation.guards.RemoteGuards`; plain dicts cross the handle."""
        self._guards.require(policy_digest)
        found = await self._batches[guard](Segment.model_validate(segment))
        if isinstance(found, Exception):
            raise found
        return [finding.model_dump() for finding in found]

    def check_health(self) -> None:
        """Serve replaces a replica whose validator hangs. Raises RuntimeError."""
        patience_s = 2 * max(guard.timeout_s for guard in self._policy.guards)
        if (stuck_s := self._guards.stuck_s()) > patience_s:
            raise RuntimeError(f"A validator has judged one text for {stuck_s:.0f} seconds.")

    def _batch(self, guard: str) -> Callable[[Segment], Awaitable[Any]]:
        from ray import serve

        async def judge(segments: list[Segment]) -> list[Any]:
            return list(await self._guards.check_many(guard, segments))

        batched: Any = serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0)
        one: Callable[[Segment], Awaitable[Any]] = batched(judge)
        return one


class ServeGuards:
    """:class:`validation.guards.RemoteGuards` by a handle to the policy's guards application."""

    def __init__(self, policy: GuardPolicy) -> None:
        self._application = application_name(policy.digest)
        self._handle: Any = None

    async def check(self, guard: str, policy_digest: str, segment: Segment) -> list[Finding]:
        """See :class:`validation.guards.RemoteGuards`. Whatever is raised here blocks the text."""
        import asyncio

        from ray import serve
        from ray.serve.exceptions import BackPressureError

        if self._handle is None:
            self._handle = await asyncio.to_thread(serve.get_deployment_handle, DEPLOYMENT, self._application)
        try:
            found = await self._handle.check.remote(guard, policy_digest, segment.model_dump())
        except BackPressureError:
            raise GuardUnavailableError from None
        return [Finding.model_validate(finding) for finding in found]


def make_engine(policy: GuardPolicy) -> GuardEngine:
    """The engine of a policy for a process inside Serve; logs what it covers."""
    from deployments.gateway.coverage import ENDPOINTS

    packaged = any(guard.kind == "guardrails" for guard in policy.guards)
    engine = GuardEngine(policy, ServeGuards(policy) if packaged else None)
    logger.info("%s", explain(engine, ENDPOINTS))
    return engine
