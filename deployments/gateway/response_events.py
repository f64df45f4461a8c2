"""An answer in the words of OpenAI's Responses API: one object, or the events that build it up."""

from __future__ import annotations

import time
from typing import Any, Literal

from cluster import sse
from deployments.gateway.answer import Answer
from deployments.gateway.dialect import in_order
from deployments.gateway.errors import ApiError

#: Fields of a request that its response repeats.
_ECHOED = (
    "instructions",
    "max_output_tokens",
    "metadata",
    "prompt",
    "reasoning",
    "temperature",
    "top_p",
    "user",
)


class ResponseWriter:
    """See :class:`deployments.gateway.dialect.Writer`. Items are begun, filled and done one after the other.

    :param asked: the request's body, which a response repeats in parts.
    """

    def __init__(self, asked: dict[str, Any], answer: Answer) -> None:
        self._asked = asked
        self._answer = answer
        self._id = f"resp_{answer.id.partition('-')[2]}"
        self._items: list[dict[str, Any]] = []
        #: What the open item is: a field of the delta, or the number of a tool call.
        self._open: str | int | None = None
        self._finish = ""
        self._number = 0
        self._begun = False

    def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        """See the protocol."""
        choice = answer["choices"][0]
        self._take({"delta": choice["message"], "finish_reason": choice["finish_reason"]})
        self._close()
        return self._response(self._status())

    def feed(self, chunks: list[dict[str, Any]]) -> bytes:
        """See the protocol."""
        events = b""
        if not self._begun:
            self._begun = True
            events += self._event("response.created", response=self._response("in_progress"))
            events += self._event("response.in_progress", response=self._response("in_progress"))
        for chunk in chunks:
            for choice in chunk["choices"]:
                events += self._take(choice)
        return events

    def end(self) -> bytes:
        """See the protocol."""
        status = self._status()
        return self._close() + self._event(f"response.{status}", response=self._response(status))

    def failed(self, error: ApiError) -> bytes:
        """See the protocol."""
        told = {"code": "server_error", "message": error.message}
        failed = self._response("failed") | {"error": told}
        return self._event("response.failed", response=failed)

    def _take(self, choice: dict[str, Any]) -> bytes:
        events = b""
        for kind, said in in_order(choice["delta"], self._open):
            events += self._text(str(kind), said) if isinstance(said, str) else self._call(int(kind), said)
        self._finish = choice["finish_reason"] or self._finish
        return events

    def _text(self, field: str, text: str) -> bytes:
        events = b""
        if self._open != field:
            events += self._begin(field, {"type": "message", "role": "assistant", "content": []})
            part = {"type": "refusal", "refusal": ""} if field == "refusal" else _output_text()
            self._items[-1]["content"].append(part)
            events += self._event("response.content_part.added", content_index=0, part=part, **self._at())
        part = self._items[-1]["content"][0]
        more: dict[str, Any] = {"content_index": 0, "delta": text, **self._at()}
        if field == "refusal":
            part["refusal"] += text
            return events + self._event("response.refusal.delta", **more)
        part["text"] += text
        return events + self._event("response.output_text.delta", logprobs=[], **more)

    def _call(self, number: int, call: dict[str, Any]) -> bytes:
        events, function = b"", call["function"]
        if self._open != number:
            item = {"type": "function_call", "call_id": call.get("id", ""), "name": "", "arguments": ""}
            item["name"] = function.get("name", "")
            events += self._begin(number, item)
        if arguments := function.get("arguments"):
            self._items[-1]["arguments"] += arguments
            events += self._event("response.function_call_arguments.delta", delta=arguments, **self._at())
        return events

    def _begin(self, kind: str | int, item: dict[str, Any]) -> bytes:
        events = self._close()
        prefix = "fc" if isinstance(kind, int) else "msg"
        known = {"id": f"{prefix}_{self._id[5:]}-{len(self._items)}", "status": "in_progress"}
        self._open = kind
        self._items.append(known | item)
        return events + self._event(
            "response.output_item.added", item=self._items[-1], output_index=len(self._items) - 1
        )

    def _close(self) -> bytes:
        """End the open item."""
        if self._open is None:
            return b""
        item, events, at = self._items[-1], b"", self._at()
        item["status"] = "incomplete" if self._status() == "incomplete" else "completed"
        if item["type"] == "function_call":
            events += self._event(
                "response.function_call_arguments.done",
                arguments=item["arguments"],
                name=item["name"],
                **at,
            )
        else:
            part = item["content"][0]
            if self._open == "refusal":
                events += self._event("response.refusal.done", content_index=0, refusal=part["refusal"], **at)
            else:
                events += self._event(
                    "response.output_text.done", content_index=0, text=part["text"], logprobs=[], **at
                )
            events += self._event("response.content_part.done", content_index=0, part=part, **at)
        self._open = None
        return events + self._event("response.output_item.done", item=item, output_index=len(self._items) - 1)

    def _at(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}

    def _status(self) -> Literal["completed", "incomplete"]:
        return "incomplete" if self._finish in ("length", "content_filter") else "completed"

    def _event(self, kind: str, **content: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._number, **content}
        self._number += 1
        return sse.encode(event, kind)

    def _response(self, status: str) -> dict[str, Any]:
        asked = self._asked
        why = "content_filter" if self._finish == "content_filter" else "max_output_tokens"
        ended = status in ("completed", "incomplete")
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._answer.created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": why} if status == "incomplete" else None,
            "model": self._answer.model,
            "output": self._items,
            "parallel_tool_calls": asked["parallel_tool_calls"] is not False,
            "previous_response_id": None,
            "store": False,
            "text": asked["text"] or {"format": {"type": "text"}},
            "tool_choice": asked["tool_choice"] or "auto",
            "tools": asked["tools"] or [],
            "truncation": "disabled",
            "usage": _usage(self._answer.usage) if ended else None,
        } | {name: asked[name] for name in _ECHOED}


def _output_text() -> dict[str, Any]:
    return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    thought = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return {
        "input_tokens": usage.get("prompt_tokens", 0),
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage.get("completion_tokens", 0),
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": usage.get("total_tokens", 0),
    }
