"""Every socket that a cluster listens on, and what a stranger gets there.

A server counts as guarded only if it says so itself: 401, 403 or UNAUTHENTICATED to a question that it would
answer to a friend, or no TLS handshake without a certificate.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass

import grpc
import httpx
import psutil

from cluster.local import s3server
from cluster.local.ports import RAY_INTERNAL, ray_internal
from cluster.settings import Ports
from tests.integration.conftest import LocalCluster

_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Listener:
    """One listening socket."""

    #: What it is: a key of :data:`QUESTIONS`, or the process's title where nothing is known of it.
    part: str
    ip: str
    port: int
    pid: int

    def is_there(self) -> bool:
        """Whether it still listens: a worker may have ended since."""
        try:
            connections = psutil.Process(self.pid).net_connections("inet")
        except psutil.Error:
            return False
        return any(_listens(found) and found.laddr.port == self.port for found in connections)


#: Questions that each part answers to those who may ask. gRPC ones are whole method names; an empty message
#: is a valid one of any kind.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "gateway": ("GET /v1/models", "POST /v1/chat/completions"),
    "gcs": (
        "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
        "/ray.rpc.InternalKVGcsService/InternalKVKeys",
        "/ray.rpc.ActorInfoGcsService/GetAllActorInfo",
    ),
    "dashboard": ("GET /api/jobs/", "GET /api/version", "GET /nodes?view=summary", "GET /logical/actors"),
    "dashboard_agent": ("GET /api/job_agent/jobs/x/logs", "POST /api/job_agent/jobs/"),
    "dashboard_grpc": ("/ray.rpc.ReporterService/GetTraceback", "/ray.rpc.LogService/ListLogs"),
    "client": ("/ray.rpc.RayletDriver/ClusterInfo", "/ray.rpc.RayletDriver/ListNamedActors"),
    "node_manager": ("/ray.rpc.NodeManagerService/GetNodeStats",),
    "object_manager": ("/ray.rpc.ObjectManagerService/Pull",),
    "runtime_env_agent": ("POST /get_or_create_runtime_env", "POST /get_runtime_envs_info"),
    "worker": ("/ray.rpc.CoreWorkerService/GetCoreWorkerStats",),
    "replica": ("/ray.serve.ASGIService/HandleRequest", "/ray.serve.ASGIService/HandleRequestWithRejection"),
    "engine": ("TCP",),
    "metrics_export": ("GET /metrics",),
    "autoscaler_metrics": ("GET /metrics",),
    "dashboard_metrics": ("GET /metrics",),
    "s3.port": ("GET /", "GET /{bucket}", "PUT /{bucket}/x"),
    "master.port": ("GET /cluster/status", "GET /dir/assign", "GET /col/delete?collection={bucket}-x"),
    "volume.port": ("GET /status", "GET /1,01637037d6", "DELETE /1,01637037d6"),
    "filer.port": ("GET /buckets/{bucket}/", "PUT /buckets/{bucket}/x", "DELETE /buckets/{bucket}/x"),
    "admin.port": ("GET /metrics", "GET /api/config"),
    "master.port.grpc": ("TLS",),
    "volume.port.grpc": ("TLS",),
    "filer.port.grpc": ("TLS",),
    "s3.port.grpc": ("TLS",),
    "admin.port.grpc": ("TLS",),
}


#: Parts of the S3 server whose HTTP is taken out, all but a few figures.
_TAKEN_OUT = ("master.port", "filer.port", "admin.port")


def listeners(cluster: LocalCluster, ports: Ports) -> list[Listener]:
    """All of them now, TCP and UDP, of every process of this home."""
    known = {number: name for name, number in s3server.ports(ports.s3, ports.s3_internal).items()}
    known |= {ray_internal(ports, name): name for name in RAY_INTERNAL}
    known |= {getattr(ports, name): name for name in ("gcs", "dashboard", "client")}
    known |= {ports.dashboard_agent: "dashboard_agent", ports.dashboard_grpc: "dashboard_grpc"}
    known[ports.serve_http] = "gateway"
    titles = {}
    for process in cluster.processes():
        try:
            titles[process.pid] = " ".join(process.cmdline()).strip()
        except psutil.Error:  # It has ended.
            continue
    found = []
    for connection in psutil.net_connections("inet"):
        if connection.pid not in titles or not _listens(connection):
            continue
        title, port = titles[connection.pid], connection.laddr.port
        part = known.get(port) or title
        if part is title and ports.worker_min <= port <= ports.worker_max:
            part = "worker"
        elif part is title and "ServeReplica" in title:
            part = "replica"
        elif part is title and title.startswith("VLLM::EngineCore"):
            part = "engine"
        found.append(Listener(part, connection.laddr.ip.removeprefix("::ffff:"), port, connection.pid))
    return found


def answers(listener: Listener, bucket: str) -> list[str]:
    """What a stranger is told, question by question, where it is not a refusal."""
    given = []
    refusals = {"401", "403", "UNAUTHENTICATED", "no certificate"}
    if listener.part in _TAKEN_OUT:
        refusals.add("404")
    for question in QUESTIONS[listener.part]:
        answer = _ask(listener.port, question.format(bucket=bucket))
        if answer not in refusals:
            given.append(f"{question.format(bucket=bucket)}: {answer}")
    return given


def _listens(connection: psutil._common.sconn) -> bool:
    if connection.type == socket.SOCK_DGRAM:
        return not connection.raddr
    return connection.status == psutil.CONN_LISTEN


def _ask(port: int, question: str) -> str:
    if question == "TLS":
        return _handshake(port)
    if question == "TCP":  # A protocol without questions: whoever comes is let in.
        with socket.create_connection(("127.0.0.1", port), _TIMEOUT_S):
            return "accepted"
    if question.startswith("/"):
        return _call(port, question)
    method, _, path = question.partition(" ")
    try:
        answer = httpx.request(
            method, f"http://127.0.0.1:{port}{path}", timeout=_TIMEOUT_S, trust_env=False, json={}
        )
    except httpx.HTTPError as error:
        return type(error).__name__
    return str(answer.status_code)


def _call(port: int, method: str) -> str:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            # A stream of answers serves for one too.
            list(channel.unary_stream(method)(b"", timeout=_TIMEOUT_S))
        except grpc.RpcError as error:
            return str(error.code().name)
    return "answered"


def _handshake(port: int) -> str:
    """Talk TLS as one who trusts every server and has no certificate of his own."""
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
    stranger.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port), _TIMEOUT_S) as plain:
        try:
            with stranger.wrap_socket(plain) as wrapped:
                # In TLS 1.3 the refusal comes after the handshake.
                wrapped.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
                while wrapped.recv(4096):
                    return "answered"
        except ssl.SSLError as error:
            return "no certificate" if "CERTIFICATE_REQUIRED" in str(error.reason) else str(error.reason)
    return "closed"
