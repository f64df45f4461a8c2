"""Answers: chunks as clients get them, and one whole answer put together from them."""

from __future__ import annotations

import time
from typing import Any

from deployments.gateway.errors import ApiError

_STREAMED = {"chat": "chat.completion.chunk", "completions": "text_completion"}
_WHOLE = {"chat": "chat.completion", "completions": "text_completion"}
_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")
#: More than any engine makes of one request, and less than what a ledger of money cannot hold.
_MOST_TOKENS = 10**9
_PREFIX = {"chat": "chatcmpl", "completions": "cmpl"}


class Answer:
    """What one answer has in all of its chunks, and the tokens it used.

    :param model: the public name: clients never see an engine's.
    :param each: choices of each prompt.
    """

    def __init__(self, endpoint: str, request_id: str, model: str, each: int) -> None:
        self.endpoint = endpoint
        self.id = f"{_PREFIX[endpoint]}-{request_id}"
        self.created = int(time.time())
        self.model = model
        self._each = each
        self.begin_again()

    def begin_again(self) -> None:
        """Nothing was said yet, or nothing that anybody gets."""
        #: How often a choice went on: at least one token each time.
        self.pieces = 0
        self._usage: dict[str, Any] | None = None
        self._running: dict[int, int] = {}
        #: Tokens of each prompt: until their last chunk engines tell of one choice's alone.
        self._prompts: dict[int, int] = {}

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """One chunk of a stream."""
        return self._head(_STREAMED[self.endpoint]) | {"choices": choices}

    def whole(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """The answer to who asked for no stream."""
        return self._head(_WHOLE[self.endpoint]) | {"choices": choices, "usage": self.usage}

    def note_usage(self, chunk: dict[str, Any]) -> None:
        """Take in what an upstream's chunk tells of tokens: its usage, final or running, and its pieces."""
        self.pieces += sum(map(_goes_on, chunk.get("choices") or []))
        usage = counts(chunk.get("usage"))
        if not usage:
            return
        if not chunk.get("choices"):
            self._usage = usage
            return
        for choice in chunk["choices"]:
            index = choice.get("index", 0)
            prompt = index // self._each
            self._prompts[prompt] = max(self._prompts.get(prompt, 0), usage.get("prompt_tokens") or 0)
            self._running[index] = usage.get("completion_tokens") or 0

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens so far; exact also when the answer was cut short."""
        if self._usage is not None:
            return self._usage
        prompt, completion = sum(self._prompts.values()), sum(self._running.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def counts(usage: Any) -> dict[str, Any]:
    """What an upstream tells of tokens, as far as it can be: money is counted by it. Empty if nothing is."""
    if not isinstance(usage, dict):
        return {}
    told = {name: usage.get(name) for name in _COUNTS}
    if any(count is not None and not _is_count(count) for count in told.values()):
        return {}
    found = {name: value for name, value in usage.items() if value is not None}
    if "total_tokens" not in found and {"prompt_tokens", "completion_tokens"} <= found.keys():
        found["total_tokens"] = found["prompt_tokens"] + found["completion_tokens"]
    return found


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MOST_TOKENS


def _goes_on(choice: dict[str, Any]) -> bool:
    said = {"text": choice.get("text")} | (choice.get("delta") or {})
    return any(value for field, value in said.items() if field != "role")


def embeddings(found: list[dict[str, Any]], model: str, expected: int) -> dict[str, Any]:
    """The answer with the vectors that a model made, under its public name.

    Raises ApiError 502 unless there is exactly one vector for each of the ``expected`` texts.
    """
    data = found[0].get("data") if len(found) == 1 else None
    if not isinstance(data, list) or sorted(item.get("index", -1) for item in data) != list(range(expected)):
        raise ApiError(502, "The model did not make a vector for each input.", kind="server_error")
    usage = counts(found[0].get("usage"))
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": item["index"], "embedding": item.get("embedding")}
            for item in data
        ],
        "model": model,
        "usage": {name: int(usage.get(name) or 0) for name in ("prompt_tokens", "total_tokens")},
    }


class Assembly:
    """Puts the choices of a stream together."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, choices: list[dict[str, Any]]) -> None:
        """Take in the choices of one chunk."""
        for part in choices:
            index = part["index"]
            whole = self._choices.setdefault(index, self._empty(index))
            if self._endpoint == "chat":
                _add_delta(whole["message"], part["delta"])
            else:
                whole["text"] += part["text"]
            if part["logprobs"] is not None:
                whole["logprobs"] = _joined(whole["logprobs"], part["logprobs"])
            whole["finish_reason"] = part["finish_reason"] or whole["finish_reason"]

    def choices(self) -> list[dict[str, Any]]:
        """All choices, in order."""
        return [self._choices[index] for index in sorted(self._choices)]

    def _empty(self, index: int) -> dict[str, Any]:
        if self._endpoint == "chat":
            text: dict[str, Any] = {"message": {"role": "assistant", "content": None, "refusal": None}}
        else:
            text = {"text": ""}
        return {"index": index, **text, "logprobs": None, "finish_reason": None}


def _add_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for field, value in delta.items():
        if field == "role":
            message["role"] = value
        elif field == "tool_calls":
            calls = message.setdefault("tool_calls", [])
            for part in value:
                _add_tool_call(calls, part)
        else:
            message[field] = (message.get(field) or "") + value


def _add_tool_call(calls: list[dict[str, Any]], part: dict[str, Any]) -> None:
    while len(calls) <= part["index"]:
        calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
    call = calls[part["index"]]
    call["id"] = part.get("id") or call["id"]
    for field, text in part["function"].items():
        call["function"][field] += text


def _joined(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    if old is None:
        return dict(new)
    for name, values in new.items():
        if isinstance(values, list) and isinstance(old.get(name), list):
            old[name] = old[name] + values
        else:
            old[name] = values
    return old
