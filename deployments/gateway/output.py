"""Output guards on a stream of chunks: what leaves has been judged, whatever field it stands in.

Every text of every choice (content, reasoning, refusal, each tool call's name and arguments) is judged apart
(:class:`GuardedText`) and held back as far as a finding could still span. A choice that is blocked
ends with ``finish_reason: content_filter``.

Log probabilities spell the text out token by token, and alternatives to it. So when the policy can redact
or block output, they are held until their choice has ended, and given only if nothing in it was changed.
Alternatives (``top_logprobs``) were never judged, so under such a policy they are left out: an empty list
in chat, only the sampled token in completions.

What a request's reversible redactions cut out is put back last: guards judge what the model itself said.

A tool call's name is held until its arguments begin, and judged whole. Ids, roles and finish reasons that
are not of the known form are replaced.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import Any

from cluster.contracts import Action, Direction, Finding, Segment
from deployments.gateway.errors import guard_unavailable
from deployments.gateway.guarded_text import GuardedText
from validation.guards import (
    GuardContext,
    GuardEngine,
    Placeholders,
    blocking_reason,
    only_failed,
)

_TEXTS = {
    "content": "assistant",
    "reasoning": "reasoning",
    "reasoning_content": "reasoning",
    "refusal": "refusal",
}
_TOOL_CALL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FINISH_REASONS = frozenset(
    {"stop", "length", "tool_calls", "function_call", "content_filter", "abort", "error"}
)


def can_change_output(engine: GuardEngine) -> bool:
    """Whether the policy may redact or block what the model says."""
    return any(guard.on in (Direction.OUTPUT, "both") and guard.changes for guard in engine.policy.guards)


class GuardedChoice:
    """One choice of an answer, chat or text completion."""

    def __init__(
        self,
        index: int,
        engine: GuardEngine,
        context: GuardContext,
        placeholders: Placeholders | None,
        at_once: bool,
    ) -> None:
        self.index = index
        self.finished = False
        self.blocked = False
        self._engine = engine
        self._context = context
        self._placeholders = placeholders
        self._at_once = at_once
        #: By path within the choice.
        self._texts: dict[str, GuardedText] = {}
        #: The path that the model is at.
        self._at = ""
        #: Id and name so far of each tool call whose arguments have not begun; None once they have.
        self._heads: dict[int, dict[str, str] | None] = {}
        self._hold_logprobs = can_change_output(engine)
        self._logprobs: dict[str, Any] | None = None

    @property
    def findings(self) -> list[Finding]:
        """Everything that was seen so far."""
        return [finding for text in self._texts.values() for finding in text.findings]

    async def feed(self, choice: dict[str, Any]) -> dict[str, Any] | None:
        """What may leave of one chunk's choice; None if that is nothing."""
        if self.finished:
            return None
        reason = choice.get("finish_reason")
        if reason is not None and reason not in _FINISH_REASONS:
            reason = "stop"
        chat = "delta" in choice
        out: dict[str, Any] = {}
        if chat:
            await self._delta(choice["delta"] or {}, out)  # Some servers end with none.
        elif text := await self._text("text", "assistant", choice.get("text")):
            out["text"] = text
        logprobs = self._take_logprobs(choice.get("logprobs"))
        if reason is not None and not self.blocked:
            await self._flush(out)
            logprobs = self._logprobs_at_end() if self._hold_logprobs else logprobs
        if self.blocked:
            reason, logprobs = "content_filter", None
        if reason is None and not out:
            return None
        self.finished = reason is not None
        body = {"delta": out} if chat else {"text": out.get("text", "")}
        return {"index": self.index, **body, "logprobs": logprobs, "finish_reason": reason}

    async def _delta(self, delta: dict[str, Any], out: dict[str, Any]) -> None:
        if delta.get("role"):
            out["role"] = "assistant"
            out["content"] = ""
        for field, role in _TEXTS.items():
            if delta.get(field):
                await self._go_to(field, out)
            if text := await self._text(field, role, delta.get(field)):
                out[field] = text
        for call in delta.get("tool_calls") or []:
            number, function = call.get("index", 0), call.get("function") or {}
            await self._go_to(_tool(number, "arguments"), out)
            head = self._heads.setdefault(number, {"id": "", "name": ""})
            if head is not None:  # Whatever comes after the arguments began is no head any more.
                head["id"] = head["id"] or call.get("id") or ""
                head["name"] += function.get("name") or ""
            if not (arguments := function.get("arguments")):
                continue
            await self._head(number, out)
            if text := await self._text(_tool(number, "arguments"), "tool_call", arguments):
                _tool_delta(out, number, {}, {"arguments": text})

    async def _go_to(self, path: str, out: dict[str, Any]) -> None:
        """The model is at that text now: the tail of the one before it may go."""
        left, self._at = self._at, path
        if left == path or self.blocked:
            return
        if left.startswith("tool_calls"):
            await self._head(_tool_path(left)[0], out)
        if left in self._texts:
            self._add(left, await self._texts[left].pause(), out)

    def _add(self, path: str, text: str, out: dict[str, Any]) -> None:
        """Put a tail into a delta, unless its choice is blocked."""
        self.blocked = self.blocked or self._texts[path].blocked
        if not text or self.blocked:
            return
        if path.startswith("tool_calls"):
            number, field = _tool_path(path)
            _tool_delta(out, number, {}, {field: text})
        else:
            out[path] = out.get(path, "") + text

    async def _head(self, number: int, out: dict[str, Any]) -> None:
        """Judge the name of a tool call, whole, and let it go with the call's id."""
        head, self._heads[number] = self._heads.get(number), None
        if head is None or self.blocked:
            return
        name = await self._text(_tool(number, "name"), "tool_call", head["name"], whole=True)
        if not self.blocked:
            call_id = await self._call_id(head["id"])
            _tool_delta(out, number, {"id": call_id, "type": "function"}, {"name": name})

    async def _call_id(self, call_id: str) -> str:
        """The id of a tool call, or another for one that guards object to: it may come from the model."""
        if _TOOL_CALL_ID.fullmatch(call_id):
            segment = Segment(text=call_id, direction=Direction.OUTPUT, role="tool_call")
            if (await self._engine.judge(segment, self._context)).text == call_id:
                return call_id
        return f"call_{uuid.uuid4().hex[:24]}"

    async def _text(self, path: str, role: str, text: str | None, *, whole: bool = False) -> str:
        if not text or self.blocked:
            return ""
        if path not in self._texts:
            self._texts[path] = GuardedText(
                self._engine,
                self._context,
                role=role,
                path=f"choices[{self.index}].{path}",
                placeholders=self._placeholders,
                at_once=self._at_once,
            )
        judged = self._texts[path]
        released = await judged.feed(text)
        if whole:
            released += await judged.end()
        self.blocked = self.blocked or judged.blocked
        return released

    async def _flush(self, out: dict[str, Any]) -> None:
        for number in self._heads:
            await self._head(number, out)
        for path, text in self._texts.items():
            self._add(path, await text.end(), out)

    def _take_logprobs(self, logprobs: dict[str, Any] | None) -> dict[str, Any] | None:
        if not self._hold_logprobs or not logprobs:
            return logprobs
        if self._logprobs is None:
            self._logprobs = {}
        for name, values in _without_alternatives(logprobs).items():
            if isinstance(values, list):
                self._logprobs.setdefault(name, []).extend(values)
            else:
                self._logprobs.setdefault(name, values)
        return None

    def _logprobs_at_end(self) -> dict[str, Any] | None:
        changed = any(finding.action is not Action.FLAG and not finding.shadow for finding in self.findings)
        return None if changed else self._logprobs


