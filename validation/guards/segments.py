"""Every text of an OpenAI request or answer, and the way to write redacted ones back.

The walk is generous: any string that a chat template might render is a text to be judged, whatever key it
stands under; only identifiers and settings are left out. What cannot be judged (token ids, embeddings,
images, audio) is refused, never let through.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.contracts import Direction, Segment
from cluster.errors import UsageError

Keys = tuple[str | int, ...]

#: Strings that name or link things. Redacting them would break the request; they carry no prose.
_IDENTIFIERS = frozenset(
    {"id", "tool_call_id", "role", "type", "object", "finish_reason", "stop_reason", "$ref"}
)
_ROLES_BY_KEY = {
    "arguments": "tool_call",
    "reasoning_content": "reasoning",
    "reasoning": "reasoning",
    "refusal": "refusal",
}
#: Other keys of a request whose strings reach the model, and the role that they are judged as.
_REQUEST_KEYS = {
    "prompt": "user",
    "suffix": "user",
    "input": "user",
    "documents": "tool",
    "tools": "tool_definition",
    "functions": "tool_definition",
    "response_format": "tool_definition",
    "chat_template": "system",
    "chat_template_kwargs": "system",
}
_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal", "thinking", "reasoning"})


@dataclass(frozen=True, slots=True)
class Slot:
    """A text and the keys that lead to it in its body."""

    keys: Keys
    segment: Segment


def request_slots(body: Mapping[str, Any]) -> list[Slot]:
    """The texts of a chat, completion or embedding request.

    Raises UsageError for a part that guards cannot judge.
    """
    if body.get("prompt_embeds") is not None:
        raise UsageError("prompt_embeds cannot be judged by the guards; send text.")
    slots: list[Slot] = []
    messages = body.get("messages")
    if messages is not None and not isinstance(messages, list):
        raise UsageError("messages must be a list.")
    for index, message in enumerate(messages or ()):
        if not isinstance(message, Mapping):
            raise UsageError(f"messages[{index}] must be an object.")
        _refuse_media(message.get("content"), f"messages[{index}].content")
        role = str(message.get("role", "user"))
        slots.extend(_slots(message, ("messages", index), role, Direction.INPUT))
    for key, role in _REQUEST_KEYS.items():
        if key in ("prompt", "input"):
            _refuse_tokens(body.get(key), key)
        slots.extend(_slots(body.get(key), (key,), role, Direction.INPUT))
    return slots


def response_slots(body: Mapping[str, Any]) -> list[Slot]:
    """The texts of a complete chat or completion answer, of every choice."""
    slots: list[Slot] = []
    for index, choice in enumerate(body.get("choices") or ()):
        for key in ("message", "text"):
            slots.extend(_slots(choice.get(key), ("choices", index, key), "assistant", Direction.OUTPUT))
    return slots


def write_back(body: Mapping[str, Any], texts: Mapping[Keys, str]) -> dict[str, Any]:
    """A copy of ``body`` with the texts at those keys replaced; ``body`` itself stays as it is."""
    changed: dict[str, Any] = copy.deepcopy(dict(body))
    for keys, text in texts.items():
        place: Any = changed
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = text
    return changed


def path_of(keys: Iterable[str | int]) -> str:
    """``messages[0].content`` of ``("messages", 0, "content")``."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")


def _slots(value: Any, keys: Keys, role: str, direction: Direction) -> Iterator[Slot]:
    for place, text, judged_as in _strings(value, keys, role):
        yield Slot(place, Segment(text=text, direction=direction, role=judged_as, path=path_of(place)))


def _strings(value: Any, keys: Keys, role: str) -> Iterator[tuple[Keys, str, str]]:
    if isinstance(value, str):
        if value:
            yield keys, value, role
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key not in _IDENTIFIERS:
                yield from _strings(item, (*keys, key), _ROLES_BY_KEY.get(key, role))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, (*keys, index), role)


def _refuse_media(content: Any, path: str) -> None:
    for index, part in enumerate(content if isinstance(content, list) else ()):
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if kind not in _TEXT_PARTS:
            raise UsageError(
                f"{path}[{index}] is of type {kind!s:.40}, which the guards cannot judge; send text."
            )


def _refuse_tokens(value: Any, path: str) -> None:
    items = value if isinstance(value, list) else [value]
    if any(item is not None and not isinstance(item, str) for item in items):
        raise UsageError(f"{path} given as token ids cannot be judged by the guards; send text.")
