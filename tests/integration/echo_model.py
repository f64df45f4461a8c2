"""A model application without an engine: it speaks the handle contract, and fails where it is told to.

A real engine cannot be made to break off in the middle; what a batch does then is tested with this one.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import Any

from ray import serve


@serve.deployment(name="model", max_ongoing_requests=100, ray_actor_options={"num_cpus": 0.1})
class EchoModel:
    """Answers with the last message, a word a chunk; instructions stand in the message itself."""

    def __init__(self) -> None:
        self.asked: dict[str, int] = {}
        self.bodies: list[dict[str, Any]] = []
        self.running = self.most = 0

    async def stream(self, request: dict[str, Any]) -> AsyncIterator[bytes]:
        body, row = request["body"], request["request_id"]
        self.asked[row] = self.asked.get(row, 0) + 1
        self.bodies.append(body)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0.02)
            async for item in self._events(body["messages"][-1]["content"], self.asked[row]):
                yield item
        finally:
            self.running -= 1

    async def _events(self, text: str, attempt: int) -> AsyncIterator[bytes]:
        if "KILL" in text:
            os._exit(1)
        if "FAIL-ONCE" in text and attempt == 1:
            yield b'event: error\ndata: {"status": 503, "message": "busy", "type": "server_error"}\n\n'
            return
        if "FAIL-ALWAYS" in text:
            yield b'event: error\ndata: {"status": 400, "message": "The prompt is too long."}\n\n'
            return
        if "LEAK" in text:
            text = "The key is AKIAIOSFODNN7EXAMPLE and mail goes to someone@example.org now"
        for word in text.split(" "):
            yield _chunk({"content": word + " "})
            if "BREAK-OFF" in text:
                return
        if "HANG" in text or ("PAUSE-ONCE" in text and attempt == 1):
            await asyncio.sleep(60)
        usage = {"prompt_tokens": 7, "completion_tokens": len(text.split()), "total_tokens": 7}
        last = _chunk({}, "stop")
        yield (
            last + b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n"
        )

    async def seen(self) -> tuple[dict[str, int], list[dict[str, Any]], int]:
        """Attempts by request id, the bodies, and how many ran at a time."""
        return self.asked, self.bodies, self.most


def _chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    body = {"id": "x", "object": "chat.completion.chunk", "choices": [choice]}
    return f"data: {json.dumps(body)}\n\n".encode()


app = EchoModel.bind()
