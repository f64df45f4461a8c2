"""Request bodies of OpenAI's API: exactly the fields that may reach a model, at the gateway and in a batch.

Fields are an allow-list. A field that nobody here knows could carry text past the guards, or (vLLM's token
ids, prompt logprobs, chat templates) text out past them, so it is refused, as OpenAI's API refuses it.
Types are JSON's own: ``"5"`` is no number.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

#: A number that engines hold in 32 bits: one that casts a larger one dies of it, with every other request.
Int32 = Annotated[int, Field(ge=0, lt=2**31)]
_TOOL_CALL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class RequestPart(BaseModel):
    """A part of a body: nothing in it is guessed, nothing is passed over."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(RequestPart):
    """OpenAI's ``stream_options``."""

    include_usage: bool = False
    # Pads OpenAI's own chunks; accepted, and meaningless here.
    include_obfuscation: bool | None = Field(None, exclude=True)


class JsonSchemaFormat(RequestPart):
    """The shape of an answer. What a model could read of it is judged as part of the prompt."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=False)

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(RequestPart):
    """OpenAI's ``response_format``."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("'json_schema' belongs to type 'json_schema', and that type needs it")
        return self


class Body(RequestPart):
    """What chat and text completions share: OpenAI's fields, and those of vLLM's that steer sampling."""

    model: str = Field(min_length=1, max_length=256)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1)
    max_tokens: Int32 | None = None
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], float] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    # vLLM's; clients send them by `extra_body`.
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: Int32 | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[Int32] | None = None
    bad_words: list[str] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    structured_outputs: dict[str, Any] | None = None
    # OpenAI's own bookkeeping: accepted, and meaningless here.
    metadata: dict[str, str] | None = Field(None, exclude=True)
    store: bool | None = Field(None, exclude=True)
    service_tier: str | None = Field(None, exclude=True)
    safety_identifier: str | None = Field(None, exclude=True)
    prompt_cache_key: str | None = Field(None, exclude=True)
    prompt_cache_retention: str | None = Field(None, exclude=True)

    @property
    def choices(self) -> int:
        """How many answers are asked for."""
        return self.n

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage


def _is_tool_call_id(value: str) -> str:
    if not _TOOL_CALL_ID.fullmatch(value):
        raise ValueError("it is not 1 to 64 letters, digits, '_' or '-'")
    return value


#: What links a tool's result to its call; templates write it out, so it must have no room for prose.
ToolCallId = Annotated[str, AfterValidator(_is_tool_call_id)]


class FunctionCall(RequestPart):
    """A call that the model made earlier."""

    name: str
    arguments: str
    # What the client's `.parse` adds to a call that it read.
    parsed_arguments: Any = Field(None, exclude=True)


class ToolCall(RequestPart):
    """One of a message's tool calls."""

    id: ToolCallId
    type: Literal["function"] = "function"
    function: FunctionCall
    # What the client's streaming helper leaves in a message that it put together.
    index: int | None = Field(None, exclude=True)


class TextPart(RequestPart):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class Message(RequestPart):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
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
    # What the client's `.parse` adds to a message that it read.
    parsed: Any = Field(None, exclude=True)

    @field_validator("content", mode="before")
    @classmethod
    def _one_text(cls, value: Any) -> Any:
        """Parts as the engine joins them: what a template puts together must be judged together."""
        if not isinstance(value, list):
            return value
        for part in value:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind != "text":
                raise ValueError(f"it holds a part that is no text ({kind!s:.40}), which no guard can judge")
        return "\n".join(TextPart.model_validate(part).text for part in value)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        said = self.tool_calls or self.refusal or self.reasoning or self.reasoning_content
        if self.content is None and not (self.role == "assistant" and said):
            raise ValueError("it has no content")
        return self


class Function(RequestPart):
    """A function that the model may call; its texts are judged as part of the prompt."""

    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(RequestPart):
    """One of the tools on offer."""

    type: Literal["function"]
    function: Function


class FunctionName(RequestPart):
    """Of one of the tools."""

    name: str


class NamedToolChoice(RequestPart):
    """This function, and no other."""

    type: Literal["function"]
    function: FunctionName


class PromptReference(RequestPart):
    """A published template, by name; a version is its number or an alias."""

    id: str = Field(min_length=1, max_length=256)
    version: str | int | None = None
    variables: dict[str, str | int | float] = Field(default_factory=dict)


class ChatBody(Body):
    """``POST /v1/chat/completions``."""

    #: Filled and put before the messages; of OpenAI's Responses API, and at home in a chat here too.
    prompt: PromptReference | None = None
    messages: list[Message]
    max_completion_tokens: Int32 | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    modalities: list[Literal["text"]] | None = Field(None, exclude=True)
    # vLLM's.
    include_reasoning: bool | None = None
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


#: What a text completion that names no number has at most, at OpenAI's and in vLLM.
COMPLETION_TOKENS = 16


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
        return texts_only(value, "prompt")


def texts_only(value: Any, what: str) -> Any:
    """``value`` if it is a text or texts. Raises ValueError for token ids and for an empty list."""
    if isinstance(value, list):
        if not value:
            raise ValueError(f"an empty list holds no {what}")
        if not all(isinstance(item, str) for item in value):
            raise ValueError("token ids pass no guard; send text")
    return value


#: Of one request for embeddings, as at OpenAI's.
MAX_INPUTS = 2048


class EmbeddingBody(RequestPart):
    """``POST /v1/embeddings``."""

    model: str = Field(min_length=1, max_length=256)
    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)
    user: str | None = None

    @property
    def inputs(self) -> list[str]:
        """All texts."""
        return [self.input] if isinstance(self.input, str) else self.input

    @field_validator("input", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        if isinstance(value, list) and len(value) > MAX_INPUTS:
            raise ValueError(f"at most {MAX_INPUTS} inputs are taken at once")
        if value == "" or (isinstance(value, list) and "" in value):
            raise ValueError("an empty text has no meaning to embed")
        return texts_only(value, "input")
