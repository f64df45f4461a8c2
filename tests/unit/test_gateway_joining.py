"""Chunks that came together: fewer, and the same answer."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

from deployments.gateway.answer import Assembly
from deployments.gateway.joining import joined
from tests.unit.gateway_app import chat


def test_text_of_one_choice_is_one_chunk() -> None:
    chunks = [chat("a", role="assistant"), chat("b"), chat("c"), chat("d", finish="stop"), {"choices": []}]
    assert joined(copy.deepcopy(chunks)) == [chunks[0], chat("bcd", finish="stop"), chunks[4]]


def test_choices_that_take_turns_are_joined_each_for_itself() -> None:
    chunks = [chat(text, index=index) for text in "abc" for index in (0, 1)]
    assert joined(chunks) == [chat("abc"), chat("abc", index=1)]


def test_what_is_more_than_text_stays_as_it_is() -> None:
    call = [{"index": 0, "function": {"arguments": "{"}}]
    chunks = [
        chat("a", logprobs={"content": []}),
        chat("b", logprobs={"content": [1]}),
        chat(tool_calls=call),
        chat(tool_calls=call),
        chat("c", reasoning="d"),
        chat(finish="stop"),
    ]
    assert joined(copy.deepcopy(chunks)) == chunks


def test_the_whole_answer_is_the_same_whatever_comes_together() -> None:
    """Drawn at random: fields that alternate, choices, tool calls, log probabilities, ends."""
    drawn = random.Random(7)
    for _ in range(300):
        stream = [_draw(drawn) for _ in range(drawn.randrange(1, 20))]
        assert _put_together(joined(copy.deepcopy(stream))) == _put_together(stream), stream


def _draw(drawn: random.Random) -> dict[str, Any]:
    index, text = drawn.randrange(3), drawn.choice(["a", "bc", " ", ""])
    kind = drawn.randrange(8)
    if kind == 0:
        return chat(index=index, tool_calls=[{"index": 0, "function": {"arguments": text}}])
    if kind == 1:
        return chat(text, index=index, logprobs={"content": [{"token": text}]})
    if kind == 2:
        return chat(index=index, reasoning=text)
    return chat(text, index=index, finish=drawn.choice([None] * 9 + ["stop"]))


def _put_together(chunks: list[dict[str, Any]]) -> str:
    assembly = Assembly("chat")
    for chunk in chunks:
        assembly.add(copy.deepcopy(chunk["choices"]))
    return json.dumps(assembly.choices(), sort_keys=True)
