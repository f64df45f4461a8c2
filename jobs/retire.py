"""Retire a registered version that nobody is sent to any more: the registry names it no longer, and no engine
can fetch it (a node that did has it on its disk).

    ray job submit --address http://127.0.0.1:8265 --runtime-env runtime_env.yaml --working-dir . -- \
        python -m jobs.retire --name prompt-shield --version 1 --why "superseded"

Its aliases go, with a line in the alias history; its adapter's files go from where engines load adapters. The
checkpoint stays: what was trained can still be explained. ``--version all`` retires every version of the
model, be there none: so ends what a fine-tuning job leaves. The artifact (kind ``retirement``) holds
``retirement.json``. Running it again finds it done.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

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

    version: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        description="Its number in the registry, or all: every version that there is, be there none."
    )
    why: str = Field(min_length=1, max_length=1000, description="For whoever asks for it later.")


def run(config: RetireConfig) -> JobResult:
    """Retire, or find it done.

    Raises NotFoundError for an unknown version, RefusedError for one that a published route leads to.
    """
    store, settings = object_store(), load_settings()
    store.check()
    registry = Registry(settings)
    models = _wanted(config, registry)
    inputs = [ArtifactInput(address=model.checkpoint, digest=model.digest) for model in models]
    with start_run("retire", "retirement", config, inputs=inputs, code_epoch=CODE_EPOCH) as job:
        if job.done:
            return job.result(job.done)
        _refuse_served([model.ref for model in models], store)
        told, files = list[dict[str, Any]](), 0
        for model in models:
            at = registry.aliases(model.ref.name)
            aliases = sorted(alias for alias, version in at.items() if version == model.ref.version)
            registry.retire(model.ref, by=settings.principal, why=config.why)
            gone = f"; its aliases went: {', '.join(aliases)}" if aliases else ""
            job.progress(f"{model.ref} is retired{gone}")
            erased = _erase(model, store)
            job.progress(f"{erased} files of its adapter went")
            files += erased
            told.append({"model": str(model.ref), "aliases": aliases, "adapter": model.adapter})
        summary = {"why": config.why, "retired": told}
        job.attempt.write("retirement.json", json.dumps(summary, indent=1).encode())
        return job.result(job.commit(counts={"files": files}, summary=summary))


def _wanted(config: RetireConfig, registry: Registry) -> list[RegisteredModel]:
    try:
        found = registry.versions(config.name)
    except NotFoundError:
        if config.version == "all":
            return []
        raise
    wanted = [model for model in found if config.version in ("all", model.ref.version)]
    if not wanted and config.version != "all":
        raise NotFoundError(f"Model {config.name!r} has no version {config.version}.")
    return wanted


def _refuse_served(refs: Sequence[ModelRef], store: ObjectStore) -> None:
    snapshot, gone = snapshots.newest(store=store), {str(ref) for ref in refs}
    for route in snapshot.routes if snapshot else ():
        for target in route.targets:
            if target.model_version in gone:
                raise RefusedError(
                    f"{target.model_version} is served as {route.model}: take that away first."
                )


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
