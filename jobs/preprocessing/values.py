"""Values of declared columns: checked, and read from text where a file holds nothing else."""

from __future__ import annotations

import json
from datetime import date, datetime
from typing import Any

from jobs.preprocessing.rows import ColumnType


class BrokenLine(Exception):
    """What is wrong with a line or a file, in words for the user."""


def convert(value: Any, kind: ColumnType, name: str, *, text: bool) -> Any:
    """Check ``value`` against a declared type; with ``text`` it is a CSV field and is read, '' being null.

    A time or a date is a string as ISO 8601 has it, so that the strings of a column sort as its times do.
    Raises BrokenLine.
    """
    if value is None or (text and value == ""):
        return None
    if kind == "string":
        if isinstance(value, date):  # As are times.
            return value.isoformat(timespec="microseconds") if isinstance(value, datetime) else str(value)
        if not isinstance(value, str):
            raise BrokenLine(f"{name} is {_shown(value)}, not a string")
        if encodable(value) != value:
            raise BrokenLine(f"{name} holds half of a surrogate pair, which is no text")
        return value
    if kind == "messages":
        return _messages(_from_json(value) if text else value, name)
    if kind == "bool":
        return _bool(value, name, text=text)
    return _number(value, kind, name, text=text)


def _number(value: Any, kind: str, name: str, *, text: bool) -> int | float:
    if isinstance(value, bool) or (isinstance(value, str) and not text):
        raise BrokenLine(f"{name} is {_shown(value)}, not {kind}")
    try:
        number = float(value) if kind == "float64" else int(value)
        # A JSON 1.5 is no integer; neither is what needs more than 64 bits.
        if kind == "int64" and (number != (value if not text else number) or not -(2**63) <= number < 2**63):
            raise ValueError
    except (ValueError, TypeError, OverflowError):
        raise BrokenLine(f"{name} is {_shown(value)}, not {kind}") from None
    return number


def _bool(value: Any, name: str, *, text: bool) -> bool:
    if isinstance(value, bool):
        return value
    known = {"true": True, "1": True, "false": False, "0": False}
    if text and value.strip().lower() in known:
        return known[value.strip().lower()]
    raise BrokenLine(f"{name} is {_shown(value)}, not bool")


def _messages(value: Any, name: str) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise BrokenLine(f"{name} is {_shown(value)}, not a list of messages")
    messages = []
    for item in value:
        role, content = (item.get("role"), item.get("content")) if isinstance(item, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise BrokenLine(f"{name} has a message without a role and a content of text")
        if encodable(role + content) != role + content:
            raise BrokenLine(f"{name} holds half of a surrogate pair, which is no text")
        messages.append({"role": role, "content": content})
    return messages


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # No list, and told as such.


def _shown(value: Any) -> str:
    """The value, or what it is if it is long: half an address would not be masked as one."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    if len(text) <= 60:
        return text
    kinds = {"str": "a text", "list": "a list", "dict": "a mapping"}
    return f"{kinds.get(type(value).__name__, 'a value')} of {len(text):,} characters"


def encodable(text: str) -> str:
    """The text with what UTF-8 cannot hold replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")