def _without_alternatives(logprobs: dict[str, Any]) -> dict[str, Any]:
    if "tokens" in logprobs:  # Text completions.
        sampled = zip(logprobs["tokens"] or [], logprobs.get("token_logprobs") or [], strict=False)
        return logprobs | {"top_logprobs": [{token: value} for token, value in sampled]}
    return {
        name: [entry | {"top_logprobs": []} for entry in entries] if isinstance(entries, list) else entries
        for name, entries in logprobs.items()
    }


def _tool(number: int, field: str) -> str:
    return f"tool_calls[{number}].function.{field}"


def _tool_path(path: str) -> tuple[int, str]:
    return int(path[len("tool_calls[") : path.index("]")]), path.rpartition(".")[2]


def _tool_delta(out: dict[str, Any], number: int, head: dict[str, Any], function: dict[str, str]) -> None:
    """Put a piece of a tool call into a delta, joining what is in it already."""
    calls: list[dict[str, Any]] = out.setdefault("tool_calls", [])
    call = next((call for call in calls if call["index"] == number), None)
    if call is None:
        call = {"index": number, "function": {}}
        calls.append(call)
    call.update({key: value for key, value in head.items() if value})
    for field, text in function.items():
        call["function"][field] = call["function"].get(field, "") + text


class GuardedAnswer:
    """All choices of one answer."""

    def __init__(
        self,
        engine: GuardEngine,
        context: GuardContext,
        expected: int,
        *,
        placeholders: Placeholders | None = None,
        at_once: bool = False,
    ) -> None:
        """Begin an answer.

        :param expected: how many choices it will have.
        :param placeholders: what its request had redacted reversibly.
        :param at_once: whether text may leave before it was judged, where the policy lets it.
        """
        self._make: Callable[[int], GuardedChoice] = lambda index: GuardedChoice(
            index, engine, context, placeholders, at_once
        )
        self._choices: dict[int, GuardedChoice] = {}
        self._expected = expected

    @property
    def findings(self) -> list[Finding]:
        """Everything that was seen so far."""
        return [finding for choice in self._choices.values() for finding in choice.findings]

    @property
    def cut_short(self) -> bool:
        """Whether nothing more may come though the model goes on: every choice ended, one by a block."""
        choices = self._choices.values()
        return (
            len(choices) >= self._expected
            and all(choice.finished for choice in choices)
            and any(choice.blocked for choice in choices)
        )

    async def feed(self, chunk: dict[str, Any]) -> list[dict[str, Any]]:
        """The choices that may leave of one chunk. Raises ApiError 503 if a guard could not judge one."""
        released = []
        for choice in chunk.get("choices") or []:
            index = choice.get("index", 0)
            if index not in self._choices:
                self._choices[index] = self._make(index)
            if (out := await self._choices[index].feed(choice)) is not None:
                released.append(out)
            if self._choices[index].blocked and only_failed(self._choices[index].findings):
                raise guard_unavailable(blocking_reason(self._choices[index].findings))
        return released

    def unfinished(self) -> bool:
        """Whether the model stopped before every choice ended."""
        return len(self._choices) < self._expected or not all(c.finished for c in self._choices.values())
