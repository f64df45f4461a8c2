"""Serve with HAProxy as its ingress, two gateways and a paced engine; they end with standard input.

    python -m tests.integration.haproxy_serve

A process of its own: the ingress is chosen in the environment of Ray's processes, and the tests' own Ray has
Serve's proxy. Prints a line of JSON with ``url``, ``model`` and ``key`` as soon as it answers, and for each
line that it reads how many streams the engine is at.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time

import httpx

from tests.benchmarks.load import KEY, route
from tests.benchmarks.local import platform
from tests.ports import free_ports

MODEL = "paced"


def main() -> None:
    """Start everything, tell where it is, wait."""
    with platform(num_cpus=4, haproxy=True):
        from ray import serve

        from cluster import snapshots
        from cluster.contracts import ApiKey
        from deployments.batches.deployment import BatchWorkers
        from deployments.gateway import GatewayArgs
        from deployments.gateway.deployment import Gateway
        from tests.paced_engine import PacedArgs, build

        key = ApiKey(id="test", sha256=hashlib.sha256(KEY.encode()).hexdigest(), team="default")
        change = {"keys": [key], "routes": [route(MODEL, "paced")]}
        snapshots.publish(lambda now: now.model_copy(update=change), by="test")
        port = free_ports()
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        try:
            serve.run(build(PacedArgs(pace_ms=100)), name="paced", route_prefix=None)
            args = GatewayArgs()
            gateway = Gateway.options(num_replicas=2).bind(args, BatchWorkers.bind(args))
            serve.run(gateway, name="gateway", route_prefix="/")
            url = f"http://127.0.0.1:{port}"
            until = time.monotonic() + 300
            while httpx.get(f"{url}/healthz", timeout=60).status_code != 200:
                if time.monotonic() > until:
                    raise SystemExit("HAProxy hands no request to the gateway.")
                time.sleep(0.2)
            print(json.dumps({"url": f"{url}/v1", "model": MODEL, "key": KEY}), flush=True)
            model = serve.get_deployment_handle("model", "paced")
            for _ in sys.stdin:
                print(model.open_streams.remote().result(), flush=True)
        finally:
            serve.shutdown()


if __name__ == "__main__":
    main()
