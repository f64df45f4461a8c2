"""The APIs that clients may speak. All of them lead into the same steps: a dialect only reads and writes.

A dialect reads a request's bytes as one of the typed bodies that the pipeline knows, and writes what the
pipeline releases, judged and redacted, in its API's own words. It sees no text before the guards did.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeVar

from cluster import sse
from cluster.contracts.request import Body, ChatBody, CompletionBody, EmbeddingBody
from deployments.gateway.answer import Answer
from deployments.gateway.body import parse
from deployments.gateway.errors import ApiError

#: The engines' handlers.
Endpoint = Literal["chat", "completions", "embeddings"]
TypedBody = TypeVar("TypedBody", bound=Body | EmbeddingBody, covariant=True)


class Writer(Protocol):
    """Writes one answer."""

    def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The body for who asked for no stream, of OpenAI's whole answer."""
        ...

    def feed(self, chunks: list[dict[str, Any]]) -> bytes:
        """Server-sent events for OpenAI's chunks; may be empty."""
        ...

    def end(self) -> bytes:
        """The last events of a stream that went well."""
        ...

    def failed(self, error: ApiError) -> bytes:
        """The last events of a stream that broke; its status is sent already."""
        ...


def in_order(delta: dict[str, Any], at: str | int | None) -> list[tuple[str | int, str | dict[str, Any]]]:
    """The texts of a delta by field and its tool calls by number, for APIs that end one item with the next.

    :param at: the item that is open: what guards held of it comes with what begins the next, and before it.
    """
    parts: list[tuple[str | int, str | dict[str, Any]]]
    parts = [(field, delta[field]) for field in ("content", "refusal") if delta.get(field)]
    parts += [(call.get("index", n), call) for n, call in enumerate(delta.get("tool_calls") or [])]
    return sorted(parts, key=lambda part: part[0] != at)


class Reader(Protocol[TypedBody]):
    """What reads one request, and tells what went wrong with it."""

    #: What records and reports call its API.
    name: str
    #: Which of the engines' handlers answers.
    endpoint: Endpoint

    def read(self, raw: bytes) -> TypedBody:
        """The typed body. Raises ApiError 400 for what is wrong, or not to be had."""
        ...

    def error(self, error: ApiError, request_id: str) -> dict[str, Any]:
        """The body of an answer that is an error."""
        ...


class Dialect(Reader[Body], Protocol):
    """One request in one of the APIs that generate."""

    def writer(self, answer: Answer) -> Writer:
        """What writes the answer to the request that was read."""
        ...


class OpenAi:
    """Chat and text completions: what the pipeline makes is what leaves."""

    def __init__(self, endpoint: Literal["chat", "completions"]) -> None:
        self.name: str = endpoint
        self.endpoint: Endpoint = endpoint

    def read(self, raw: bytes) -> Body:
        """See :class:`Dialect`."""
        return parse(raw, ChatBody if self.endpoint == "chat" else CompletionBody)

    def writer(self, answer: Answer) -> Writer:
        """See :class:`Dialect`."""
        return _AsItIs()

    def error(self, error: ApiError, request_id: str) -> dict[str, Any]:
        """See :class:`Dialect`."""
        return error.body


class _AsItIs:
    def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        return answer

    def feed(self, chunks: list[dict[str, Any]]) -> bytes:
        return b"".join(map(sse.encode, chunks))

    def end(self) -> bytes:
        return sse.DONE

    def failed(self, error: ApiError) -> bytes:
        return sse.encode(error.body)  # Clients raise on this event.


class Embeddings:
    """Vectors of texts. They are no text, so nothing of them is judged; what they are made of is."""

    name = "embeddings"
    endpoint: Endpoint = "embeddings"

    def read(self, raw: bytes) -> EmbeddingBody:
        """See :class:`Dialect`."""
        return parse(raw, EmbeddingBody)

    def error(self, error: ApiError, request_id: str) -> dict[str, Any]:
        """See :class:`Dialect`."""
        return error.body
