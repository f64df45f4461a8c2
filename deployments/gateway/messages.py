"""Anthropic's Messages API, as a translation to and from the one chat request.

What a chat request cannot say is refused by name. Which stop sequence ended an answer is not told: it reads
``end_turn``. A text that the guards cut off ends with ``refusal``, as that API's own filters do.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from cluster import sse
from cluster.contracts.request import Body, ChatBody, RequestPart, ToolCallId
from deployments.gateway.answer import Answer
from deployments.gateway.body import read_object, typed
from deployments.gateway.dialect import Endpoint, Writer, in_order
from deployments.gateway.errors import ApiError

_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


class _Block(RequestPart):
    # Asks for a cache of prompts, which engines here keep anyway.
    cache_control: dict[str, Any] | None = None


class _TextBlock(_Block):
    type: Literal["text"]
    text: str
    citations: None = None


class _ToolUse(_Block):
    type: Literal["tool_use"]
    id: ToolCallId
    name: str
    input: dict[str, Any]
    caller: dict[str, Any] | None = None
    # The client's own dump of what it got holds it.
    toolset_name: None = None


class _ToolResult(_Block):
    type: Literal["tool_result"]
    tool_use_id: ToolCallId
    content: str | list[_TextBlock] = ""
    is_error: bool | None = None


_Content = Annotated[_TextBlock | _ToolUse | _ToolResult, Field(discriminator="type")]


class _Message(RequestPart):
    role: Literal["user", "assistant"]
    content: str | list[_Content]


class _Tool(_Block):
    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


class _ToolChoice(RequestPart):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Metadata(RequestPart):
    user_id: str | None = None


class _Thinking(RequestPart):
    type: Literal["disabled"]


class MessagesBody(RequestPart):
    """``POST /v1/messages``, as far as it is to be had."""

    model: str
    max_tokens: int = Field(ge=1)
    messages: list[_Message] = Field(min_length=1)
    system: str | list[_TextBlock] | None = None
    stop_sequences: list[str] | None = None
    stream: bool = False
    temperature: float | None = Field(None, ge=0, le=1)
    top_p: float | None = None
    top_k: int | None = None
    tools: list[_Tool] | None = None
    tool_choice: _ToolChoice | None = None
    metadata: _Metadata | None = None
    thinking: _Thinking | None = None
    service_tier: str | None = None
    cache_control: dict[str, Any] | None = None


class Messages:
    """See :class:`deployments.gateway.dialect.Dialect`."""

    name = "messages"
    endpoint: Endpoint = "chat"

    def read(self, raw: bytes) -> Body:
        """The chat request that asks the same. Raises ApiError 400."""
        return typed(_chat(typed(read_object(raw), MessagesBody)), ChatBody)

    def writer(self, answer: Answer) -> Writer:
        """See the protocol."""
        return _Writer(answer)

    def error(self, error: ApiError, request_id: str) -> dict[str, Any]:
        """That API's form of an error."""
        return {**_error(error), "request_id": request_id}


def _error(error: ApiError) -> dict[str, Any]:
    kind = _ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    message = error.message.replace("max_completion_tokens", "max_tokens")
    return {"type": "error", "error": {"type": kind, "message": message}}


def _chat(body: MessagesBody) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    if body.system:
        messages.append({"role": "system", "content": _text(body.system)})
    for message in body.messages:
        messages += _messages(message)
    chat: dict[str, Any] = {
        "model": body.model,
        "messages": messages,
        "max_completion_tokens": body.max_tokens,
        "stop": body.stop_sequences,
        "stream": body.stream,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "user": body.metadata.user_id if body.metadata else None,
    }
    if body.messages[-1].role == "assistant":  # The answer goes on from what it says.
        chat |= {"continue_final_message": True, "add_generation_prompt": False}
    if body.tools:
        chat["tools"] = [_tool(tool) for tool in body.tools]
        chat |= _choice(body.tool_choice)
    return {name: value for name, value in chat.items() if value is not None}


def _tool(tool: _Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "strict": tool.strict}
    known = {name: value for name, value in function.items() if value is not None}
    return {"type": "function", "function": known | {"parameters": tool.input_schema}}


def _choice(choice: _ToolChoice | None) -> dict[str, Any]:
    if choice is None:
        return {}
    if choice.type == "tool":
        if choice.name is None:
            raise ApiError(400, "tool_choice.name: Field required", param="tool_choice.name")
        said: Any = {"type": "function", "function": {"name": choice.name}}
    else:
        said = "required" if choice.type == "any" else choice.type
    return {"tool_choice": said} | (
        {"parallel_tool_calls": False} if choice.disable_parallel_tool_use else {}
    )


