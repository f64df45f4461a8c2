"""Failures as OpenAI's clients understand them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from cluster.contracts import UpstreamError


class ApiError(Exception):
    """An answer that is an error: ``{"error": {"message", "type", "param", "code"}}``.

    :param retry_after_s: sent as ``Retry-After``; OpenAI's clients wait that long and try again. A 503 has
        always one, of a second if nothing else is known.
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
        self.retry_after_s = 1 if retry_after_s is None and status == 503 else retry_after_s
        self._headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

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


def from_validation(error: ValidationError) -> ApiError:
    """A body that is not what OpenAI's API takes: the first thing that is wrong with it."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    # Pydantic names the union member that it tried; that is no part of the path.
    where = ".".join(
        str(part) for part in first["loc"] if not str(part).startswith(("function-", "list[", "str"))
    )
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"Unrecognized request argument supplied: {where}.", param=where)
    if first["type"] == "missing":
        return ApiError(
            400, f"Missing required parameter: '{where}'.", param=where, code="missing_required_parameter"
        )
    reason = first["msg"].removeprefix("Value error, ").removesuffix(".")
    return ApiError(400, f"Invalid value for '{where}': {reason}.", param=where, code="invalid_value")


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
