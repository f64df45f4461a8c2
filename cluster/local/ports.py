"""Check every port before anything starts."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator

import psutil

from cluster.errors import UnavailableError, UsageError
from cluster.local import s3server
from cluster.settings import Ports

HOST = "127.0.0.1"
#: What Ray takes from :attr:`Ports.ray_internal` on.
RAY_INTERNAL = (
    "node_manager",
    "object_manager",
    "runtime_env_agent",
    "metrics_export",
    "autoscaler_metrics",
    "dashboard_metrics",
)
#: With fewer free ports than this Ray cannot start the workers of even a small job.
_FEWEST_WORKERS = 32
_RAY = ("gcs", "dashboard", "dashboard_agent", "dashboard_grpc", "client", "ray_internal", "serve_http")
_S3 = ("s3", "s3_internal")


def ray_internal(ports: Ports, name: str) -> int:
    """The port of one of :data:`RAY_INTERNAL`."""
    return ports.ray_internal + RAY_INTERNAL.index(name)


def check_ports(ports: Ports, *, s3: bool = True, ray: bool = True) -> None:
    """Refuse a plan of ports that overlap or that another process holds.

    :param s3: check the S3 server's (false if it runs already).
    :param ray: check Ray's and the gateway's.

    Raises UsageError for an overlap or a number that is no port, UnavailableError for a port in use.
    """
    _check_overlap(ports)
    names = [*(_S3 if s3 else ()), *(_RAY if ray else ())]
    for name in names:
        for port in _span(ports, name):
            if not is_free(port):
                raise UnavailableError(
                    f"Port {port} is in use by {holder(port)}: end it, or set {_variable(name)} to another."
                )
    if ray:
        _check_workers(ports)


def is_free(port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def holder(port: int) -> str:
    """Who listens on the port, as far as this user may know."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.Error:
        return "another process"
    pids = [c.pid for c in connections if c.laddr and c.laddr.port == port and c.pid]
    for pid in pids:
        try:
            return f"{psutil.Process(pid).name()} (pid {pid})"
        except psutil.Error:
            continue
    return "another process"


def _variable(name: str) -> str:
    return f"MANTA_PORTS__{name.upper()}"


def _span(ports: Ports, name: str) -> list[int]:
    """The ports that one setting stands for."""
    if name == "s3_internal":
        return [p for p in s3server.ports(ports.s3, ports.s3_internal).values() if p != ports.s3]
    if name == "ray_internal":
        return [ray_internal(ports, part) for part in RAY_INTERNAL]
    return [getattr(ports, name)]


def _check_overlap(ports: Ports) -> None:
    taken: dict[int, str] = {}
    for name, port in _all(ports):
        if not 0 < port < 65536:
            raise UsageError(f"{_variable(name)} leads to {port}, which is no port: choose one below 65536.")
        if port in taken:
            raise UsageError(
                f"{_variable(name)} and {_variable(taken[port])} both take port {port}: change one of them."
            )
        taken[port] = name


def _all(ports: Ports) -> Iterator[tuple[str, int]]:
    for name in (*_S3, *_RAY):
        yield from ((name, port) for port in _span(ports, name))
    yield from (("worker_min", port) for port in _workers(ports))


def _workers(ports: Ports) -> Iterable[int]:
    return range(ports.worker_min, ports.worker_max + 1)


def _check_workers(ports: Ports) -> None:
    free = 0
    for port in _workers(ports):
        free += is_free(port)
        if free >= _FEWEST_WORKERS:
            return
    raise UnavailableError(
        f"Ports {ports.worker_min} to {ports.worker_max} have {free} free ones and Ray's workers need "
        f"{_FEWEST_WORKERS}: set MANTA_PORTS__WORKER_MIN and MANTA_PORTS__WORKER_MAX to another range."
    )
