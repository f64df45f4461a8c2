"""What benchmarks run on: real parts of their own on this machine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.local import s3server
from cluster.serve_environment import SERVE_ENVIRONMENT
from tests.conftest import forget_settings, start_s3
from tests.ports import free_ports


@contextmanager
def storage() -> Iterator[None]:
    """An S3 server and a home; both end with the block."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        (Path(folder) / "s3").mkdir()
        s3 = start_s3(Path(folder) / "s3")
        os.environ |= {
            "AWS_ENDPOINT_URL": s3.endpoint,
            "AWS_ACCESS_KEY_ID": s3.credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": s3.credentials.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "MANTA_STORAGE__BUCKET": s3.bucket,
            "MANTA_HOME": f"{folder}/home",
            **SERVE_ENVIRONMENT,
        }
        forget_settings()
        try:
            yield
        finally:
            s3server.stop(s3.pid)


@contextmanager
def platform(num_cpus: int, *, haproxy: bool = False) -> Iterator[None]:
    """The same, and a Ray of that many logical CPUs.

    :param haproxy: HAProxy hands requests to Serve's replicas, in place of Serve's proxy in Python.
    """
    import ray

    with storage():
        more = haproxy_environment() if haproxy else {}
        os.environ |= more
        try:
            ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False)
            for name in SERVE_ENVIRONMENT | more:  # Of Ray's processes, not of this one, which has no loop.
                del os.environ[name]
            yield
        finally:
            ray.shutdown()


def haproxy_environment() -> dict[str, str]:
    """What Ray reads for HAProxy as ingress, with ports that another Ray on this machine has not."""
    ports = ("HAPROXY_METRICS_PORT", "HAPROXY_STATS_PORT", "FALLBACK_PROXY_HTTP_PORT")
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        # A replica that goes would wait 30 s for balancers outside, and there are none.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    } | {f"RAY_SERVE_{name}": str(free_ports()) for name in ports}
