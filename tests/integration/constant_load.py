"""A constant load by the official client, and what became of each request."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import openai


@dataclass
class Load:
    """So many clients, each with one request after the other."""

    client: openai.AsyncOpenAI
    model: str
    stream: bool = False
    clients: int = 6
    max_tokens: int = 20
    seconds: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    #: Failures before the client had anything.
    failed: list[str] = field(default_factory=list)
    #: Streams that broke off.
    broken: list[str] = field(default_factory=list)

    @property
    def ended(self) -> int:
        """Requests that have ended, well or not."""
        return len(self.texts) + len(self.failed) + len(self.broken)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        """Send while the block runs, and until there were several requests for each client.

        What has begun at its end is waited for.
        """
        over = asyncio.Event()

        async def one_after_the_other() -> None:
            while not over.is_set():
                await self._one()

        tasks = [asyncio.create_task(one_after_the_other()) for _ in range(self.clients)]
        try:
            yield self
            while self.ended <= 2 * self.clients:  # noqa: ASYNC110 - nobody tells.
                await asyncio.sleep(0.05)
        finally:
            over.set()
            await asyncio.gather(*tasks)

    async def _one(self) -> None:
        start, text, begun = time.monotonic(), "", False
        messages: Any = [{"role": "user", "content": "Say something."}]
        asked: dict[str, Any] = {"model": self.model, "messages": messages, "max_tokens": self.max_tokens}
        try:
            if self.stream:
                async for chunk in await self.client.chat.completions.create(**asked, stream=True):
                    begun = True
                    text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            else:
                answer = await self.client.chat.completions.create(**asked)
                text = answer.choices[0].message.content or ""
        except Exception as error:  # Whatever a client can meet.
            (self.broken if begun else self.failed).append(f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.1)
        else:
            self.texts.append(text)
            self.seconds.append(time.monotonic() - start)
