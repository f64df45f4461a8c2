"""OpenAI's batch input format: one request a line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from cluster.errors import UsageError
from jobs.batch.rows import BatchRequest, Endpoint
from jobs.batch.sampling import SamplingConfig

#: OpenAI's own bookkeeping: accepted, and meaningless to a model.
BOOKKEEPING = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
)

#: Fields are an allow-list: one that nobody here knows could carry text past the guards to the model, or
#: (token ids, log probabilities) text out past them.
COMMON = frozenset(SamplingConfig.model_fields) | {
    "model", "n", "stream", "max_completion_tokens", "logit_bias",
    "stop_token_ids", "response_format",
} | BOOKKEEPING  # fmt: skip
CHAT = frozenset({"messages", "tools", "tool_choice", "parallel_tool_calls"})
COMPLETIONS = frozenset({"prompt"})
MESSAGE = frozenset(
    {"role", "content", "name", "refusal", "reasoning", "reasoning_content", "tool_calls", "tool_call_id"}
)
#: Templates write ids out, so they must have no room for prose.
TOOL_CALL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SURROGATE = re.compile("[\ud800-\udfff]")
ROLES = ("system", "developer", "user", "assistant", "tool")
URLS: dict[str, Endpoint] = {"/v1/chat/completions": "chat", "/v1/completions": "completions"}


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
    except RecursionError:
        raise ValueError("its JSON is nested too deep") from None
    if not isinstance(line, dict):
        raise ValueError("it is no JSON object")
    if b"\\ud" in raw.lower() and _SURROGATE.search(json.dumps(line, ensure_ascii=False)):
        raise ValueError("it holds half of a surrogate pair, which is no text")
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
    if not isinstance(body, dict):
        raise ValueError("body is missing or no JSON object")
    if body.get("stream"):
        raise ValueError("a batch has no stream")
    known = COMMON | (COMPLETIONS if endpoint == "completions" else CHAT)
    if unknown := sorted(set(body) - known):
        raise ValueError(f"body.{unknown[0]} is not available in a batch")
    if endpoint == "completions":
        if not isinstance(body.get("prompt"), str) or not body["prompt"]:
            raise ValueError("body.prompt is missing or no text")
    else:
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise ValueError("body.messages is missing or empty")
        for index, message in enumerate(messages):
            _check_message(f"body.messages[{index}]", message)
    kept = {key: value for key, value in body.items() if key not in BOOKKEEPING}
    if endpoint == "chat":
        kept["messages"] = [_with_one_text(message) for message in kept["messages"]]
    return kept


def _with_one_text(message: dict[str, Any]) -> dict[str, Any]:
    """Parts as the engine joins them: what a template puts together must be judged together."""
    if not isinstance(message.get("content"), list):
        return message
    return message | {"content": "\n".join(part["text"] for part in message["content"])}


def _check_id(path: str, value: Any) -> None:
    if not isinstance(value, str) or not TOOL_CALL_ID.fullmatch(value):
        raise ValueError(f"{path} is not 1 to 64 letters, digits, '_' or '-'")


def _check_message(path: str, message: Any) -> None:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise ValueError(f"{path} has no role among {', '.join(ROLES)}")
    if unknown := sorted(set(message) - MESSAGE):
        raise ValueError(f"{path}.{unknown[0]} is not available in a batch")
    content = message.get("content")
    if isinstance(content, list):
        for part in content:
            text = isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
            if not text or set(part) != {"type", "text"}:
                raise ValueError(f"{path}.content holds a part that is no text")
    elif not isinstance(content, str) and not message.get("tool_calls"):
        raise ValueError(f"{path} has no content")
    if message.get("tool_call_id") is not None:
        _check_id(f"{path}.tool_call_id", message["tool_call_id"])
    for number, call in enumerate(message.get("tool_calls") or []):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not all(
            isinstance(function.get(k), str) for k in ("name", "arguments")
        ):
            raise ValueError(f"{path}.tool_calls holds a call without a function's name and arguments")
        if call.get("id") is not None:
            _check_id(f"{path}.tool_calls[{number}].id", call["id"])
