"""OpenAI's batch input format: one request a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import ValidationError

from cluster.contracts.request import Body, ChatBody, CompletionBody
from cluster.errors import UsageError
from cluster.settings import describe_validation_error
from jobs.batch.rows import BatchRequest, Endpoint

URLS: dict[str, Endpoint] = {"/v1/chat/completions": "chat", "/v1/completions": "completions"}
_BODIES: dict[Endpoint, type[Body]] = {"chat": ChatBody, "completions": CompletionBody}
#: Of the gateway's fields: those of a stream, and log probabilities, whose alternatives no guard judges.
_NOT_IN_A_BATCH = frozenset({"stream", "stream_options", "logprobs", "top_logprobs", "echo", "suffix"})


def bad(address: str, number: int, why: str) -> UsageError:
    """The one sentence about a line that cannot be asked."""
    return UsageError(f"{address}, line {number}: {why}; nothing was run.")


def parse_openai_lines(address: str, lines: Iterable[bytes]) -> Iterator[tuple[int, BatchRequest]]:
    """Line numbers from 1, and the request of each; blank lines are passed over.

    A row's id is its ``custom_id``. Raises UsageError for the first line that is no such request.
    """
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        try:
            yield number, _request(raw)
        except ValueError as error:
            raise bad(address, number, str(error)) from None


def _request(raw: bytes) -> BatchRequest:
    try:
        line = json.loads(raw)
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(line, dict):
        raise ValueError("it is no JSON object")
    if unknown := sorted(set(line) - {"custom_id", "method", "url", "body"}):
        raise ValueError(f"{unknown[0]!r} is no key of OpenAI's batch format")
    custom_id = line.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        raise ValueError("custom_id is missing or no text")
    if line.get("method") != "POST":
        raise ValueError(f"method must be POST, not {line.get('method')!r}")
    if line.get("url") not in URLS:
        raise ValueError(f"url must be one of {', '.join(URLS)}, not {line.get('url')!r}")
    endpoint = URLS[line["url"]]
    return BatchRequest(custom_id, custom_id, endpoint, _body(endpoint, line.get("body")))


def _body(endpoint: Endpoint, body: Any) -> dict[str, Any]:
    """The body as the gateway would take it: the same fields, the same types."""
    if not isinstance(body, dict):
        raise ValueError("body is missing or no JSON object")
    given = {key: value for key, value in body.items() if value is not None}
    if given.pop("stream", False):
        raise ValueError("a batch has no stream")
    if unavailable := sorted(given.keys() & _NOT_IN_A_BATCH):
        raise ValueError(f"body.{unavailable[0]} is not available in a batch")
    if endpoint == "chat" and "prompt" in given:  # A template, which only gateways know.
        raise ValueError("body.prompt is not available in a batch")
    if endpoint == "completions" and not (isinstance(given.get("prompt"), str) and given["prompt"]):
        raise ValueError("body.prompt is missing or no text")
    try:
        # A batch names its model itself; a line need not, and what it names is not looked at.
        parsed = _BODIES[endpoint].model_validate({"model": "-", **given})
    except ValidationError as error:
        raise ValueError(describe_validation_error(error, "body").rstrip(".")) from None
    return parsed.model_dump(exclude_unset=True, exclude={"user"} if "model" in given else {"user", "model"})
