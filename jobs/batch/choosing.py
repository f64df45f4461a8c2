"""Which engine a batch gets when none is named: a deployed model's for small ones, one of its own for large.

Small is what a deployed model answers before an engine of its own would have started. A batch that was begun
goes on with the engine that it began with, so that what is answered need not be asked again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cluster.contracts import RunRecord, RunState
from cluster.errors import MantaError, NotFoundError, RefusedError, UnavailableError
from cluster.runs import RunRepository
from cluster.settings import Settings
from cluster.storage import ArtifactStore, ObjectStore
from cluster.storage.attempt import ROWS
from jobs.batch.dedicated import check_schedulable
from jobs.batch.estimate import Sample
from jobs.batch.journal import PLAN
from jobs.batch.pinning import Pin, deployed, pin_behind, pin_dedicated, pin_warm
from jobs.batch.sampling import prepared, unsupported
from jobs.batch.showing import KIND, VERB
from jobs.batch.source import Source
from jobs.batch.warm import check_running

if TYPE_CHECKING:
    from jobs.batch_inference import BatchInferenceConfig

Engine = Literal["warm", "dedicated"]
#: What each way of pinning takes: model, policy, settings, storage.
_Pinned = tuple[str, str | None, Settings, ObjectStore]
_UNFINISHED = (RunState.RUNNING, RunState.LOST, RunState.FAILED)


@dataclass(frozen=True)
class Choice:
    """The engine, what it is pinned to, and why it is this one, in words."""

    engine: Engine
    pin: Pin
    reason: str


@dataclass(frozen=True)
class Size:
    """A batch before it is asked. ``tokens`` to read, and at most to generate, from the rows' characters."""

    rows: int
    tokens: int
    #: What rows ask for that an engine of the batch's own does not have; empty if nothing.
    beyond: str


def choose(config: BatchInferenceConfig, source: Source, settings: Settings, store: ObjectStore) -> Choice:
    """The engine that was named, or that answered or began this batch before, or that fits its size.

    Raises NotFoundError if no engine can have the model, and what pinning and the source raise.
    """
    pinned = (config.model, config.policy, settings, store)
    if config.engine == "warm":
        return Choice("warm", pin_warm(*pinned), "it is named in the configuration")
    if config.engine == "dedicated":
        return Choice("dedicated", pin_dedicated(*pinned), "it is named in the configuration")
    names = deployed(settings.team)
    warm = pin_warm(*pinned) if config.model in names else None
    if warm is not None and _is_answered(config, source, warm, settings, store):
        return Choice("warm", warm, "it has answered this batch before")
    if (begun := _as_begun(config, source, settings, store)) is not None:
        return begun
    if warm is None:
        return Choice(
            "dedicated", _pin_source(config, names, settings, store), "no model of that name is deployed"
        )
    assert warm.target is not None
    try:
        check_running(warm.target)
    except UnavailableError:
        return _behind(pinned, warm, f"{config.model} does not run on this cluster")
    return _by_size(config, pinned, measure(config, source), warm)


def _is_answered(
    config: BatchInferenceConfig, source: Source, warm: Pin, settings: Settings, store: ObjectStore
) -> bool:
    """Whether the deployed model's answers are all there: then it need not even run."""
    ref = config.answers_at("warm", [*source.inputs, *warm.inputs], settings.team)
    try:
        return ArtifactStore(store).find(ref) is not None
    except RefusedError:  # Erased: the run says so, if it is to make the same again.
        return False


def _behind(pinned: _Pinned, warm: Pin, reason: str) -> Choice:
    """The same weights in an engine of its own. To find them costs seconds that no small batch shall wait."""
    try:
        return Choice("dedicated", pin_behind(*pinned), reason)
    except MantaError:
        return Choice("warm", warm, "the deployed model's weights are not at hand for an engine of its own")


