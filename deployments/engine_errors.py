"""Whatever fails in a model replica, as an :class:`UpstreamError` free of internals."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from cluster.contracts import UpstreamError
from cluster.errors import MantaError, NotFoundError, UnavailableError, UsageError

logger = logging.getLogger("ray.serve")

#: vLLM appends what `param` says already, and the client's own value.
_DETAIL = re.compile(r" \(parameter=.*\)$")
_FAILED = "The model failed on this request; it was not the request's fault."


def from_engine(error: Mapping[str, Any]) -> UpstreamError:
    """From the body of an error that vLLM answered with: ``message``, ``type``, ``param``, ``code``."""
    status = int(error.get("code") or 500)
    if status >= 500 or status < 400:
        logger.error("The engine answered with an error of its own: %s", error)
        return UpstreamError(status=500, message=_FAILED)
    message = _DETAIL.sub("", " ".join(str(error.get("message", "")).split()))
    if "--enable-auto-tool-choice" in message:
        return UpstreamError(
            status=400,
            message="This model is deployed without a parser of tool calls, so it cannot choose by itself: "
            "name the function in 'tool_choice', or say 'required' or 'none'; whoever deploys it can set "
            "enable_auto_tool_choice and tool_call_parser in its engine_kwargs.",
            type="invalid_request_error",
            param="tool_choice",
            code="unsupported_parameter",
        )
    code = None
    if "maximum context length" in message or "longer than the maximum model length" in message:
        code = "context_length_exceeded"
    elif status == 404:
        code = "model_not_found"
    return UpstreamError(
        status=status, message=message, type="invalid_request_error", param=error.get("param"), code=code
    )


def from_exception(error: Exception, request_id: str) -> UpstreamError:
    """From what was raised. What nobody foresaw is logged with its traceback and answered vaguely."""
    match error:
        case NotFoundError():
            return UpstreamError(
                status=404,
                message=str(error),
                type="invalid_request_error",
                param="model",
                code="model_not_found",
            )
        case UnavailableError():
            return UpstreamError(status=503, message=str(error))
        case UsageError():
            return UpstreamError(status=400, message=str(error), type="invalid_request_error")
        case MantaError():
            return UpstreamError(status=500, message=str(error))
        case ValidationError():
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            reason = first["msg"].removeprefix("Value error, ")
            return UpstreamError(
                status=400,
                message=f"Invalid value for '{where}': {reason}." if where else f"{reason}.",
                type="invalid_request_error",
                param=where or None,
            )
    if _is_client_error(error):
        return from_engine({"code": 400, "message": str(error)})
    logger.error("Request %s failed in the model replica", request_id, exc_info=error)
    if type(error).__name__ == "EngineDeadError":
        return UpstreamError(status=503, message="The model's engine has stopped and is being started again.")
    return UpstreamError(status=500, message=_FAILED)


def _is_client_error(error: Exception) -> bool:
    """vLLM's own class of the client's mistakes. Who raises it has imported it already."""
    exceptions = sys.modules.get("vllm.exceptions")
    return exceptions is not None and isinstance(error, exceptions.VLLMClientError)
