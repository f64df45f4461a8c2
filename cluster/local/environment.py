"""The environment of the cluster's processes, and that of a shell or a command beside it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from cluster.local.credentials import Credentials
from cluster.local.home import Home, State
from cluster.local.ports import HOST
from cluster.local.process import MARK
from cluster.local.ray_head import ray_environment
from cluster.settings import Ports, Settings, load_settings
from cluster.storage import object_store
from cluster.storage.environment import storage_environment


@dataclass(frozen=True)
class _Group:
    """Variables that belong to one address."""

    prefixes: tuple[str, ...]
    addresses: tuple[str, ...]
    #: Belong to another address unless ours is named.
    keys: tuple[str, ...]


#: Of another storage or cluster: beside ours they would win or mix.
_FOREIGN = (
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "RAY_AUTH_TOKEN",
)
_STORAGE = _Group(
    prefixes=("AWS_", "MLFLOW_S3_"),
    addresses=("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
    keys=(*_FOREIGN[:-1], "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_REGION"),
)
_RAY = _Group(prefixes=("RAY_",), addresses=("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"), keys=())


def client_environment(settings: Settings, credentials: Credentials) -> dict[str, str]:
    """What a process beside the cluster needs to reach every part. It holds secrets: never log it."""
    return {
        **_platform(settings, credentials),
        # Three variables, as Ray has them: for ray.init, for `ray job`, for `serve`.
        "RAY_ADDRESS": f"{HOST}:{settings.ports.gcs}",
        "RAY_API_SERVER_ADDRESS": f"http://{HOST}:{settings.ports.dashboard}",
        "RAY_DASHBOARD_ADDRESS": f"http://{HOST}:{settings.ports.dashboard}",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": ray_environment(settings)["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"],
        "OPENAI_BASE_URL": f"http://{HOST}:{settings.ports.serve_http}/v1",
        "OPENAI_API_KEY": credentials.openai_key,
    }


def cluster_environment(
    settings: Settings, credentials: Credentials, instance: str, environ: Mapping[str, str]
) -> dict[str, str]:
    """The whole environment with which Ray starts; every worker and job inherits it.

    :param instance: the mark by which `manta down` knows its processes.
    :param environ: the caller's own environment, on which this one stands.
    """
    foreign = {*_FOREIGN, "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS", "OPENAI_API_KEY"}
    kept = {name: value for name, value in environ.items() if name not in foreign}
    bin_dir = str(Path(sys.prefix) / "bin")
    return {
        **kept,
        **_platform(settings, credentials),
        **ray_environment(settings),
        # Gloo, by which torch's processes meet, would listen on the address of the machine's name.
        "GLOO_SOCKET_IFNAME": "lo",
        MARK: instance,
        # A job's `python` is found by PATH.
        "PATH": os.pathsep.join([bin_dir, environ.get("PATH", os.defpath)]),
        "VIRTUAL_ENV": sys.prefix,
    }


def shell_lines(settings: Settings, credentials: Credentials) -> str:
    """Lines for ``eval "$(manta env)"``."""
    exports = client_environment(settings, credentials)
    lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(exports.items())]
    return "\n".join([f"unset {' '.join(_FOREIGN)}", *lines])


def export_environment(environ: MutableMapping[str, str] = os.environ) -> None:
    """Let this process reach the local cluster as a shell after ``eval "$(manta env)"`` does.

    What the user has set wins, but an address and its keys are one: keys of a cloud account that happen to be
    in the environment do not go to the local storage, and the local token does not go to another cluster.
    Does nothing where no `manta up` has been.
    """
    if "RAY_JOB_ID" in environ or MARK in environ:  # Inside the cluster all of it is there.
        return
    settings = load_settings()
    if settings.profile != "local" or (credentials := Credentials.load(Home(settings.state_dir))) is None:
        return
    state = State.load(Home(settings.state_dir))
    if state is not None:
        for name, value in _port_variables(state.ports).items():
            environ.setdefault(name, value)
        load_settings.cache_clear()
        settings = load_settings()
    found = client_environment(settings, credentials)
    for group in (_STORAGE, _RAY):
        ours = {name: found.pop(name) for name in list(found) if name.startswith(group.prefixes)}
        named = {environ[name] for name in group.addresses if environ.get(name)}
        if named and named.isdisjoint(ours[name] for name in group.addresses):
            continue
        if not named:
            for name in group.keys:
                environ.pop(name, None)
        for name, value in ours.items():
            environ.setdefault(name, value)
    for name, value in found.items():
        environ.setdefault(name, value)
    _forget()


def adopt(settings: Settings, credentials: Credentials) -> None:
    """Make this process a client of the cluster, whatever its environment said before."""
    for name in _FOREIGN:
        os.environ.pop(name, None)
    os.environ.update(client_environment(settings, credentials))
    _forget()


def _forget() -> None:
    """What was read from the environment before is read anew."""
    load_settings.cache_clear()
    object_store.cache_clear()


def _platform(settings: Settings, credentials: Credentials) -> dict[str, str]:
    """What processes inside and beside the cluster both need."""
    home = Home(settings.state_dir)
    aws = {
        "AWS_ACCESS_KEY_ID": credentials.s3.access_key,
        "AWS_SECRET_ACCESS_KEY": credentials.s3.secret_key,
        "AWS_ENDPOINT_URL": f"http://{HOST}:{settings.ports.s3}",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    return {
        **aws,
        **storage_environment(aws),
        **_port_variables(settings.ports),
        "MANTA_HOME": str(home.root),
        "MLFLOW_TRACKING_URI": settings.tracking_uri,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home.ray_token),
        "NO_PROXY": _no_proxy(),
        "no_proxy": _no_proxy(),
    }


def _port_variables(ports: Ports) -> dict[str, str]:
    """Only what differs from the defaults."""
    usual = Ports()
    return {
        f"MANTA_PORTS__{name.upper()}": str(value)
        for name, value in ports.model_dump().items()
        if value != getattr(usual, name)
    }


def _no_proxy() -> str:
    """No proxy may stand between the parts."""
    named = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    hosts = [host.strip() for host in named.split(",") if host.strip()]
    return ",".join(dict.fromkeys([*hosts, HOST, "localhost"]))
