"""Numbered snapshots: how the control plane publishes to the gateways.

``control/snapshots/<number>.json`` is immutable, and a conditional put decides who writes a number. Gateways
take the newest and keep the last good one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime

from pydantic import ValidationError

from cluster.contracts import Snapshot
from cluster.errors import RefusedError, UnavailableError
from cluster.storage import ObjectStore, object_store

PREFIX = "control/snapshots/"
#: More publishers than this never meet; each lost race costs two small requests.
_TRIES = 100
_CONTENT = set(Snapshot.model_fields) - {"number", "created_at", "created_by", "schema_version"}


def newest(after: int = 0, store: ObjectStore | None = None) -> Snapshot | None:
    """The newest snapshot; None if none is newer than number ``after``.

    A poller passes the number that it has: the request then costs the same however many there were.
    Raises RefusedError when the newest cannot be understood (a newer Manta wrote it): keep the one you have.
    """
    store = store or object_store()
    keys = [item.key for item in store.list(PREFIX, after=_key(after))]
    if not keys:
        return None
    try:
        return Snapshot.model_validate_json(store.get(keys[-1]))
    except ValidationError:
        raise RefusedError(
            f"{store.uri(keys[-1])} is no snapshot of schema 1: it is damaged, or a newer Manta wrote it."
        ) from None


def publish(
    change: Callable[[Snapshot], Snapshot],
    by: str,
    store: ObjectStore | None = None,
    *,
    always: bool = False,
) -> Snapshot:
    """Publish what ``change`` makes of the newest snapshot.

    Of publishers that race one wins each number and the others apply their change to its result, so nothing
    is lost; ``change`` may run several times and must depend on nothing older than what it gets. Number, time
    and publisher are set here. A change that changes nothing publishes nothing.

    :param change: from the newest snapshot (an empty one at first) to the next.
    :param by: who publishes.
    :param always: publish even if nothing changes: whoever read what was the newest until now must then look
        again, and what he knew when he read it counts no more.
    :return: the snapshot that is now published with this change in it.

    Raises UnavailableError if others win again and again.
    """
    store = store or object_store()
    current: Snapshot | None = None
    for _ in range(_TRIES):
        current = newest(current.number if current else 0, store) or current
        base = current or Snapshot(number=1, created_at=datetime.now(UTC), created_by=by)
        wanted = change(base)
        same = current is not None and wanted.model_dump(include=_CONTENT) == current.model_dump(
            include=_CONTENT
        )
        if current is not None and same and not always:
            return current
        number = current.number + 1 if current else 1
        # Validated anew: model_copy, which changes are made with, checks nothing.
        made = Snapshot.model_validate(
            wanted.model_dump() | {"number": number, "created_at": datetime.now(UTC), "created_by": by}
        )
        if store.put_if_absent(_key(number), made.model_dump_json(indent=1).encode()):
            return made
        time.sleep(random.uniform(0, 0.05))  # noqa: S311  (spreads publishers, protects nothing)
    raise UnavailableError(f"Other publishers won {_TRIES} times in {store.uri(PREFIX)}: try again.")


def _key(number: int) -> str:
    return f"{PREFIX}{number:012d}.json"
