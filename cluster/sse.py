"""Server-sent events, as OpenAI's API and the handle protocol use them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from cluster.contracts import UpstreamError

DONE = b"data: [DONE]\n\n"


class Event(NamedTuple):
    """One event: its name (empty for OpenAI's own) and its data."""

    name: str
    data: str


def encode(body: Any, event: str = "") -> bytes:
    """One event with JSON data."""
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def decode(event: str) -> Any:
    """The JSON data of one event of one line."""
    return json.loads(event.partition("data:")[2])


def encode_error(error: UpstreamError) -> bytes:
    """The last item of a stream that failed."""
    return encode(error.model_dump(), "error")


class EventReader:
    """Cuts a stream of bytes into events, wherever the bytes were cut before."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that ``data`` completes. Comments and unknown fields are skipped."""
        self._rest = (self._rest + data).replace(b"\r\n", b"\n")
        *blocks, self._rest = self._rest.split(b"\n\n")
        for block in blocks:
            name, lines = "", []
            for line in block.decode().split("\n"):
                field, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if field == "event":
                    name = value
                elif field == "data":
                    lines.append(value)
            if lines:
                yield Event(name, "\n".join(lines))
