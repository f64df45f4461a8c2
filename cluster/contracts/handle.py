"""What gateway and model replica say to each other.

The gateway calls :meth:`ModelReplica.stream` on a Serve handle with a plain dict and gets a stream of
bytes. Each item is one or more complete server-sent events. The first token comes at once; later ones
are gathered in the replica for a few milliseconds. A failure is the last item: the JSON of an
:class:`UpstreamError` behind ``event: error``. Closing the stream aborts the generation.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal, Protocol

from pydantic import Field

from cluster.contracts.base import Contract
from cluster.contracts.principal import Principal

#: One or more complete server-sent events.
StreamItem = bytes


class UpstreamRequest(Contract):
    """One request to an engine, plain enough to cross a handle as a dict."""

    request_id: str = Field(description="x-request-id; the engine logs it too.")
    endpoint: Literal["chat", "completions", "embeddings"] = Field(
        description="Which of the engine's handlers."
    )
    body: dict[str, Any] = Field(description="The OpenAI request body, with the engine's model name in it.")
    principal: Principal = Field(description="Who asks.")
    output_bound: int | None = Field(
        None,
        ge=1,
        description="Most tokens of each answer of a chat that names no number. It asks for none: unlike "
        "one that the body names, it may exceed what the model's context has room for.",
        exclude_if=lambda bound: bound is None,  # A replica of before knows no such field.
    )


class UpstreamError(Contract):
    """A failure in the replica, in the shape of an OpenAI error."""

    status: int = Field(ge=400, le=599, description="HTTP status that the gateway answers with.")
    message: str = Field(description="One sentence, free of internals.")
    type: str = Field("server_error", description="OpenAI's error type.")
    param: str | None = Field(None, description="The parameter at fault.")
    code: str | None = Field(None, description="OpenAI's error code.")


class ModelReplica(Protocol):
    """The one method of a model application that the gateway calls."""

    def stream(self, request: dict[str, Any]) -> AsyncIterator[StreamItem]:
        """Generate. ``request`` is an :class:`UpstreamRequest` as a dict."""
        ...
