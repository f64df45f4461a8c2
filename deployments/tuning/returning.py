"""Tuned models whose base is deployed anew: which of them it can serve."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from cluster.contracts import ModelRef, Route, adapter_id
from cluster.contracts.tuning import TuningRecord
from cluster.errors import NotFoundError, RefusedError
from cluster.settings import load_settings
from cluster.storage import ObjectStore, object_store
from deployments.tuning.trainings import Base, base_of


def returning(
    routes: Iterable[Route], applications: Collection[Mapping[str, Any]], known: dict[str, bool]
) -> tuple[list[TuningRecord], set[str]]:
    """What was tuned from models at ``routes`` and is not deleted: what ``applications`` can serve of it, and
    the names of what they cannot.

    :param applications: their configurations, as Serve gets them.
    :param known: whether a job's adapter fits, by the job's id; what is not in there yet is put in.

    SQL says what was tuned, storage whether its adapter is still there. Raises UnavailableError or
    AccessError if one of them does not answer.
    """
    from cluster.tuning import TuningRepository

    if not applications:
        return [], set()
    settings, store = load_settings(), object_store()
    configurations = {application["name"]: application for application in applications}
    bases = dict[str, Base | None]()
    for route in routes:
        (target, *others) = route.targets
        application = configurations.get(target.application or "")
        if application is None or others or target.model_version is not None:
            continue
        try:
            bases[route.model] = base_of(application["name"], application, store, settings.team)
        except RefusedError:  # It takes no adapters.
            bases[route.model] = None
    if not bases:
        return [], set()
    fits, unfit = list[TuningRecord](), set[str]()
    for record in TuningRepository(settings.database_url).tuned_from(bases):
        if record.id not in known:
            known[record.id] = _fits(record, bases[record.model], store)
        if known[record.id]:
            fits.append(record)
        else:
            unfit.add(record.tuned_name)
    return fits, unfit


def _fits(record: TuningRecord, base: Base | None, store: ObjectStore) -> bool:
    """Whether an application that serves ``base`` can load its adapter."""
    if base is None or record.base != base.address or record.model_version is None:
        return False
    name = adapter_id(ModelRef.parse(record.model_version))
    try:
        adapter = json.loads(store.get(f"{base.adapters}{name}/adapter_config.json"))
    except NotFoundError:
        return False
    return int(adapter["r"]) <= base.max_rank
