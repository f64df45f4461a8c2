"""The gateway is light: what it imports, and what it must not."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = (
    "torch",
    "vllm",
    "ray.serve.llm",
    "ray.llm",
    "mlflow",
    "transformers",
    "guardrails",
    "great_expectations",
    # Only for keys with a budget.
    "sqlalchemy",
    # Only when traces are asked for; Ray itself brings the rest of it.
    "opentelemetry.exporter.otlp",
)
_SCRIPT = """
import json, sys
from deployments.gateway import GatewayArgs, build
from deployments.gateway.deployment import WorkersByHandle, asgi_app
build(GatewayArgs())
asgi_app(GatewayArgs(), WorkersByHandle(None))
from deployments.guards import make_engine
from validation.guards import default_policy
make_engine(default_policy())
print(json.dumps(sorted(sys.modules)))
"""


def test_the_gateway_imports_no_engine() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    modules = json.loads(done.stdout.splitlines()[-1])
    assert "deployments.gateway.pipeline" in modules
    found = [
        name for name in modules if name in HEAVY or name.startswith(tuple(f"{heavy}." for heavy in HEAVY))
    ]
    assert not found
