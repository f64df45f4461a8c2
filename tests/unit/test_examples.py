"""OpenAI's training examples as conversations to learn from."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.errors import RefusedError
from validation.examples import conversations, learned, preference


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content} | more


def test_each_answer_that_counts_is_learned_with_what_stands_before_it() -> None:
    parts = [{"type": "text", "text": "How "}, {"type": "text", "text": "many?"}]
    messages = [
        said("system", "Be brief."),
        said("user", parts),
        said("assistant", "One.", weight=0),
        said("user", "Sure?"),
        said("assistant", "Two."),
        said("user", "Thanks."),
        said("assistant", "Bye.", weight=1),
        said("user", "Never answered."),
    ]
    first, second = conversations({"messages": messages})
    assert [message["content"] for message in first] == ["Be brief.", "How many?", "One.", "Sure?", "Two."]
    assert second[: len(first)] == first
    assert second[-1] == {"role": "assistant", "content": "Bye."}


def test_an_answer_to_nothing_is_not_learned() -> None:
    assert list(conversations({"messages": [said("assistant", "Hello.")]})) == []


@pytest.mark.parametrize(
    ("example", "why"),
    [
        ({"input": {}, "preferred_output": []}, "preference"),
        ({"messages": [said("user", "x")], "tools": [{}]}, "tools"),
        (
            {"messages": [said("user", [{"type": "image_url"}]), said("assistant", "y")]},
            "of the user is no text",
        ),
        ({"messages": [said("user", "x"), said("assistant", None, tool_calls=[{}])]}, "assistant is no text"),
        (
            {
                "messages": [
                    said("user", "x"),
                    said("assistant", [{"type": "text", "text": "y"}], tool_calls=[{}]),
                ]
            },
            "assistant is no text",
        ),
        ({"messages": [said("user", "x"), *[said("assistant", "y")] * 257]}, "more than 256 answers"),
    ],
)
def test_what_is_not_learned_is_refused(example: dict[str, Any], why: str) -> None:
    with pytest.raises(RefusedError, match=why):
        list(conversations(example))


def pair(**more: Any) -> dict[str, Any]:
    return {
        "input": {"messages": [said("user", "How many?")]},
        "preferred_output": [said("assistant", "One.")],
        "non_preferred_output": [said("assistant", "Who knows.")],
    } | more


def test_a_preference_is_a_prompt_and_two_answers() -> None:
    found = preference(pair())
    assert found == {
        "prompt": [said("user", "How many?")],
        "chosen": [said("assistant", "One.")],
        "rejected": [said("assistant", "Who knows.")],
    }
    texts = [[message["content"] for message in read] for read in learned(pair(), "dpo")]
    assert texts == [["How many?", "One."], ["How many?", "Who knows."]]


@pytest.mark.parametrize(
    ("example", "why"),
    [
        ({"messages": [said("user", "x"), said("assistant", "y")]}, "it is no preference"),
        (pair(input={"messages": [said("user", "x")], "tools": [{}]}), "tools"),
        (pair(preferred_output=[said("assistant", "a"), said("assistant", "b")]), "more than one message"),
        (pair(non_preferred_output=[said("assistant", None, tool_calls=[{}])]), "assistant is no text"),
    ],
)
def test_what_is_no_preference_to_learn_is_refused(example: dict[str, Any], why: str) -> None:
    with pytest.raises(RefusedError, match=why):
        list(learned(example, "dpo"))
