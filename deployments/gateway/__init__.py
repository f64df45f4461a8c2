"""The gateway: the only door to the models over HTTP, speaking OpenAI's wire format.

    applications:
    - name: gateway
      route_prefix: /
      import_path: deployments.gateway:build
      args: {}

It stays light: it imports none of torch, vllm, ray.serve.llm, mlflow and guardrails (a test holds it), is
ready in seconds, and reaches models through deployment handles only. The life of a request is in
:mod:`deployments.gateway.pipeline`. What it knows (keys, routes, policies) comes from published snapshots.
"""

# No postponed annotations here: Serve reads the type of build's argument.

from typing import TYPE_CHECKING

from deployments.gateway.args import GatewayArgs

if TYPE_CHECKING:
    from ray.serve import Application

__all__ = ["GatewayArgs", "build"]


def build(args: GatewayArgs) -> "Application":
    """The application that Serve runs: its deployments are ``gateway``, and ``batches`` behind it."""
    from deployments.batches.deployment import BatchWorkers
    from deployments.gateway.deployment import Gateway

    return Gateway.bind(args, BatchWorkers.bind(args))  # type: ignore[attr-defined]
