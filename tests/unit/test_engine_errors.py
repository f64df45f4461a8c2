"""Whatever fails in a replica becomes one sentence with the right status."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from cluster.errors import NotFoundError, RefusedError, UnavailableError, UsageError
from deployments.engine_errors import from_engine, from_exception


@pytest.mark.parametrize(
    ("error", "status", "code", "message"),
    [
        (
            {"code": 400, "message": "n must be at least 1, got 0. (parameter=n, value=0)", "param": "n"},
            400,
            None,
            "n must be at least 1, got 0.",
        ),
        (
            {"code": 400, "message": "This model's maximum context length is 8 tokens.\nShorten it."},
            400,
            "context_length_exceeded",
            "This model's maximum context length is 8 tokens. Shorten it.",
        ),
        (
            {"code": 404, "message": "The model `x` does not exist."},
            404,
            "model_not_found",
            "The model `x` does not exist.",
        ),
        (
            {"code": 400, "message": 'tool_choice="required" requires --tool-call-parser to be set'},
            400,
            "unsupported_parameter",
            "This model is deployed without a parser of tool calls: leave 'tools' out; whoever deploys it "
            "can set enable_auto_tool_choice and tool_call_parser in its engine_kwargs.",
        ),
        ({"code": 500, "message": "File /secret/path"}, 500, None, None),
        ({"message": "no code"}, 500, None, None),
    ],
)
def test_errors_of_the_engine(
    error: dict[str, Any], status: int, code: str | None, message: str | None
) -> None:
    told = from_engine(error)
    assert (told.status, told.code) == (status, code)
    assert message is None or told.message == message
    assert "secret" not in told.message


def invalid() -> ValidationError:
    class Body(BaseModel):
        n: int

    try:
        Body.model_validate({"n": "many"})
    except ValidationError as error:
        return error
    raise AssertionError


class EngineDeadError(Exception):
    """As vLLM names it."""


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotFoundError("none"), 404),
        (UnavailableError("storage is down"), 503),
        (UsageError("no embeddings"), 400),
        (RefusedError("damaged"), 500),
        (invalid(), 400),
        (EngineDeadError("gone"), 503),
        (RuntimeError("secret"), 500),
    ],
)
def test_exceptions(error: Exception, status: int, caplog: pytest.LogCaptureFixture) -> None:
    told = from_exception(error, "r1")
    assert told.status == status
    assert "secret" not in told.message
    if isinstance(error, ValidationError):
        assert told.param == "n"
