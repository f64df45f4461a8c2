"""OpenAI's Responses API, as a translation to and from the one chat request.

What a chat request cannot say is refused by name: nothing is stored, so there is no ``previous_response_id``,
and tools that run on a server (web search, code, files, MCP) are not to be had. Reasoning is not shown.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from cluster.contracts.request import Body, ChatBody, PromptReference, RequestPart, ToolCallId
from deployments.gateway.answer import Answer
from deployments.gateway.body import read_object, typed
from deployments.gateway.dialect import Endpoint, Writer
from deployments.gateway.errors import ApiError
from deployments.gateway.response_events import ResponseWriter


class _InputText(RequestPart):
    type: Literal["input_text"]
    text: str


class _OutputText(RequestPart):
    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    # What the client's `.parse` and `.stream` add to a text that they read; it goes no further.
    parsed: Any = Field(None, exclude=True)


class _Refusal(RequestPart):
    type: Literal["refusal"]
    refusal: str


class _Item(RequestPart):
    id: str | None = None
    status: str | None = None


class _Message(_Item):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Annotated[_InputText | _OutputText | _Refusal, Field(discriminator="type")]]
    phase: str | None = None


class _FunctionCall(_Item):
    type: Literal["function_call"]
    call_id: ToolCallId
    name: str
    arguments: str
    # As above.
    parsed_arguments: Any = Field(None, exclude=True)


class _FunctionCallOutput(_Item):
    type: Literal["function_call_output"]
    call_id: ToolCallId
    output: str | list[_InputText]


class _FunctionTool(RequestPart):
    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _ToolChoice(RequestPart):
    type: Literal["function"]
    name: str


class _Format(RequestPart):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class _Text(RequestPart):
    format: _Format | None = None


class _Reasoning(RequestPart):
    effort: str | None = None


class _StreamOptions(RequestPart):
    include_obfuscation: bool | None = None


class ResponsesBody(RequestPart):
    """``POST /v1/responses``, as far as it is to be had."""

    model: str
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None
    tools: list[_FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | _ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: _Text | None = None
    reasoning: _Reasoning | None = None
    metadata: dict[str, str] | None = None
    #: A published template; its messages stand before all others.
    prompt: PromptReference | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    # What they stand for is not to be had; their empty values are.
    store: Literal[False] | None = None
    background: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    include: Annotated[list[str], Field(max_length=0)] | None = None


_ITEMS: dict[str, type[_Item]] = {
    "message": _Message,
    "function_call": _FunctionCall,
    "function_call_output": _FunctionCallOutput,
}


class Responses:
    """See :class:`deployments.gateway.dialect.Dialect`."""

    name = "responses"
    endpoint: Endpoint = "chat"

    def __init__(self) -> None:
        self._asked: ResponsesBody | None = None

    def read(self, raw: bytes) -> Body:
        """The chat request that asks the same. Raises ApiError 400."""
        self._asked = typed(read_object(raw), ResponsesBody)
        return typed(_chat(self._asked), ChatBody)

    def writer(self, answer: Answer) -> Writer:
        """See the protocol."""
        assert self._asked is not None
        return ResponseWriter(self._asked.model_dump(by_alias=True), answer)

    def error(self, error: ApiError, request_id: str) -> dict[str, Any]:
        """OpenAI's errors, in the names of this API."""
        body = error.body
        told = body["error"]
        told["message"] = error.message.replace("max_completion_tokens", "max_output_tokens")
        if error.param == "max_completion_tokens":
            told["param"] = "max_output_tokens"
        elif (error.param or "").startswith("messages"):
            told["param"] = "input"
        return body


def _chat(body: ResponsesBody) -> dict[str, Any]:
    chat: dict[str, Any] = {
        "model": body.model,
        "messages": _messages(body),
        "stream": body.stream,
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "parallel_tool_calls": body.parallel_tool_calls if body.tools else None,
        "reasoning_effort": body.reasoning.effort if body.reasoning else None,
        "response_format": _response_format(body),
        "prompt": body.prompt.model_dump(exclude_unset=True) if body.prompt else None,
        "user": body.user,
        "safety_identifier": body.safety_identifier,
    }
    if body.tools:
        chat["tools"] = [
            {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}
            for tool in body.tools
        ]
        chat["tool_choice"] = (
            {"type": "function", "function": {"name": body.tool_choice.name}}
            if isinstance(body.tool_choice, _ToolChoice)
            else body.tool_choice
        )
    return {name: value for name, value in chat.items() if value is not None}


def _response_format(body: ResponsesBody) -> dict[str, Any] | None:
    shape = body.text.format if body.text else None
    if shape is None or shape.type == "text":
        return None
    if shape.type == "json_object":
        return {"type": "json_object"}
    schema = shape.model_dump(exclude={"type"}, exclude_none=True, by_alias=True)
    return {"type": "json_schema", "json_schema": schema}


def _messages(body: ResponsesBody) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    for index, item in enumerate(body.input):
        kind = _ITEMS.get(str(item.get("type", "message")))
        if kind is None:
            raise ApiError(
                400,
                f"Unsupported parameter: 'input[{index}]' is of type {item.get('type')!s:.40}, "
                f"and this gateway takes {', '.join(_ITEMS)}.",
                param=f"input[{index}].type",
                code="unsupported_parameter",
            )
        given = {name: value for name, value in item.items() if value is not None}
        _add(messages, typed(given, kind, f"input[{index}]"))
    return messages


def _add(messages: list[dict[str, Any]], item: _Item) -> None:
    match item:
        case _Message():
            parts = [item.content] if isinstance(item.content, str) else [_said(p) for p in item.content]
            messages.append({"role": item.role, "content": "\n".join(parts)})
        case _FunctionCall():
            # Calls that were made together belong to one message, after what was said before them.
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            call = {"name": item.name, "arguments": item.arguments}
            messages[-1].setdefault("tool_calls", []).append(
                {"id": item.call_id, "type": "function", "function": call}
            )
        case _FunctionCallOutput():
            output = item.output
            text = output if isinstance(output, str) else "\n".join(part.text for part in output)
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": text})


def _said(part: _InputText | _OutputText | _Refusal) -> str:
    return part.refusal if isinstance(part, _Refusal) else part.text
