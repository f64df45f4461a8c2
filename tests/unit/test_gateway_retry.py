"""A replica that dies: another one is asked, once, as long as the client can have got nothing."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from cluster.contracts import Direction
from deployments.gateway.errors import ApiError
from deployments.gateway.upstream import REPLICA_FAILED
from tests.unit.gateway_app import chat, gateway, key, policy, route, snapshot, usage
from tests.unit.test_gateway_embeddings import vectors
from tests.unit.test_gateway_guarding import FAR, Far, guarded
from tests.unit.test_gateway_record import Keeps

HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
ANSWER = [chat("", role="assistant"), chat("well "), chat("done", finish="stop"), usage(1, 2)]


def died() -> ApiError:
    return ApiError(503, "It died.", kind="server_error", code=REPLICA_FAILED, retry_after_s=1)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_replica_that_dies_before_its_first_token_is_replaced(stream: bool) -> None:
    async with gateway() as g:
        g.script.first, g.script.says = [[died()]], ANSWER
        if stream:
            chunks = [c async for c in await g.client.chat.completions.create(**HELLO, stream=True)]
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        else:
            text = (await g.client.chat.completions.create(**HELLO)).choices[0].message.content or ""
        assert text == "well done"
        ids = {request.request_id for request in g.script.requests}
        assert len(ids) == len(g.script.requests) == 2
        assert g.script.closed == 2


async def test_a_whole_answer_begins_anew_if_its_replica_dies_at_the_end() -> None:
    async with gateway() as g:
        g.script.first, g.script.says = [[chat("half an answ"), usage(1, 3), died()]], ANSWER
        answer = await g.client.chat.completions.create(**HELLO)
        assert answer.choices[0].message.content == "well done"
        assert answer.usage is not None
        assert answer.usage.total_tokens == 3


async def test_a_stream_that_has_begun_is_not_begun_again() -> None:
    async with gateway() as g:
        g.script.first, g.script.says = [[chat("half an "), chat("answer "), died()]], ANSWER
        stream = await g.client.chat.completions.create(**HELLO, stream=True)
        with pytest.raises(openai.APIError, match="It died"):
            [chunk async for chunk in stream]
        assert len(g.script.requests) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_two_that_die_are_the_clients_to_try_again(stream: bool) -> None:
    async with gateway() as g:
        g.script.says = [died()]
        with pytest.raises(openai.InternalServerError) as told:
            await g.client.chat.completions.create(**HELLO, stream=stream)
        assert (told.value.status_code, told.value.code) == (503, REPLICA_FAILED)
        assert told.value.response.headers["retry-after"] == "1"
        assert len(g.script.requests) == 2


async def test_no_other_failure_is_tried_again() -> None:
    async with gateway() as g:
        g.script.says = [ApiError(503, "Busy.", kind="server_error", code="overloaded", retry_after_s=1)]
        with pytest.raises(openai.InternalServerError):
            await g.client.chat.completions.create(**HELLO)
        assert len(g.script.requests) == 1


async def test_vectors_come_from_another_replica_too() -> None:
    async with gateway() as g:
        g.script.first, g.script.says = [[died()]], [vectors([0.5])]
        made = await g.client.embeddings.create(model="m", input="one", encoding_format="float")
        assert made.data[0].embedding == [0.5]
        assert len(g.script.requests) == 2
        g.script.says = [died()]
        with pytest.raises(openai.InternalServerError):
            await g.client.embeddings.create(model="m", input="one")


async def test_what_beside_the_model_judged_is_judged_and_told_once() -> None:
    far, keeps = Far(), Keeps()
    said = [{"role": "user", "content": "bad, but only flagged"}]
    flags: dict[str, Any] = FAR | {"action": "flag"}
    async with guarded(flags, far=far, input="parallel", observers=[keeps]) as g:
        g.script.first, g.script.says = [[died()]], ANSWER
        await g.client.chat.completions.create(model="m", messages=said)
        assert len(g.script.requests) == 2
    assert len(far.asked) == 1
    assert [(direction, found.label) for direction, found in keeps.records[0].findings] == [
        (Direction.INPUT, "BAD")
    ]


async def test_of_what_was_thrown_away_nothing_is_told() -> None:
    keeps = Keeps()
    ban = policy("ban", {"name": "ban", "kind": "ban_list", "on": "output", "words": ["forbidden"]})
    content = snapshot(
        keys=[key(limits={"tokens_per_minute": 10_000})], routes=[route(policy="ban")], policies=[ban]
    )
    async with gateway(content, observers=[keeps]) as g:
        half = [chat("that is forbidden", index=0), chat("more"), usage(1, 300), died()]
        # The second one's client, so to say, goes by what came: no usage at its end.
        g.script.first = [half, [chat("well ", index=0), chat("done", finish="stop")]]
        answer = await g.client.chat.completions.create(**HELLO, n=1)
        assert answer.choices[0].message.content == "well done"
        assert answer.usage is not None
        assert answer.usage.total_tokens == 0, "what the first one used is nobody's"
    (record,) = keeps.records
    assert record.findings == []
    assert record.first_s is not None
    assert record.answered_s is not None
    assert record.sent_s is not None
    assert record.sent_s <= record.answered_s <= record.first_s
