"""However a model cuts its answer, in any of its fields: what leaves is what judging all of it gives."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.gateway.answer import Assembly
from deployments.gateway.output import GuardedAnswer
from tests.unit.guards.guard_texts import cuts, pieces, texts
from tests.unit.guards.test_guard_stream import ENGINES
from validation.guards import GuardContext, GuardEngine, judge_response

CONTEXT = GuardContext()
TEXT_FIELDS = ("content", "reasoning", "reasoning_content", "refusal")


@st.composite
def messages(draw: st.DrawFn) -> dict[str, Any]:
    """An answer's message with texts in some of the places for them."""
    fields = draw(st.lists(st.sampled_from(TEXT_FIELDS), unique=True, max_size=2))
    message: dict[str, Any] = {"role": "assistant"} | {field: draw(texts) for field in fields}
    arguments = [json.dumps({"a": text}) for text in draw(st.lists(texts, max_size=2))]
    if arguments:
        message["tool_calls"] = [
            {"id": f"c{i}", "type": "function", "function": {"name": "f", "arguments": text}}
            for i, text in enumerate(arguments)
        ]
    return message


def deltas(message: dict[str, Any], how: int | list[int]) -> list[dict[str, Any]]:
    """The message as a model streams it."""
    out: list[dict[str, Any]] = []
    for field in TEXT_FIELDS:
        out += [{field: piece} for piece in pieces(message.get(field, ""), how)]
    for number, call in enumerate(message.get("tool_calls", ())):
        head = {"index": number, "id": call["id"], "function": {"name": call["function"]["name"]}}
        out.append({"tool_calls": [head]})
        out += [
            {"tool_calls": [{"index": number, "function": {"arguments": piece}}]}
            for piece in pieces(call["function"]["arguments"], how)
        ]
    return out


def said(message: dict[str, Any]) -> dict[str, Any]:
    """What a message says, without the fields that are empty."""
    return {key: value for key, value in message.items() if value and key != "role"}


async def same(engine: GuardEngine, both: list[dict[str, Any]], how: int | list[int]) -> None:
    body = {"choices": [{"message": message, "finish_reason": "stop"} for message in both]}
    whole = await judge_response(engine, body, CONTEXT)
    guarded, assembly = GuardedAnswer(engine, CONTEXT, len(both), at_once=True), Assembly("chat")
    for index, message in enumerate(both):
        parts = [{"index": index, "delta": delta, "finish_reason": None} for delta in deltas(message, how)]
        for part in [*parts, {"index": index, "delta": {}, "finish_reason": "stop"}]:
            assembly.add(await guarded.feed({"choices": [part]}))
    assert not guarded.unfinished()
    for told, judged in zip(assembly.choices(), whole.body["choices"], strict=True):
        assert told["finish_reason"] == judged["finish_reason"]
        if told["finish_reason"] == "stop":
            assert said(told["message"]) == said(judged["message"])


@pytest.mark.parametrize("name", ["default", "redact", "block", "sentence", "injection", "end"])
@settings(max_examples=25, deadline=None)
@given(both=st.lists(messages(), min_size=1, max_size=2), how=cuts)
def test_any_cut_of_any_field_leaves_what_the_whole_answer_may_say(
    name: str, both: list[dict[str, Any]], how: int | list[int]
) -> None:
    asyncio.run(same(ENGINES[name], both, how))