def _by_size(config: BatchInferenceConfig, pinned: _Pinned, size: Size, warm: Pin) -> Choice:
    if size.beyond:
        return Choice("warm", warm, f"rows ask for {size.beyond}, which only a deployed model has")
    what = f"{size.rows} rows, at most about {size.tokens:,} tokens"
    limit = f"dedicated_from_tokens={config.dedicated_from_tokens:,}"
    if size.tokens < config.dedicated_from_tokens:
        return Choice("warm", warm, f"{what}, below {limit}")
    choice = _behind(pinned, warm, f"{what}, not below {limit}")
    if choice.engine == "warm":
        return choice
    try:
        check_schedulable(config.dedicated)
    except RefusedError as error:
        return Choice("warm", warm, f"{what}, but {str(error)[0].lower()}{str(error)[1:].rstrip('.')}")
    return choice


def measure(config: BatchInferenceConfig, source: Source) -> Size:
    """Read the whole source once. Raises UsageError for a row that cannot be asked."""
    sample, beyond, endpoints = Sample(), set[str](), set[str]()
    for request in source.requests():
        request = prepared(request, config.request, config.sampling)
        endpoints.add(request.endpoint)
        beyond.update(unsupported(request.body))
        sample.add(request)
    if len(endpoints) > 1:
        beyond.add("chats and completions in one batch")
    # Without the model's tokenizer: the same input must come to the same size another day.
    estimate = sample.estimate(None, None)
    return Size(sample.rows, estimate.prompt_tokens + estimate.completion_tokens, ", ".join(sorted(beyond)))


def _pin_source(
    config: BatchInferenceConfig, names: list[str], settings: Settings, store: ObjectStore
) -> Pin:
    """The weights of a registered version or of a model source; a bare word is only the demo or a folder."""
    known = f"No model {config.model!r} is deployed (deployed: {', '.join(names) or 'none'})"
    named = (
        any(mark in config.model for mark in "/@") or config.model == "demo" or Path(config.model).is_dir()
    )
    if not named:
        raise NotFoundError(
            f"{known}, and it is no registered version (name@3, models:/name@champion) and no model source"
            " (organisation/name, s3://, a folder, demo): deploy it with `manta deploy`, or name one."
        )
    try:
        return pin_dedicated(config.model, config.policy, settings, store)
    except MantaError as error:
        raise type(error)(f"{known}, and an engine of its own cannot have it: {error}") from None


def _as_begun(
    config: BatchInferenceConfig, source: Source, settings: Settings, store: ObjectStore
) -> Choice | None:
    """The engine of the newest run that began this very batch and has not ended it; None if there is none."""
    for run, plan in _unfinished(config.name, settings, store):
        if plan.get("batch") != config.batch_digest(source):
            continue
        engine: Engine = plan["engine"]
        reason = f"run {run.id} began this batch with it"
        try:
            pin = _pin_again(engine, config, settings, store)
        except MantaError as error:
            raise type(error)(
                f"Run {run.id} began this batch with the {engine} engine, which it cannot go on with: {error}"
                " To begin it anew, name the other engine."
            ) from None
        if pin.model.digest == plan["model_digest"]:  # Else the name means other weights by now.
            return Choice(engine, pin, reason)
    return None


def _pin_again(engine: Engine, config: BatchInferenceConfig, settings: Settings, store: ObjectStore) -> Pin:
    if engine == "warm":
        return pin_warm(config.model, config.policy, settings, store)
    pin = pin_behind if config.model in deployed(settings.team) else pin_dedicated
    return pin(config.model, config.policy, settings, store)


def _unfinished(
    name: str, settings: Settings, store: ObjectStore
) -> Iterator[tuple[RunRecord, dict[str, Any]]]:
    """Runs at batches of a name that began and committed nothing, newest first, with their plans."""
    repository, below = RunRepository(settings.database_url), f"{settings.team}/{KIND}/{name}/"
    runs = [run for state in _UNFINISHED for run in repository.list(VERB, state, limit=None)]
    for run in sorted(runs, key=lambda run: run.started_at, reverse=True):
        if run.artifact is None or not run.artifact.startswith(below):
            continue
        try:
            yield run, json.loads(store.get(f"{run.artifact}/attempts/{run.id}{ROWS}/{PLAN}"))
        except NotFoundError:
            continue
