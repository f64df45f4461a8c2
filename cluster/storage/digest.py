"""Digests of data: equal rows give an equal digest, in whatever order and files they lie."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import date, time
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel

from cluster.errors import UsageError


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys, no spaces and UTF-8, so that equal values are equal bytes.

    NumPy scalars and arrays count as the Python values that they hold, pydantic models, dates, paths, enums,
    decimals, sets and bytes as their plain form. Raises TypeError for anything else.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)
    # A lone surrogate, which JSON allows and UTF-8 does not, must neither fail nor collide.
    return text.encode("utf-8", "surrogatepass")


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return {"$bytes": bytes(value).hex()}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, PurePath | Decimal):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=canonical_json)
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):  # NumPy, without importing it.
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no canonical JSON")


def row_digest(row: Mapping[str, Any], id_column: str = "row_id") -> tuple[str, bytes]:
    """The row's id and SHA-256 of the whole row (32 bytes); workers can make these block by block.

    Raises UsageError when the row has no id.
    """
    row_id = row.get(id_column)
    if row_id is None:
        raise UsageError(
            f"A row has no {id_column!r}: every row needs an id (columns: {', '.join(sorted(row))})."
        )
    return str(row_id), hashlib.sha256(canonical_json(dict(row))).digest()


def merge_row_digests(digests: Iterable[tuple[str, bytes]]) -> str:
    """SHA-256 (hex) over the rows' digests in row-id order; takes what :func:`row_digest` gives."""
    total = hashlib.sha256()
    for _, digest in sorted(digests):
        total.update(digest)
    return total.hexdigest()


def rows_digest(rows: Iterable[Mapping[str, Any]], id_column: str = "row_id") -> str:
    """SHA-256 (hex) over canonical rows in row-id order.

    It holds one id and 32 bytes a row in memory, not the rows. Raises UsageError when a row has no id.
    """
    return merge_row_digests(row_digest(row, id_column) for row in rows)
