"""Routes of tuned models: on the application of their base, for their team alone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from cluster import snapshots
from cluster.contracts import ModelRef, Route, Snapshot, Target, engine_model_id
from cluster.contracts.tuning import TuningRecord
from cluster.errors import RefusedError
from cluster.storage import ObjectStore

_BY = "fine-tuning"


class BaseGoneError(RefusedError):
    """What a model was tuned from is not served any more."""


def publish(
    record: TuningRecord, model: ModelRef, digest: str, store: ObjectStore, held: Callable[[], None]
) -> None:
    """Let gateways know the tuned model; nothing restarts. Raises BaseGoneError.

    :param held: raises if the job is not the caller's any more. It is asked after the newest snapshot was
        read, and only that one's successor is written: whoever takes the job over and withdraws the model
        publishes that successor first, so that what a stale caller may still be about to write is refused.
    """

    def change(snapshot: Snapshot) -> Snapshot:
        held()
        others = [route for route in snapshot.routes if route.model != record.tuned_name]
        base = next((route for route in others if route.model == record.model), None)
        if base is None or base.targets[0].application != record.application:
            raise BaseGoneError(f"Model {record.model} is no longer served by {record.application}.")
        before = [route for route in snapshot.routes if route.model == record.tuned_name]
        made_at = before[0].created_at if before else datetime.now(UTC)
        return snapshot.model_copy(
            update={"routes": [*others, tuned_route(record, base, model, digest, made_at)]}
        )

    snapshots.publish(change, _BY, store)


def withdraw(record: TuningRecord, store: ObjectStore, *, fence: bool = True) -> None:
    """Take the tuned model's route away, if there is one.

    :param fence: keep off those, too, who are just about to publish it.
    """

    def change(snapshot: Snapshot) -> Snapshot:
        kept = [route for route in snapshot.routes if route.model != record.tuned_name]
        return snapshot.model_copy(update={"routes": kept})

    if snapshots.newest(store=store) is not None:
        snapshots.publish(change, _BY, store, always=fence)


def tuned_route(
    record: TuningRecord, base: Route, model: ModelRef, digest: str | None, made_at: datetime
) -> Route:
    """The base's route, with the adapter on it, its policy and its price."""
    target: Target = base.targets[0].model_copy(
        update={
            "model": engine_model_id(base.targets[0].model, model),
            "model_version": str(model),
            "digest": digest,
            "weight": 100,
        }
    )
    return Route(
        model=record.tuned_name,
        targets=[target],
        policy=base.policy,
        created_at=made_at,
        owned_by=record.team,
        price=base.price,
        team=record.team,
        base=record.model,
    )
