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
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from cluster.contracts import Finding, Segment
from deployments.own_address import listen_on_own_address
from validation.guards import GuardEngine, GuardPolicy, explain, parse_policy

if TYPE_CHECKING:
    from ray.serve import Application

logger = logging.getLogger("ray.serve")
DEPLOYMENT = "guards"


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
    options = {"name": DEPLOYMENT, "max_ongoing_requests": 64, "ray_actor_options": {"num_cpus": 0.2}}
    return serve.deployment(PackagedGuardsReplica, **options).bind(args.policy)


class PackagedGuardsReplica:
    """One process with the packaged validators of one policy, loaded before it is ready."""

    def __init__(self, policy: dict[str, Any]) -> None:
        from validation.guards.packaged import PackagedGuards

        listen_on_own_address()
        self._guards = PackagedGuards(parse_policy(policy))
        self._guards.load()

    async def check(self, guard: str, policy_digest: str, segment: dict[str, Any]) -> list[dict[str, Any]]:
        """See :class:`validation.guards.RemoteGuards`; plain dicts cross the handle."""
        found = await self._guards.check(guard, policy_digest, Segment.model_validate(segment))
        return [finding.model_dump() for finding in found]


class ServeGuards:
    """:class:`validation.guards.RemoteGuards` by a handle to the policy's guards application."""

    def __init__(self, policy: GuardPolicy) -> None:
        self._application = application_name(policy.digest)
        self._handle: Any = None

    async def check(self, guard: str, policy_digest: str, segment: Segment) -> list[Finding]:
        """See :class:`validation.guards.RemoteGuards`. Whatever is raised here blocks the text."""
        import asyncio

        from ray import serve

        if self._handle is None:
            self._handle = await asyncio.to_thread(serve.get_deployment_handle, DEPLOYMENT, self._application)
        found = await self._handle.check.remote(guard, policy_digest, segment.model_dump())
        return [Finding.model_validate(finding) for finding in found]


def make_engine(policy: GuardPolicy) -> GuardEngine:
    """The engine of a policy for a process inside Serve; logs what it covers."""
    packaged = any(guard.kind == "guardrails" for guard in policy.guards)
    engine = GuardEngine(policy, ServeGuards(policy) if packaged else None)
    logger.info("Guard policy %s (%s):\n%s", policy.name, policy.digest[:12], explain(engine))
    return engine
