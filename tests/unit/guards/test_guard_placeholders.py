"""Reversible redaction: what was cut out of a request comes back in its answer, however that is cut."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.guards.guard_texts import cuts, pieces
from validation.guards import (
    GuardContext,
    GuardEngine,
    Placeholders,
    judge_request,
    judge_response,
    parse_policy,
)

CONTEXT = GuardContext()
REVERSIBLE = GuardEngine(
    parse_policy(
        {
            "name": "r",
            "version": 1,
            "guards": [
                {"name": "pii", "kind": "pii", "on": "both", "action": "redact", "reversible": True},
                {"name": "words", "kind": "ban_list", "on": "both", "action": "redact", "words": ["moon"]},
            ],
        }
    )
)


def user(*texts: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text} for text in texts], **more}


async def judged(body: dict[str, Any]) -> tuple[dict[str, Any], Placeholders]:
    placeholders = Placeholders()
    verdict = await judge_request(REVERSIBLE, body, CONTEXT, placeholders)
    return verdict.body, placeholders


async def test_the_same_value_has_the_same_number_in_all_of_a_request() -> None:
    body, placeholders = await judged(
        user("jo@example.com, al@example.com and moon", "jo@example.com, 4111 1111 1111 1111")
    )
    assert [message["content"] for message in body["messages"]] == [
        "<EMAIL_1>, <EMAIL_2> and [BANNED]",
        "<EMAIL_1>, <CARD_1>",
    ]
    assert placeholders.restore("To <EMAIL_2>, not <EMAIL_3> or <CARD_1>") == (
        "To al@example.com, not <EMAIL_3> or 4111 1111 1111 1111"
    )


async def test_without_a_place_for_the_originals_they_are_gone_for_good() -> None:
    verdict = await judge_request(REVERSIBLE, user("jo@example.com"), CONTEXT)
    assert verdict.body["messages"][0]["content"] == "[EMAIL_ADDRESS]"


async def test_what_a_client_writes_itself_is_never_issued() -> None:
    body, placeholders = await judged(user("What is <EMAIL_1>?", "jo@example.com"))
    assert [message["content"] for message in body["messages"]] == ["What is <EMAIL_1>?", "<EMAIL_2>"]
    assert placeholders.restore("<EMAIL_1> <EMAIL_2>") == "<EMAIL_1> jo@example.com"


async def test_originals_of_tool_arguments_come_back_as_text_and_as_json() -> None:
    call = {"id": "c", "type": "function"}
    arguments = json.dumps({"to": "jo@example.com", "card": 4111111111111111}).replace("@", r"\u0040")
    body = {
        "messages": [
            {
                "role": "assistant",
                "tool_calls": [{**call, "function": {"name": "f", "arguments": arguments}}],
            }
        ]
    }
    sent, placeholders = await judged(body)
    told = sent["messages"][0]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(told) == {"to": "<EMAIL_1>", "card": "<CARD_1>"}
    assert placeholders.restore("<EMAIL_1>") == "jo@example.com"
    assert json.loads(placeholders.restore(told, json=True)) == {
        "to": "jo@example.com",
        "card": "4111111111111111",
    }


async def test_a_whole_answer_gets_them_back_after_it_was_judged() -> None:
    _, placeholders = await judged(user("jo@example.com"))
    answer = {
        "choices": [
            {"message": {"role": "assistant", "content": "<EMAIL_1> or al@example.com"}, "logprobs": None},
            {"message": {"role": "assistant", "content": "<EMAIL_9>"}, "logprobs": None},
        ]
    }
    verdict = await judge_response(REVERSIBLE, answer, CONTEXT, placeholders)
    assert [choice["message"]["content"] for choice in verdict.body["choices"]] == [
        "jo@example.com or [EMAIL_ADDRESS]",
        "<EMAIL_9>",
    ]


VALUE = 'a "b" \\ c\n<EMAIL_'
PARTS = st.sampled_from(
    (
        *("<EMAIL_1>", "<EMAIL_2>", "<EMAIL_", "<", ">", "1", "2>", "<CARD_1>", "<EMAIL_11>"),
        *("\\", "\\\\", '"', "é", " "),
        *(r"\u003cEMAIL_1\u003e", r"\u003c", "u003cEMAIL_1>", "\\u00"),
    )
)


def issued() -> Placeholders:
    placeholders = Placeholders()
    placeholders.issue("EMAIL_ADDRESS", VALUE)
    placeholders.issue("EMAIL_ADDRESS", "jo@example.com")
    return placeholders


@settings(deadline=None)
@given(parts=st.lists(PARTS, max_size=12), how=cuts)
def test_any_cut_restores_what_the_whole_text_restores(parts: list[str], how: int | list[int]) -> None:
    text = "".join(parts)
    whole = VALUE.join(piece.replace("<EMAIL_2>", "jo@example.com") for piece in text.split("<EMAIL_1>"))
    restorer = issued().restorer()
    assert "".join([*map(restorer.feed, pieces(text, how)), restorer.flush()]) == whole


@settings(deadline=None)
@given(parts=st.lists(PARTS, max_size=12), how=cuts, escaped=st.booleans())
def test_any_cut_of_json_stays_json_with_the_originals_in_it(
    parts: list[str], how: int | list[int], escaped: bool
) -> None:
    meant = "".join(parts)
    text = json.dumps({"a": meant, "b": 1})
    if escaped:
        text = text.replace("<", r"\u003c").replace(">", r"\u003E")
    restorer = issued().restorer(json=True)
    restored = "".join([*map(restorer.feed, pieces(text, how)), restorer.flush()])
    assert json.loads(restored) == {"a": issued().restore(meant), "b": 1}
