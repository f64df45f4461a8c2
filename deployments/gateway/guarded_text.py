"""One text of an answer on its way out: judged as it comes, then given its originals back."""

from __future__ import annotations

from cluster.contracts import Action, Direction, Finding, Segment
from validation.guards import GuardContext, GuardEngine, Placeholders


class GuardedText:
    """The content of a choice, say, or the arguments of one of its tool calls.

    When the model goes on to another text, this one's tail is judged and leaves: clients take a text for
    complete when the next begins. If the model takes it up again, which it hardly does, what comes is held
    until its end, judged together with all before it, and must be faultless.
    """

    def __init__(
        self,
        engine: GuardEngine,
        context: GuardContext,
        *,
        role: str,
        path: str,
        placeholders: Placeholders | None,
        at_once: bool,
    ) -> None:
        self._engine = engine
        self._context = context
        self._like = Segment(text="", direction=Direction.OUTPUT, role=role, path=path)
        self._stream = engine.stream(context, role=role, path=path, at_once=at_once)
        self._restorer = placeholders.restorer(json=role == "tool_call") if placeholders else None
        self._paused = False
        self._said: list[str] = []
        self._again: list[str] = []
        self._more: list[Finding] = []
        self._refused = False

    @property
    def blocked(self) -> bool:
        """Whether its choice must end."""
        return self._stream.blocked or self._refused

    @property
    def findings(self) -> list[Finding]:
        """Everything that was seen so far."""
        return [*self._stream.findings, *self._more]

    async def feed(self, text: str) -> str:
        """Take the next piece; returns what may go out now."""
        (self._again if self._paused else self._said).append(text)
        if self._paused:
            return ""
        released = await self._stream.feed(text)
        return self._restorer.feed(released) if self._restorer else released

    async def pause(self) -> str:
        """The model goes on to another text; returns the tail of this one."""
        if self._paused:
            return ""
        self._paused = True
        released = await self._stream.flush()
        if self._restorer:
            released = self._restorer.feed(released) + self._restorer.flush()
        return released

    async def end(self) -> str:
        """The choice is complete; returns the rest."""
        if not self._again:
            return await self.pause()
        before, again = "".join(self._said), "".join(self._again)
        whole = self._like.model_copy(update={"text": before + again})
        self._more = [
            item for item in await self._engine.check(whole, self._context) if item.end > len(before)
        ]
        self._refused = any(item.action is not Action.FLAG and not item.shadow for item in self._more)
        if self._refused:
            return ""
        return self._restorer.feed(again) + self._restorer.flush() if self._restorer else again
