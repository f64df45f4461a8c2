"""From bytes to a typed body, and every mistake as OpenAI's API tells it."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from deployments.gateway.errors import ApiError, from_validation

Typed = TypeVar("Typed", bound=BaseModel)


def parse(raw: bytes, kind: type[Typed]) -> Typed:
    """The typed body. Raises ApiError 400 naming the first thing that is wrong."""
    return typed(read_object(raw), kind)


def read_object(raw: bytes) -> dict[str, Any]:
    """The JSON object; what is null in it is absent, as OpenAI's API reads it. Raises ApiError 400.

    Strictly JSON in UTF-8: no NaN, and no half of a surrogate pair, which no engine could encode again.
    """
    try:
        content = json.loads(raw.decode(), parse_constant=_no_constant)
        if b"\\ud" in raw.lower():
            json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise ApiError(400, "We could not parse the JSON body of your request.") from None
    if not isinstance(content, dict):
        raise ApiError(400, "The JSON body of your request must be an object.")
    return {name: value for name, value in content.items() if value is not None}


def typed(content: dict[str, Any], kind: type[Typed], where: str = "") -> Typed:
    """The typed body of what was read. Raises ApiError 400 naming the first thing that is wrong.

    :param where: path of ``content``, if it is a part of a body.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise from_validation(error, where) from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
