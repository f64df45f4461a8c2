"""Documents as YAML gives them: naming, finding and changing one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]


def name_of(document: Json) -> str:
    """How problems name a document."""
    metadata = document.get("metadata") or {}
    return f"{document.get('kind')}/{metadata.get('name') or metadata.get('generateName')}"


def of_kind(documents: Sequence[Json], kind: str, name: str | None = None) -> Json:
    """The first document of a kind, or the one of that name."""
    return next(d for d in documents if d["kind"] == kind and name in (None, d["metadata"].get("name")))


def put(path: str, value: Any, document: Json) -> None:
    """Set ``a.b.0.c`` in a document; None takes it away."""
    *way, last = path.split(".")
    place: Any = document
    for part in way:
        place = place[int(part) if isinstance(place, list) else part]
    key: Any = int(last) if isinstance(place, list) else last
    if value is None:
        del place[key]
    else:
        place[key] = value
