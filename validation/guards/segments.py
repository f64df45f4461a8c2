"""Every text of an OpenAI request or answer, and the way to write redacted ones back.

The walk is generous: any string that a chat template might render is a text to be judged, whatever key it
stands under, and under tools and schemas every key too. Only words of the protocol are left out, at the exact
places where they belong. Templates join what is sent in parts, so parts are judged joined as well.
What cannot be judged (token ids, embeddings, images, audio) is refused, never let through.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, Literal

from cluster.contracts import Direction, Segment
from cluster.errors import UsageError

Keys = tuple[str | int, ...]

#: Kinds of a content's parts that guards can judge.
TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal", "thinking", "reasoning"})
#: Places of a message whose strings link things (None: any index): redacting them would break the request, so
#: one that must be redacted gets another name.
_ID_PLACES: frozenset[tuple[str | None, ...]] = frozenset({("tool_call_id",), ("tool_calls", None, "id")})
#: Places of a message with words of the protocol, and those words.
_WORDS_BY_PLACE: Mapping[tuple[str | None, ...], frozenset[str]] = {
    ("role",): frozenset({"system", "developer", "user", "assistant", "tool", "function"}),
    ("tool_calls", None, "type"): frozenset({"function"}),
    ("content", None, "type"): TEXT_PARTS,
}
_IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: Keys of ``logit_bias``; too short for any guard to find something in.
_TOKEN_ID = re.compile(r"[0-9]{1,7}")
#: Words of JSON schema and of tool definitions: keys and types that are these very words say nothing.
_SCHEMA_WORDS = frozenset(
    {
        *("type", "function", "name", "description", "parameters", "properties", "required", "items", "enum"),
        *("additionalProperties", "strict", "json_schema", "json_object", "schema", "text", "default"),
        *("string", "object", "number", "integer", "boolean", "array", "null", "anyOf", "title", "format"),
        *("auto", "none", "required", "minimum", "maximum", "minLength", "maxLength", "pattern", "$ref"),
    }
)
_ROLES_BY_KEY = {
    "tool_calls": "tool_call",
    "arguments": "tool_call",
    "reasoning_content": "reasoning",
    "reasoning": "reasoning",
    "refusal": "refusal",
}
#: Keys of a request whose strings never reach the model: which one is asked, and for whom.
_NOT_THE_MODELS = frozenset({"model", "user"})
#: The role that the strings under other keys of a request are judged as, if not ``user``.
_ROLES_BY_REQUEST_KEY = {
    "documents": "tool",
    "tools": "tool_definition",
    "functions": "tool_definition",
    "response_format": "tool_definition",
    "structured_outputs": "tool_definition",
    "tool_choice": "tool_definition",
    "reasoning_effort": "system",
    "chat_template": "system",
    "chat_template_kwargs": "system",
}


@dataclass(frozen=True, slots=True)
class Slot:
    """A text and the keys that lead to it in its body.

    An ``id`` links one part of a conversation to another. A ``key`` is itself a mapping's key, which cannot
    be redacted in place. A ``seam`` is several texts joined, with the keys of each and where in the seam it
    begins: only what reaches over a joint counts there, as the texts have slots of their own.
    """

    keys: Keys
    segment: Segment
    kind: Literal["text", "id", "key", "seam"] = "text"
    parts: tuple[tuple[int, Keys], ...] = ()


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
    slots.extend(_seams(messages or ()))
    for key, value in body.items():
        if key == "messages" or key in _NOT_THE_MODELS:
            continue
        if key in ("prompt", "input"):
            _refuse_tokens(value, key)
        role = _ROLES_BY_REQUEST_KEY.get(key, "user")
        slots.extend(_slots(value, (key,), role, Direction.INPUT))
        for place, name in _names(value, (key,)):
            segment = Segment(text=name, direction=Direction.INPUT, role=role, path=f"{path_of(place)}.<key>")
            slots.append(Slot(place, segment, kind="key"))
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
    """``messages[0].content`` of ``("messages", 0, "content")``.

    Paths stand in logs, so a key that is no plain name is not spelled out.
    """
    return "".join(f"[{key}]" if isinstance(key, int) else f".{_plain(key)}" for key in keys).lstrip(".")


def _plain(key: str) -> str:
    return key if _IDENTIFIER.fullmatch(key) else "<key>"


def _slots(value: Any, keys: Keys, role: str, direction: Direction) -> Iterator[Slot]:
    for place, text, judged_as in _strings(value, keys, role):
        segment = Segment(text=text, direction=direction, role=judged_as, path=path_of(place))
        yield Slot(place, segment, "id" if _within_message(place) in _ID_PLACES else "text")


def _strings(value: Any, keys: Keys, role: str) -> Iterator[tuple[Keys, str, str]]:
    if isinstance(value, str):
        if value and not _is_word(keys, value):
            yield keys, value, role
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(item, (*keys, key), _ROLES_BY_KEY.get(key, role))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, (*keys, index), role)


def _is_word(keys: Keys, value: str) -> bool:
    """Whether it is a word of the protocol, which says nothing."""
    place = _within_message(keys)
    if place is None:
        return keys[-1] == "type" and value in _SCHEMA_WORDS
    return value in _WORDS_BY_PLACE.get(place, ())


def _within_message(keys: Keys) -> tuple[str | None, ...] | None:
    """Where in a message; None for what stands in none."""
    if keys[0] not in ("messages", "choices"):
        return None
    within = keys[2 if keys[0] == "messages" else 3 :]  # ("choices", 0, "message", ...)
    return tuple(None if isinstance(key, int) else key for key in within)


def _names(value: Any, keys: Keys) -> Iterator[tuple[Keys, str]]:
    """The keys of every mapping in ``value``, each with the place of its mapping."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key and key not in _SCHEMA_WORDS and not _TOKEN_ID.fullmatch(key):
                yield keys, key
            yield from _names(item, (*keys, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _names(item, (*keys, index))


def _seams(messages: Iterable[Mapping[str, Any]]) -> Iterator[Slot]:
    """The text parts of consecutive messages of one role, joined."""
    for role, run in groupby(enumerate(messages), key=lambda item: str(item[1].get("role", "user"))):
        placed = [part for index, message in run for part in _parts(message.get("content"), index)]
        if len(placed) > 1:
            texts = [text for _, text in placed]
            starts = accumulate((len(text) + 1 for text in texts[:-1]), initial=0)
            parts = tuple(zip(starts, (keys for keys, _ in placed), strict=True))
            first: Keys = ("messages", placed[0][0][1], "content")
            text = "\n".join(texts)
            segment = Segment(text=text, direction=Direction.INPUT, role=role, path=path_of(first))
            yield Slot(first, segment, "seam", parts)


def _parts(content: Any, message: int) -> Iterator[tuple[Keys, str]]:
    keys: Keys = ("messages", message, "content")
    if isinstance(content, str):
        yield keys, content
        return
    for index, part in enumerate(content or ()):
        if isinstance(part, str):
            yield (*keys, index), part
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            yield (*keys, index, "text"), part["text"]


def _refuse_media(content: Any, path: str) -> None:
    if not isinstance(content, str | list | None):
        raise UsageError(f"{path} must be a text or a list of parts.")
    for index, part in enumerate(content if isinstance(content, list) else ()):
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if kind not in TEXT_PARTS:
            raise UsageError(
                f"{path}[{index}] is of type {kind!s:.40}, which the guards cannot judge; send text."
            )


def _refuse_tokens(value: Any, path: str) -> None:
    items = value if isinstance(value, list) else [value]
    if any(item is not None and not isinstance(item, str) for item in items):
        raise UsageError(f"{path} given as token ids cannot be judged by the guards; send text.")
