"""Request bodies: exactly the fields that may reach the model.

Fields are an allow-list. A field that nobody here knows could carry text past the guards, or (vLLM's token
ids, prompt logprobs, chat templates) text out past them, so it is refused, as OpenAI's API refuses it.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from deployments.gateway.errors import ApiError, from_validation
from deployments.gateway.templates import PromptReference


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StreamOptions(_Part):
    """OpenAI's ``stream_options``."""

    include_usage: bool = False


class Body(_Part):
    """What both endpoints share: OpenAI's fields, and those of vLLM's that only steer sampling."""

    model: str = Field(min_length=1, max_length=256)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1)
    max_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    response_format: dict[str, Any] | None = None
    user: str | None = None
    # vLLM's.
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    structured_outputs: dict[str, Any] | None = None
    # OpenAI's own bookkeeping: accepted, and meaningless here.
    metadata: dict[str, str] | None = Field(None, exclude=True)
    store: bool | None = Field(None, exclude=True)
    service_tier: str | None = Field(None, exclude=True)
    safety_identifier: str | None = Field(None, exclude=True)
    prompt_cache_key: str | None = Field(None, exclude=True)

    @property
    def choices(self) -> int:
        """How many answers are asked for."""
        return self.n

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage


#: What links a tool's result to its call; templates write it out, so it must have no room for prose.
ToolCallId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class FunctionCall(_Part):
    """A call that the model made earlier."""

    name: str
    arguments: str


class ToolCall(_Part):
    """One of a message's tool calls."""

    id: ToolCallId
    type: Literal["function"] = "function"
    function: FunctionCall


class TextPart(_Part):
    """A piece of a message; other kinds cannot be judged by text guards and are refused."""

    type: Literal["text"]
    text: str


class Message(_Part):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: ToolCallId | None = None
    # OpenAI's client sends back what it got.
    function_call: None = Field(None, exclude=True)
    audio: None = Field(None, exclude=True)
    annotations: list[Any] | None = Field(None, exclude=True)

    @field_validator("content")
    @classmethod
    def _one_text(cls, value: str | list[TextPart] | None) -> str | None:
        """Parts as the engine joins them: what a template puts together must be judged together."""
        return "\n".join(part.text for part in value) if isinstance(value, list) else value


class ChatBody(Body):
    """``POST /v1/chat/completions``."""

    #: A published template, filled and put before the messages.
    prompt: PromptReference | None = None
    messages: list[Message]
    max_completion_tokens: int | None = Field(None, ge=0)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    # Numbers and switches only: a string could bring text past the guards into the template.
    chat_template_kwargs: dict[str, bool | int | float] | None = None

    @field_validator("messages")
    @classmethod
    def _says_something(cls, value: list[Message], info: ValidationInfo) -> list[Message]:
        if not value and info.data.get("prompt") is None:
            raise ValueError("an empty list holds no message")
        return value


class CompletionBody(Body):
    """``POST /v1/completions``."""

    prompt: str | list[str]
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=5)
    suffix: str | None = None

    @property
    def choices(self) -> int:
        """How many answers are asked for."""
        return self.n * (len(self.prompt) if isinstance(self.prompt, list) else 1)

    @field_validator("prompt", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        if isinstance(value, list):
            if not value:
                raise ValueError("an empty list holds no prompt")
            if not all(isinstance(item, str) for item in value):
                raise ValueError("token ids pass no guard; send text")
        return value


def read_json(raw: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises ApiError 400."""
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        raise ApiError(400, "We could not parse the JSON body of your request.") from None
    if not isinstance(content, dict):
        raise ApiError(400, "The JSON body of your request must be an object.")
    return content


def parse(raw: bytes, kind: type[Body]) -> Body:
    """The typed body. Raises ApiError 400 naming the first thing that is wrong."""
    try:
        return kind.model_validate(read_json(raw))
    except ValidationError as error:
        raise from_validation(error) from None
