"""The columns of a dataset version: recorded by who writes it, checked by who reads it.

A schema is JSON: column to type, a type being Arrow's name of it, ``[type]`` a list, ``{field: type}`` a
struct. The manifest's summary holds it under ``schema``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cluster.errors import RefusedError

if TYPE_CHECKING:
    import pyarrow as pa

#: ``["..."]`` or ``{"...": ...}`` or a name.
Type = Any
Columns = dict[str, Type]

MESSAGES: Type = [{"role": "string", "content": "string"}]
#: What training, evaluation and batches read of a split.
CONVERSATIONS: Columns = {"row_id": "string", "messages": MESSAGES}
#: What training by preferences reads; TRL's own names.
PREFERENCES: Columns = {"row_id": "string", "prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES}
SUMMARY_KEY = "schema"


def describe_schema(schema: pa.Schema) -> Columns:
    """The columns of an Arrow schema. How Arrow stores a text or a list (offsets, views) is left out."""
    return {field.name: _type(field.type) for field in schema}


def refuse_schema(found: Mapping[str, Type], needed: Mapping[str, Type], where: str, reader: str) -> None:
    """Raise RefusedError, one sentence, if ``found`` lacks a needed column or has it with another type.

    More columns, and more fields in a struct, are no fault.

    :param where: what was read, to begin the sentence with.
    :param reader: who needs the columns.
    """
    missing = [name for name in needed if name not in found]
    if missing:
        have = ", ".join(found) or "none"
        raise RefusedError(
            f"{where} has no column {', '.join(missing)} (its columns: {have}), which {reader} needs: name"
            " another dataset, or make it with jobs.preprocess."
        )
    for name, kind in needed.items():
        if not _fits(found[name], kind):
            raise RefusedError(
                f"{where}: column {name} is {shown_type(found[name])}, but {reader} needs {shown_type(kind)}:"
                " name another dataset, or make it with jobs.preprocess."
            )


def shown_type(kind: Type) -> str:
    """A type in one short line."""
    return kind if isinstance(kind, str) else json.dumps(kind).replace('"', "")


def _fits(found: Type, needed: Type) -> bool:
    if isinstance(needed, list):
        return isinstance(found, list) and _fits(found[0], needed[0])
    if isinstance(needed, dict):
        return isinstance(found, dict) and all(k in found and _fits(found[k], v) for k, v in needed.items())
    return bool(found == needed)


def _type(kind: pa.DataType) -> Type:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _type(kind.value_type)
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view)
    if any(is_list(kind) for is_list in (*lists, pa.types.is_large_list_view)):
        return [_type(kind.value_type)]
    if pa.types.is_struct(kind):
        return {field.name: _type(field.type) for field in kind}
    return str(kind).removeprefix("large_").removesuffix("_view")
