"""Pieces of text that came together go on together: judged once, encoded once, one event to the client."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_TEXTS = frozenset({"content", "reasoning", "reasoning_content"})


def joined(chunks: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The chunks, those of one choice that only go on with the same text made one.

    Nothing else is touched: heads, tool calls, log probabilities and several choices in one chunk stay as
    they are. The chunks given are changed.
    """
    found: list[dict[str, Any]] = []
    #: By choice, where it said something last, and in which field.
    last: dict[int, tuple[dict[str, Any], str]] = {}
    for chunk in chunks:
        choices = chunk.get("choices") or []
        field = _only_text(choices[0]) if len(choices) == 1 else None
        if field is None:
            last.clear()
            found.append(chunk)
            continue
        choice = choices[0]
        index = choice.get("index", 0)
        before, same = last.get(index, (None, None))
        if before is not None and same == field and before.get("finish_reason") is None:
            _texts(before)[field] += _texts(choice)[field]
            before["finish_reason"] = choice.get("finish_reason")
        else:
            last[index] = (choice, field)
            found.append(chunk)
    return found


def _texts(choice: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = choice.get("delta", choice)
    return found


def _only_text(choice: dict[str, Any]) -> str | None:
    """The one field of text that the choice goes on with, if it does nothing else."""
    if choice.get("logprobs"):
        return None
    if "delta" not in choice:
        return "text" if isinstance(choice.get("text"), str) else None
    said = {name: text for name, text in (choice["delta"] or {}).items() if text is not None}
    field = next(iter(said), None)
    return field if len(said) == 1 and field in _TEXTS and isinstance(said[field], str) else None
