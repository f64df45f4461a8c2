"""An engine without a model: it emits tokens at a stated rate, by the handle protocol and over HTTP.

    python -m tests.paced_engine --port 9000 [--pace-ms 20]

What stands around an engine is measured, and broken, with this one: its own share of the work is next to
nothing, and however busy the machine is, a token is due when it is due. Both doors emit the very same events,
those of vLLM; as a Serve application they are gathered as the real replica gathers them.
"""

# No postponed annotations here: Serve reads the type of build's argument.

import argparse
import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

WORDS = "The answer is written in plain words , and there is no more to it than that ."


class PacedArgs(BaseModel):
    """``args`` of the application."""

    model_config = ConfigDict(extra="forbid")

    pace_ms: float = Field(20.0, ge=0, description="Milliseconds between a stream's tokens.")
    gather_ms: float = Field(20.0, ge=0, description="As a model application's.")
    words: str = Field(WORDS, description="What it says, word by word, again and again: a word a token.")
    num_replicas: int = Field(1, ge=1)


async def paced_events(body: dict[str, Any], args: PacedArgs) -> AsyncIterator[bytes]:
    """The answer to an OpenAI body of a chat, as events; ``max_tokens`` says how long it is."""
    words = [f"{word} " for word in args.words.split(" ")]
    tokens = body.get("max_completion_tokens") or body.get("max_tokens") or 16
    prompt = sum(len(str(message.get("content")).split()) for message in body["messages"])
    options = body.get("stream_options") or {}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}

    def event(choices: list[dict[str, Any]], done: int, with_usage: bool) -> bytes:
        chunk: dict[str, Any] = head | {"choices": choices}
        if with_usage:
            usage = {"prompt_tokens": prompt, "completion_tokens": done, "total_tokens": prompt + done}
            chunk["usage"] = usage
        return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"

    running = bool(options.get("continuous_usage_stats"))

    def delta(delta: dict[str, Any], done: int, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event([choice], done, running)

    start = time.perf_counter()
    yield delta({"role": "assistant", "content": ""}, 0)
    for number in range(tokens):
        wait = start + number * args.pace_ms / 1000 - time.perf_counter()
        await asyncio.sleep(max(0.0, wait))
        last = number == tokens - 1
        yield delta({"content": words[number % len(words)]}, number + 1, "length" if last else None)
    if options.get("include_usage"):
        yield event([], tokens, True)
    yield b"data: [DONE]\n\n"


def build(args: PacedArgs) -> Any:
    """The Serve application: a deployment named as a model's, which speaks the handle protocol."""
    from ray import serve

    from deployments.gather import Pace, gather

    @serve.deployment(
        name="model",
        num_replicas=args.num_replicas,
        max_ongoing_requests=2048,
        ray_actor_options={"num_cpus": 0.1},
    )
    class PacedModel:
        def __init__(self) -> None:
            self._pace = Pace(args.gather_ms / 1000)
            self._open = 0

        async def stream(self, request: dict[str, Any]) -> AsyncIterator[bytes]:
            self._open += 1
            try:
                with self._pace.stream() as interval_s:
                    async for item in gather(paced_events(request["body"], args), interval_s):
                        yield item
            finally:
                self._open -= 1

        async def open_streams(self) -> int:
            return self._open

        async def pid(self) -> int:
            return os.getpid()

    return PacedModel.bind()


def http_app(args: PacedArgs) -> Any:
    """The same engine's own OpenAI-compatible server."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    async def chat(request: Request) -> Response:
        body = await request.json()
        events = paced_events(body, args)
        if body.get("stream"):
            return StreamingResponse(events, media_type="text/event-stream")
        chunks = [json.loads(event[6:]) async for event in events if event != b"data: [DONE]\n\n"]
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        message = {"role": "assistant", "content": text}
        tokens = len(chunks) - 1
        usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}
        return JSONResponse(chunks[0] | {"object": "chat.completion", "choices": [choice], "usage": usage})

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": []})

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", models, methods=["GET"]),
        ]
    )


def main() -> None:
    """Serve HTTP on loopback."""
    import uvicorn

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pace-ms", type=float, default=20.0)
    options = parser.parse_args()
    app = http_app(PacedArgs(pace_ms=options.pace_ms))
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
