"""How a cluster is that others started: every part as this machine's environment names it."""

from __future__ import annotations

import os

from cluster.errors import MantaError
from cluster.local.status import (
    Part,
    Status,
    gateway,
    reconcile_runs,
    running_jobs,
    served_applications,
)
from cluster.ray_api import RayApi
from cluster.settings import Settings
from cluster.storage import object_store
from cluster.storage.environment import endpoint


def status(settings: Settings) -> Status:
    """Ask every part. Never raises for a part that is down, or that the environment does not name."""
    ray, api = _ray(settings)
    applications = served_applications(api) if api else []
    door = os.environ.get("OPENAI_BASE_URL", "").rstrip("/").removesuffix("/v1")
    parts = [_storage(settings), ray, _registry(settings)]
    if all(part.health == "healthy" for part in parts if part.name in ("storage", "registry")):
        reconcile_runs(settings)
    if door:
        parts.append(gateway(door, deployed=bool(applications)))
    else:
        message = "OPENAI_BASE_URL does not say where it is."
        parts.append(Part(name="gateway", health="absent", address="", message=message))
    return Status(
        home=str(settings.state_dir),
        up=all(part.health != "down" for part in parts),
        parts=parts,
        jobs=running_jobs(api) if api else [],
        applications=applications,
    )


def _storage(settings: Settings) -> Part:
    address = "AWS_ENDPOINT_URL"
    try:
        address = f"{endpoint()} {settings.storage.bucket}"
        object_store().check()
    except MantaError as error:
        return Part(name="storage", health="down", address=address, message=str(error))
    return Part(name="storage", health="healthy", address=address)


def _ray(settings: Settings) -> tuple[Part, RayApi | None]:
    """Ray, and a way to ask it more if it is well."""
    address = "RAY_API_SERVER_ADDRESS"
    try:
        api = RayApi.from_environment(settings.ports.dashboard)
        address = api.address
        api.version()
        nodes = len(api.nodes())
    except MantaError as error:
        return Part(name="ray", health="down", address=address, message=str(error)), None
    if not nodes:
        return Part(name="ray", health="down", address=address, message="It has no node that is alive."), None
    return Part(name="ray", health="healthy", address=address, message=f"{nodes} nodes"), api


def _registry(settings: Settings) -> Part:
    from cluster.local import databases

    try:
        databases.check(settings)
    except MantaError as error:
        return Part(name="registry", health="down", address="MANTA_DATABASE__URL", message=str(error))
    return Part(name="registry", health="healthy", address="MANTA_DATABASE__URL")
