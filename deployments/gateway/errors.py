"""Failures as OpenAI's clients understand them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from cluster.contracts import UpstreamError

#: Code of an error that says that a guard cannot judge now.
GUARD_UNAVAILABLE = "guard_unavailable"


class ApiError(Exception):
    """An answer that is an error: ``{"error": {"message", "type", "param", "code"}}``.

    :param retry_after_s: sent as ``Retry-After``; OpenAI's clients wait that long and try again. A 503 always
        has one.
    :param headers: more headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after_s = 5 if retry_after_s is None and status == 503 else retry_after_s
        self._headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def add_header(self, name: str, value: str) -> None:
        """One more header of the answer."""
        self._headers[name] = value

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to it."""
        headers = dict(self._headers)
        if self.retry_after_s is not None:
            headers["retry-after"] = str(self.retry_after_s)
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers


def from_upstream(error: UpstreamError) -> ApiError:
    """What a model replica reported."""
    retry = 1 if error.status in (429, 503) else None
    return ApiError(
        error.status, error.message, kind=error.type, code=error.code, param=error.param, retry_after_s=retry
    )


#: What pydantic calls members of the bodies' unions.
_MEMBERS = frozenset({"str", "bool", "int", "float", "NamedToolChoice"})
#: Of OpenAI's API, and nothing that this platform's engines do.
_UNSUPPORTED = frozenset(
    {"audio", "best_of", "function_call", "functions", "moderation", "prediction", "prompt_cache_options"}
    | {"verbosity", "web_search_options"}
    # Of the Responses API.
    | {"previous_response_id", "conversation", "context_management", "max_tool_calls"}
    # Of Anthropic's.
    | {"container", "context_management", "mcp_servers", "inference_geo", "output_config", "speed"}
)
_JSON_TYPES = {
    "string": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "a boolean",
    "list": "an array",
    "dict": "an object",
    "model": "an object",
}


def from_validation(error: ValidationError, within: str = "") -> ApiError:
    """A body that is not what OpenAI's API takes: the first thing that is wrong with it.

    :param within: path of what was validated, if it is a part of a body.
    """
    first = _meant(error.errors(include_url=False, include_context=False))
    where = _path(first["loc"], within)
    kind = first["type"]
    if kind == "extra_forbidden":
        if where in _UNSUPPORTED:
            return ApiError(
                400, f"Unsupported parameter: '{where}'.", param=where, code="unsupported_parameter"
            )
        return ApiError(
            400,
            f"Unrecognized request argument supplied: {where}.",
            param=where,
            code="unknown_parameter",
        )
    if kind == "missing":
        return ApiError(
            400, f"Missing required parameter: '{where}'.", param=where, code="missing_required_parameter"
        )
    wanted = _JSON_TYPES.get(kind.removesuffix("_type"))
    if wanted is not None and kind.endswith("_type") and len(error.errors()) == 1:
        message = f"Invalid type for '{where}': expected {wanted}, but got {_json_type(first['input'])}."
        return ApiError(400, message, param=where, code="invalid_type")
    reason = first["msg"].removeprefix("Value error, ").removesuffix(".")
    return ApiError(400, f"Invalid value for '{where}': {reason}.", param=where, code="invalid_value")


def _meant(found: list[ErrorDetails]) -> ErrorDetails:
    """The first error; of what may be a text or a list, the one of the reading that goes furthest."""
    first = found[0]
    if first["loc"][-1:] != ("str",):
        return first
    union = first["loc"][:-1]
    readings = [error for error in found if error["loc"][: len(union)] == union]
    return max(readings, key=lambda error: (len(error["loc"]), not error["type"].endswith("_type")))


def _path(keys: tuple[int | str, ...], path: str) -> str:
    """``messages[0].role``, as OpenAI's API writes it."""
    tag_follows = False
    for key in keys:
        if isinstance(key, int):
            path += f"[{key}]"
        elif key.startswith("list["):
            tag_follows = "tagged-union" in key
        elif tag_follows:
            tag_follows = False
        # Pydantic names the union member that it tried; that is no part of the path.
        elif key not in _MEMBERS and not key.startswith(("function-", "literal[")):
            path += f".{key}"
    return path.lstrip(".")


def _json_type(value: object) -> str:
    match value:
        case bool():
            return "a boolean"
        case None:
            return "null"
        case int():
            return "an integer"
        case float():
            return "a decimal number"
        case str():
            return "a string"
        case list():
            return "an array"
    return "an object"


def unknown_model(model: str) -> ApiError:
    """One answer for a model that is not there and one that this key may not use."""
    return ApiError(
        404,
        f"The model `{model}` does not exist or you do not have access to it.",
        code="model_not_found",
        param="model",
    )


def overloaded(what: str) -> ApiError:
    """Too much work at hand."""
    return ApiError(
        503,
        f"{what} is overloaded; please try again.",
        kind="server_error",
        code="overloaded",
        retry_after_s=1,
    )


def guard_unavailable(reason: str) -> ApiError:
    """A guard failed, so nothing may pass; that is not the client's fault."""
    return ApiError(503, reason, kind="server_error", code=GUARD_UNAVAILABLE, retry_after_s=1)
