"""How long the gateway and a model replica take to start.

    python -m tests.benchmarks.startup [--model DIRECTORY] [--rounds 1]

Measured are: the import of everything the gateway needs, in a new process; the memory of a gateway replica
over that of an empty Serve replica; and the time from ``serve.run`` to ready of a model replica as
``deployments.model`` makes it, and of a plain ``ray.serve.llm`` one with the same weights, engine arguments
and batch settings. Ours goes first in the first round, so that a cold page cache counts against it; both
fetch from a local directory or, in ours, from the real S3 server (its cost is in the figure).

It asserts nothing; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import forget_settings, start_s3
from tests.ports import free_ports

ENGINE = {"max_model_len": 512, "max_num_seqs": 32, "enforce_eager": True, "dtype": "bfloat16"}
KV_CACHE = {"VLLM_CPU_KVCACHE_SPACE": "1"}
_IMPORT = (
    "import time; start = time.perf_counter()\n"
    "from deployments.gateway import GatewayArgs\n"
    "from deployments.gateway.deployment import WorkersByHandle, asgi_app\n"
    "asgi_app(GatewayArgs(), WorkersByHandle(None))\n"
    "print(time.perf_counter() - start)"
)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def import_seconds(rounds: int) -> float:
    """Import of the gateway in a new process, with Ray Serve already paid for by whoever runs in it."""
    times = []
    for _ in range(rounds + 1):
        code = f"import ray.serve\n{_IMPORT}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        times.append(float(done.stdout.splitlines()[-1]))
    return statistics.median(times[1:])


@contextmanager
def storage() -> Iterator[None]:
    """A real S3 server, found by every process."""
    from cluster.local import s3server

    with tempfile.TemporaryDirectory(prefix="startup-") as folder:
        server = start_s3(Path(folder) / "s3")
        os.environ |= {
            "AWS_ENDPOINT_URL": server.endpoint,
            "AWS_ACCESS_KEY_ID": server.credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": server.credentials.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "MANTA_STORAGE__BUCKET": server.bucket,
            "MANTA_HOME": f"{folder}/home",
        }
        forget_settings()
        try:
            yield
        finally:
            s3server.stop(server.pid)


def memory_over_empty() -> float:
    """Resident memory of a gateway replica less that of an empty one, in MB."""
    from ray import serve

    from deployments.gateway import GatewayArgs, build

    @serve.deployment(ray_actor_options={"num_cpus": 0.1})
    class Empty:
        def rss(self) -> int:
            import psutil

            return int(psutil.Process().memory_info().rss)

    serve.run(build(GatewayArgs()), name="gateway", route_prefix="/")
    empty = serve.run(Empty.bind(), name="empty", route_prefix=None)
    time.sleep(3)
    gateway = serve.get_deployment_handle("gateway", "gateway").resources.remote().result()["rss_bytes"]
    over = (gateway - empty.rss.remote().result()) / 1e6
    serve.delete("empty")
    serve.delete("gateway")
    return over


def ready_seconds(application: Any) -> float:
    """From ``serve.run`` to ready."""
    from ray import serve

    start = time.perf_counter()
    serve.run(application, name="model", route_prefix=None)
    seconds = time.perf_counter() - start
    serve.delete("model")
    return seconds


def ours(address: str) -> Any:
    from deployments.model import ModelApplicationArgs, build

    config = {
        "model_loading_config": {"model_id": "m"},
        "accelerator_config": {"kind": "cpu"},
        "engine_kwargs": ENGINE,
        "deployment_config": {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0}},
        "runtime_env": {"env_vars": KV_CACHE | {"TORCHDYNAMO_DISABLE": "1"}},
    }
    return build(ModelApplicationArgs(model=address, llm_config=config))


def plain(directory: str) -> Any:
    from ray.serve.llm import LLMConfig, build_llm_deployment

    config = LLMConfig(
        model_loading_config={"model_id": "m", "model_source": directory},
        accelerator_config={"kind": "cpu"},
        engine_kwargs=ENGINE,
        deployment_config={"num_replicas": 1},
        runtime_env={"env_vars": KV_CACHE},
    )
    return build_llm_deployment(config)


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="Hugging Face directory; a random tiny model if absent.")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    result = {"gateway_import_s": import_seconds(max(2, arguments.rounds))}
    say(f"gateway import: {result['gateway_import_s']:.2f} s")

    import ray
    from ray import serve

    with tempfile.TemporaryDirectory() as folder, storage():
        from cluster.models import ensure_model
        from tests.tiny_model import make_tiny_llama

        directory = arguments.model or make_tiny_llama(Path(folder) / "tiny")
        address = str(ensure_model(str(directory), "startup").ref)
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": free_ports()})
            result["gateway_rss_mb_over_empty"] = memory_over_empty()
            say(f"gateway memory over an empty replica: {result['gateway_rss_mb_over_empty']:.0f} MB")
            times: dict[str, list[float]] = {"replica_ready_s": [], "replica_ready_plain_s": []}
            for _ in range(arguments.rounds):
                times["replica_ready_s"].append(ready_seconds(ours(address)))
                say(f"model replica: {times['replica_ready_s'][-1]:.1f} s")
                times["replica_ready_plain_s"].append(ready_seconds(plain(str(directory))))
                say(f"plain ray.serve.llm replica: {times['replica_ready_plain_s'][-1]:.1f} s")
            result |= {name: statistics.median(values) for name, values in times.items()}
        finally:
            serve.shutdown()
            ray.shutdown()
    print(json.dumps({name: round(value, 2) for name, value in result.items()}))


if __name__ == "__main__":
    main()
