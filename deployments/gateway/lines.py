"""What an uploaded file must hold, line by line: JSON Lines of batch requests or of training examples.

Each line is checked as the endpoint that it is for would check it, so that a mistake shows at the upload,
with its line's number, and not hours later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.contracts.files import UploadPurpose
from cluster.contracts.request import Body, ChatBody, CompletionBody, EmbeddingBody, Message
from deployments.gateway.body import read_object
from deployments.gateway.errors import ApiError, from_validation

#: Endpoints of batch lines.
BATCH_BODIES: dict[str, type[Body | EmbeddingBody]] = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    "/v1/embeddings": EmbeddingBody,
}
_Check = Callable[[int, dict[str, Any]], None]
_Kind = TypeVar("_Kind", bound=BaseModel)


class LineError(ApiError):
    """A line that cannot be used: 400, with the line's number in the message."""

    def __init__(self, line: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(400, f"Line {line}: {message}", code=code, param=param or "file")
        self.line = line


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid")


class BatchLine(_Line):
    """One request of a batch."""

    custom_id: str = Field(min_length=1, max_length=512)
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


class TrainingMessage(Message):
    """A message of a training example."""

    weight: Literal[0, 1] | None = None


class SupervisedLine(_Line):
    """An example to imitate."""

    messages: list[TrainingMessage] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None


class _Answer(TrainingMessage):
    role: Literal["assistant"]


class _Asked(_Line):
    messages: list[TrainingMessage] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None


class PreferenceLine(_Line):
    """A better and a worse answer (method ``dpo``)."""

    input: _Asked
    preferred_output: Annotated[list[_Answer], Field(min_length=1)]
    non_preferred_output: Annotated[list[_Answer], Field(min_length=1)]


@dataclass(frozen=True)
class LineLimits:
    """How much one file may hold."""

    lines: int
    line_bytes: int


@dataclass(frozen=True)
class Checked:
    """What a good file holds."""

    lines: int
    #: Of a batch: the endpoint and the model of all lines.
    endpoint: str | None
    model: str | None


def check_lines(file: BinaryIO, purpose: UploadPurpose, limits: LineLimits) -> Checked:
    """Check every line from where ``file`` stands. Raises LineError, ApiError."""
    same = dict[str, str]()
    check = _batch_check(same) if purpose == "batch" else _training_check()
    count = 0
    for number, content in _objects(file, limits):
        check(number, content)
        count = number
    if not count:
        raise ApiError(400, "The file is empty.", param="file", code="empty_file")
    return Checked(count, same.get("url"), same.get("model"))


def _objects(file: BinaryIO, limits: LineLimits) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON object of each line, with the line's number; empty lines are allowed at the end only."""
    number, empty = 0, 0
    # One byte more than is allowed tells a line that is too long from one that just fits.
    while line := file.readline(limits.line_bytes + 2):
        number += 1
        if len(line.rstrip(b"\r\n")) > limits.line_bytes:
            raise LineError(number, f"it is longer than {limits.line_bytes} bytes.", "line_too_long")
        if not line.strip():
            empty = empty or number
            continue
        if empty:
            raise LineError(empty, "it is empty.", "invalid_json_line")
        if number > limits.lines:
            raise LineError(number, f"a file may have at most {limits.lines} lines.", "too_many_lines")
        try:
            content = read_object(line)
        except ApiError:
            raise LineError(number, "it is no JSON object in UTF-8.", "invalid_json_line") from None
        yield number, content


def _batch_check(same: dict[str, str]) -> _Check:
    """For lines of one batch: custom ids differ, url and model do not; these are put into ``same``."""
    ids = dict[str, int]()

    def check(number: int, content: dict[str, Any]) -> None:
        line = _parsed(number, BatchLine, content)
        if (before := ids.setdefault(line.custom_id, number)) != number:
            raise LineError(
                number, f"its custom_id is that of line {before}.", "duplicate_custom_id", "custom_id"
            )
        kind = BATCH_BODIES.get(line.url)
        if kind is None:
            known = ", ".join(BATCH_BODIES)
            raise LineError(number, f"'{line.url}' is no endpoint of a batch: {known}.", "invalid_url", "url")
        said = {name: value for name, value in line.body.items() if value is not None}  # As read_object.
        body = _parsed(number, kind, said, "body")
        if isinstance(body, Body) and body.stream:
            raise LineError(number, "a batch does not stream.", "invalid_value", "body.stream")
        if not body.model.isprintable():  # No model is called so, and PostgreSQL takes no NUL.
            raise LineError(number, "its model is no name.", "invalid_value", "body.model")
        for name, value in (("url", line.url), ("model", body.model)):
            if same.setdefault(name, value) != value:
                raise LineError(
                    number,
                    f"its {name} is '{value}' and that of the lines before '{same[name]}': a batch has one.",
                    f"mismatched_{name}",
                    "url" if name == "url" else "body.model",
                )

    return check


def _training_check() -> _Check:
    """For lines of one training file: all are examples of one kind, and each holds an answer."""
    first = list[type[_Line]]()

    def check(number: int, content: dict[str, Any]) -> None:
        kind = PreferenceLine if "preferred_output" in content else SupervisedLine
        if not first:
            first.append(kind)
        if kind is not first[0]:
            raise LineError(
                number, "messages and preferences do not go together in one file.", "mixed_examples"
            )
        line = _parsed(number, kind, content)
        if isinstance(line, SupervisedLine) and not any(
            message.role == "assistant" and message.weight != 0 for message in line.messages
        ):
            raise LineError(number, "it has no assistant message to learn.", "invalid_value", "messages")

    return check


def _parsed(number: int, kind: type[_Kind], content: dict[str, Any], where: str = "") -> _Kind:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        told = from_validation(error, where)
        raise LineError(number, told.message, told.code or "invalid_value", told.param) from None