def _messages(message: _Message) -> list[dict[str, Any]]:
    """A message's tool results, each of which is a message in a chat, and what else it says."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    found: list[dict[str, Any]] = []
    texts: list[_TextBlock] = []
    calls: list[dict[str, Any]] = []
    for block in message.content:
        match block:
            case _ToolResult():
                result = {"role": "tool", "tool_call_id": block.tool_use_id, "content": _text(block.content)}
                found.append(result)
            case _ToolUse():
                function = {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}
                calls.append({"id": block.id, "type": "function", "function": function})
            case _TextBlock():
                texts.append(block)
    said: dict[str, Any] = {"role": message.role, "content": _text(texts)}
    if calls:
        said["tool_calls"] = calls
    return [*found, said] if texts or calls or not found else found


def _text(content: str | list[_TextBlock]) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content)


class _Writer:
    """Writes a message: blocks that are begun, filled and stopped one after the other."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._blocks = 0
        #: What the open block is: a field of the delta, or the number of a tool call.
        self._open: str | int | None = None
        self._finish = "stop"
        self._called = False
        self._begun = False

    def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        choice = answer["choices"][0]
        said = choice["message"]
        texts = [said[field] for field in ("content", "refusal") if said.get(field)]
        content: list[dict[str, Any]] = [{"type": "text", "text": text} for text in texts]
        for call in said.get("tool_calls") or []:
            function, self._called = call["function"], True
            content.append(
                {"type": "tool_use", "id": call["id"], "name": function["name"]}
                | {"input": _arguments(function["arguments"])}
            )
        self._finish = choice["finish_reason"]
        return self._message(content, self._stop_reason())

    def feed(self, chunks: list[dict[str, Any]]) -> bytes:
        events = b""
        if not self._begun:
            self._begun = True
            events += _event("message_start", message=self._message([], None))
        for chunk in chunks:
            for choice in chunk["choices"]:
                events += self._take(choice["delta"])
                self._finish = choice["finish_reason"] or self._finish
        return events

    def end(self) -> bytes:
        delta = {"stop_reason": self._stop_reason(), "stop_sequence": None}
        told = _event("message_delta", delta=delta, usage=self._usage())
        return self._close() + told + _event("message_stop")

    def failed(self, error: ApiError) -> bytes:
        return sse.encode(_error(error), "error")

    def _take(self, delta: dict[str, Any]) -> bytes:
        events = b""
        for kind, said in in_order(delta, self._open):
            if isinstance(said, str):
                events += self._begin(kind, {"type": "text", "text": ""})
                events += self._delta({"type": "text_delta", "text": said})
                continue
            function = said["function"]
            block = {"type": "tool_use", "id": said.get("id", ""), "name": function.get("name", "")}
            events += self._begin(kind, block | {"input": {}})
            self._called = True
            if arguments := function.get("arguments"):
                events += self._delta({"type": "input_json_delta", "partial_json": arguments})
        return events

    def _begin(self, kind: str | int, block: dict[str, Any]) -> bytes:
        if self._open == kind:
            return b""
        events = self._close()
        self._open = kind
        self._blocks += 1
        return events + _event("content_block_start", index=self._blocks - 1, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._blocks - 1, delta=delta)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _event("content_block_stop", index=self._blocks - 1)

    def _stop_reason(self) -> str:
        # A function that was asked for by name ends with `stop` in a chat.
        reason = "tool_calls" if self._called and self._finish == "stop" else self._finish
        return _STOP_REASONS.get(reason, "end_turn")

    def _usage(self) -> dict[str, int]:
        usage = self._answer.usage
        return {
            "input_tokens": usage.get("prompt_tokens", 0),
            "output_tokens": usage.get("completion_tokens", 0),
        }

    def _message(self, content: list[dict[str, Any]], stop_reason: str | None) -> dict[str, Any]:
        return {
            "id": f"msg_{self._answer.id.partition('-')[2]}",
            "type": "message",
            "role": "assistant",
            "model": self._answer.model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": None,
            "usage": self._usage(),
        }


def _arguments(text: str) -> dict[str, Any]:
    """Arguments as an object: none if they were cut off, which the stop reason tells."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _event(kind: str, **content: Any) -> bytes:
    return sse.encode({"type": kind, **content}, kind)
