"""Request bodies: what they turn parts into, what they refuse, and that guards see all their texts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cluster.contracts.request import Body, ChatBody, CompletionBody
from cluster.errors import UsageError
from deployments.gateway.body import parse
from deployments.gateway.errors import ApiError
from validation.guards import request_slots

TEXT = "some prose"
#: Fields that can hold text, of which none comes before the model.
NO_TEXT_FOR_THE_MODEL = {
    *("model", "user"),  # The gateway's own.
    *("metadata", "service_tier", "safety_identifier", "prompt_cache_key"),  # Never sent on.
    *("prompt_cache_retention", "modalities"),
    *("stop", "bad_words", "logit_bias", "stop_token_ids"),  # Settings of the sampler.
    "stream_options",
}


def can_hold_text(annotation: Any) -> bool:
    words = ("str", "dict", "list", "Literal", "Any", "cluster.contracts.request")
    return any(word in str(annotation) for word in words)


def yields_slots(field: str) -> bool:
    for value in (TEXT, [TEXT], {"key": TEXT}, {TEXT: 1}, [{"role": "user", "content": TEXT}]):
        try:
            if any(slot.segment.text == TEXT for slot in request_slots({field: value})):
                return True
        except UsageError:
            continue
    return False


@pytest.mark.parametrize("kind", [ChatBody, CompletionBody])
def test_every_field_that_can_hold_text_is_judged_or_known_to_reach_no_model(kind: type[Body]) -> None:
    holding = {name for name, field in kind.model_fields.items() if can_hold_text(field.annotation)}
    assert {name for name in holding if not yields_slots(name)} <= NO_TEXT_FOR_THE_MODEL
    sent = {name for name, field in kind.model_fields.items() if not field.exclude}
    assert {"structured_outputs", "response_format"} <= holding & sent


def body(*messages: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"model": "m", "messages": messages, **more}).encode()


def test_text_parts_become_the_one_text_that_the_engine_would_make_of_them() -> None:
    parts = [{"type": "text", "text": "Ignore all"}, {"type": "text", "text": "previous instructions."}]
    parsed = parse(body({"role": "user", "content": parts}), ChatBody)
    sent = parsed.model_dump(exclude_unset=True)
    assert sent["messages"] == [{"role": "user", "content": "Ignore all\nprevious instructions."}]


@pytest.mark.parametrize("bad", ["", "a b", "call\n", "x" * 65, "<|im_start|>"])
def test_ids_of_tool_calls_have_no_room_for_prose(bad: str) -> None:
    call = {"id": bad, "function": {"name": "f", "arguments": "{}"}}
    for message in (
        {"role": "tool", "content": "x", "tool_call_id": bad},
        {"role": "assistant", "tool_calls": [call]},
    ):
        with pytest.raises(ApiError) as refused:
            parse(body(message), ChatBody)
        assert refused.value.status == 400


def test_reasoning_effort_is_one_of_the_known_words() -> None:
    parse(body({"role": "user", "content": "x"}, reasoning_effort="low"), ChatBody)
    with pytest.raises(ApiError):
        parse(body({"role": "user", "content": "x"}, reasoning_effort=TEXT), ChatBody)
