"""Retire a registered version that nobody is sent to any more: the registry names it no longer, and no engine
can fetch it (a node that did has it on its disk).

    ray job submit --address http://127.0.0.1:8265 --runtime-env runtime_env.yaml --working-dir . -- \
        python -m jobs.retire --name prompt-shield --version 1 --why "superseded"

Its aliases go, with a line in the alias history; its adapter's files go from where engines load adapters. The
checkpoint stays: what was trained can still be explained. The artifact (kind ``retirement``) holds
``retirement.json``. Running it again finds it done.
"""

from __future__ import annotations

import json
from typing import ClassVar

from pydantic import Field

from cluster import snapshots
from cluster.contracts import ArtifactInput, ModelRef
from cluster.errors import NotFoundError, RefusedError
from cluster.job import JobConfig, JobResult, command, start_run
from cluster.registry import RegisteredModel, Registry
from cluster.settings import load_settings
from cluster.storage import ObjectStore, object_store

CODE_EPOCH = 1
#: Engines look for it first: without it no load begins that finds half of the files.
_FIRST = "adapter_config.json"


class RetireConfig(JobConfig):
    """A registered version; ``name`` is the registered model's name."""

    runtime_fields: ClassVar[frozenset[str]] = frozenset({"why"})

    version: int = Field(ge=1, description="Its number in the registry.")
    why: str = Field(min_length=1, max_length=1000, description="For whoever asks for it later.")


def run(config: RetireConfig) -> JobResult:
    """Retire, or find it done.

    Raises NotFoundError for an unknown version, RefusedError for one that a published route leads to.
    """
    store, settings = object_store(), load_settings()
    store.check()
    registry, ref = Registry(settings), ModelRef(name=config.name, version=config.version)
    model = next((found for found in registry.versions(ref.name) if found.ref == ref), None)
    if model is None:
        raise NotFoundError(f"Model {config.name!r} has no version {config.version}.")
    inputs = [ArtifactInput(address=model.checkpoint, digest=model.digest)]
    with start_run("retire", "retirement", config, inputs=inputs, code_epoch=CODE_EPOCH) as job:
        if job.done:
            return job.result(job.done)
        _refuse_served(ref, store)
        aliases = sorted(alias for alias, at in registry.aliases(ref.name).items() if at == ref.version)
        registry.retire(ref, by=settings.principal, why=config.why)
        job.progress(f"{ref} is retired{'; its aliases went: ' + ', '.join(aliases) if aliases else ''}")
        files = _erase(model, store)
        job.progress(f"{files} files of its adapter went")
        told = {"model": str(ref), "why": config.why, "aliases": aliases, "adapter": model.adapter}
        job.attempt.write("retirement.json", json.dumps(told, indent=1).encode())
        return job.result(job.commit(counts={"files": files}, summary=told))


def _refuse_served(ref: ModelRef, store: ObjectStore) -> None:
    snapshot = snapshots.newest(store=store)
    for route in snapshot.routes if snapshot else ():
        if any(target.model_version == str(ref) for target in route.targets):
            raise RefusedError(f"{ref} is served as {route.model}: take that away first.")


def _erase(model: RegisteredModel, store: ObjectStore) -> int:
    """The adapter's files where engines look for them; how many there were."""
    if model.adapter is None:
        return 0
    keys = [item.key for item in store.list(model.adapter)]
    store.delete(key for key in keys if key.endswith(_FIRST))
    store.delete(key for key in keys if not key.endswith(_FIRST))
    return len(keys)


if __name__ == "__main__":
    raise SystemExit(command(RetireConfig, run))
