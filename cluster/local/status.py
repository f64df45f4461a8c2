"""What runs, and how it is: on this machine, or on the cluster that RAY_API_SERVER_ADDRESS names."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import MantaError
from cluster.installed import missing_platform
from cluster.local import databases, ray_head, s3server
from cluster.local.credentials import Credentials
from cluster.local.home import Home, State
from cluster.local.ports import HOST, is_free
from cluster.local.process import find
from cluster.ray_api import RayApi, named_address
from cluster.settings import Settings

Health = Literal["healthy", "down", "absent"]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Part(_Row):
    """One part of the platform."""

    name: str = Field(description="storage, ray, registry or gateway.")
    health: Health = Field(description="absent: not deployed, which is no fault.")
    address: str = Field(description="Where it is reached.")
    pid: int | None = Field(None, description="Its process, if it is one.")
    message: str | None = Field(None, description="Why it is down, or what there is of it.")


class Job(_Row):
    """One submitted job that has not ended."""

    id: str = Field(description="Submission id.")
    status: str = Field(description="Ray's status.")
    entrypoint: str = Field(description="Its command.")


class Application(_Row):
    """One Serve application."""

    name: str = Field(description="Its name.")
    status: str = Field(description="Serve's status.")
    message: str = Field(description="Serve's message.")


class Status(_Row):
    """The whole picture."""

    home: str | None = Field(description="MANTA_HOME; null where only the cluster's address is known.")
    up: bool = Field(description="True if no part is down.")
    parts: list[Part] = Field(description="Every part.")
    jobs: list[Job] = Field(description="Jobs that run or wait.")
    applications: list[Application] = Field(description="Serve's applications.")


def status(settings: Settings) -> Status:
    """Ask every part; takes a second when all is well. Never raises for a part that is down.

    Of a cluster elsewhere its address is all that is known: Ray is its one part, and answers for jobs and
    applications. Raises AccessError when the token's file cannot be read.
    """
    home = Home(settings.state_dir)
    state, credentials = State.load(home), Credentials.load(home)
    ours, named = f"http://{HOST}:{settings.ports.dashboard}", named_address()
    if (named and (named != ours or credentials is None)) or missing_platform():
        return _elsewhere(RayApi.from_environment(settings.ports.dashboard))
    api = RayApi(ours, credentials.ray_token if credentials else None)
    ray = _ray(api, state)
    well = ray.health == "healthy"
    # Where no Serve is, to ask for its applications would cost the dashboard seconds of imports.
    serve = well and not is_free(settings.ports.serve_http)
    jobs, applications = running_jobs(api) if well else [], served_applications(api) if serve else []
    parts = [
        _storage(settings, state),
        ray,
        _registry(settings, home),
        gateway(f"http://{HOST}:{settings.ports.serve_http}", serve),
    ]
    if all(part.health == "healthy" for part in parts if part.name in ("storage", "registry")):
        reconcile_runs(settings)
    return Status(
        home=str(home.root),
        up=all(part.health != "down" for part in parts),
        parts=parts,
        jobs=jobs,
        applications=applications,
    )


def _elsewhere(api: RayApi) -> Status:
    """What a cluster's address tells about it."""
    try:
        version, nodes = api.version(), api.nodes()
    except MantaError as error:
        ray = Part(name="ray", health="down", address=api.address, message=str(error))
        return Status(home=None, up=False, parts=[ray], jobs=[], applications=[])
    sums = {kind: sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU")}
    words = [f"Ray {version}", f"{len(nodes)} {'node' if len(nodes) == 1 else 'nodes'}"]
    words += [f"{count:g} logical {kind}s" for kind, count in sums.items() if count]
    health: Health = "healthy" if nodes else "down"
    ray = Part(name="ray", health=health, address=api.address, message=", ".join(words))
    return Status(
        home=None, up=bool(nodes), parts=[ray], jobs=running_jobs(api), applications=served_applications(api)
    )


def _storage(settings: Settings, state: State | None) -> Part:
    port = settings.ports.s3
    process = find(state.s3) if state else None
    well = process is not None and s3server.healthy(port)
    return Part(
        name="storage",
        health="healthy" if well else "down",
        address=f"http://{HOST}:{port}",
        pid=process.pid if process else None,
        message=None if well else "The S3 server does not run: start it with `manta up`.",
    )


def _ray(api: RayApi, state: State | None) -> Part:
    daemons = state.ray if state else []
    alive = [process for ref in daemons if (process := find(ref))]
    pid = next((process.pid for process in alive if process.name() == "raylet"), None)
    if len(alive) < len(daemons):
        message = "A process of Ray has ended: mend it with `manta up`."
        return Part(name="ray", health="down", address=api.address, pid=pid, message=message)
    try:
        ray_head.check(api)
    except MantaError as error:
        return Part(name="ray", health="down", address=api.address, pid=pid, message=str(error))
    return Part(name="ray", health="healthy", address=api.address, pid=pid)


def _registry(settings: Settings, home: Home) -> Part:
    address = str(home.registry) if settings.database.url is None else "MANTA_DATABASE__URL"
    if settings.database.url is None and not home.registry.is_dir():
        message = "There is no database yet: make it with `manta up`."
        return Part(name="registry", health="down", address=address, message=message)
    try:
        databases.check(settings)
    except MantaError as error:
        return Part(name="registry", health="down", address=address, message=str(error))
    return Part(name="registry", health="healthy", address=address)


def reconcile_runs(settings: Settings) -> None:
    """Whoever asks gets records that are right: `manta runs` then shows what was lost."""
    from cluster.reconcile import reconcile
    from cluster.runs import RunRepository
    from cluster.storage import ArtifactStore, object_store

    with suppress(MantaError):
        reconcile(RunRepository(settings.database_url), ArtifactStore(object_store()))


def gateway(address: str, deployed: bool) -> Part:
    """The door, which answers at ``address`` if it is ``deployed``."""
    if not deployed:
        return Part(
            name="gateway", health="absent", address=address, message="Deploy it with `manta deploy`."
        )
    try:
        answer = httpx.get(f"{address}/healthz", timeout=5, trust_env=False)
    except httpx.HTTPError:
        message = "Serve runs and the gateway does not answer."
    else:
        if answer.status_code == 200:
            return Part(name="gateway", health="healthy", address=address)
        message = f"The gateway answers /healthz with status {answer.status_code}."
    return Part(name="gateway", health="down", address=address, message=message)


def running_jobs(api: RayApi) -> list[Job]:
    """Jobs that run or wait; none if Ray does not answer."""
    try:
        return [_job(job) for job in api.jobs() if job["status"] in ("PENDING", "RUNNING")]
    except MantaError:  # It went down between two questions; the next call will say so.
        return []


def served_applications(api: RayApi) -> list[Application]:
    """Serve's applications; none if Ray does not answer."""
    try:
        found = sorted(api.applications().items())
    except MantaError:
        return []
    return [
        Application(name=name, status=str(item["status"]), message=str(item.get("message") or ""))
        for name, item in found
    ]


def _job(job: dict[str, Any]) -> Job:
    return Job(id=str(job["submission_id"]), status=str(job["status"]), entrypoint=str(job["entrypoint"]))
