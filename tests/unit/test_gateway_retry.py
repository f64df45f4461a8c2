"""A replica that dies: another one is asked, once, as long as the client can have got nothing."""

from __future__ import annotations

import openai
import pytest

from deployments.gateway.errors import ApiError
from deployments.gateway.upstream import REPLICA_FAILED
from tests.unit.gateway_app import chat, gateway, usage
from tests.unit.test_gateway_embeddings import vectors

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
