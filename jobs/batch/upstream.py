"""A model application asked by its Serve handle: server-sent events in, one complete answer out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable
from typing import Any

from cluster.contracts import StreamItem, UpstreamError
from cluster.sse import EventReader


class UpstreamFailedError(Exception):
    """The replica's typed error. ``retriable`` when another try may go well."""

    def __init__(self, error: UpstreamError) -> None:
        super().__init__(error.message)
        self.error = error

    @property
    def retriable(self) -> bool:
        """Overload and failures of the server; not what the request itself is wrong about."""
        return self.error.status >= 500 or self.error.status in (408, 429)


async def collect(stream: AsyncIterable[StreamItem]) -> dict[str, Any]:
    """The complete OpenAI answer behind a stream of events, be it sent whole or in chunks.

    Raises UpstreamFailedError for the replica's error, or for a stream that ends without an answer.
    """
    answer: dict[str, Any] = {}
    reader = EventReader()
    async for item in stream:
        for event in reader.feed(item):
            if event.name == "error":
                raise UpstreamFailedError(UpstreamError.model_validate_json(event.data))
            if event.data == "[DONE]":
                continue
            _fold(answer, json.loads(event.data))
    choices = answer.get("choices")
    if not choices or any(not choice.get("finish_reason") for choice in choices):
        raise UpstreamFailedError(
            UpstreamError(status=502, message="The model's stream ended before its answer.")
        )
    return answer


def _fold(answer: dict[str, Any], chunk: dict[str, Any]) -> None:
    """Add one event's object to the answer so far."""
    choices = answer.setdefault("choices", [])
    for key, value in chunk.items():
        if key != "choices" and value is not None:
            answer[key] = value.removesuffix(".chunk") if key == "object" else value
    for part in chunk.get("choices") or []:
        while len(choices) <= part["index"]:
            choices.append({"index": len(choices)})
        choice = choices[part["index"]]
        delta = part.pop("delta", None)
        if "text" in part:
            part["text"] = choice.get("text", "") + part["text"]
        choice.update({key: value for key, value in part.items() if value is not None})
        if delta is not None:
            _fold_delta(choice.setdefault("message", {"role": "assistant", "content": ""}), delta)


def _fold_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for key, value in delta.items():
        if key == "tool_calls":
            _fold_calls(message.setdefault("tool_calls", []), value or [])
        elif key == "role":
            message["role"] = value or message["role"]
        elif isinstance(value, str):
            message[key] = (message.get(key) or "") + value
        elif value is not None:
            message[key] = value


def _fold_calls(calls: list[dict[str, Any]], parts: list[dict[str, Any]]) -> None:
    for part in parts:
        while len(calls) <= part["index"]:
            calls.append({"type": "function", "function": {"name": "", "arguments": ""}})
        call, function = calls[part["index"]], part.get("function") or {}
        call["id"] = part.get("id") or call.get("id")
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""
