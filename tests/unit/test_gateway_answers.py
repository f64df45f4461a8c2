"""What leaves the gateway: guarded, whole or streamed, and told by the official client."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from deployments.gateway.errors import ApiError
from tests.unit.gateway_app import Chunk, chat, gateway, policy, route, snapshot, usage
from tests.unit.test_gateway_record import Keeps

BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
MAIL = "jane.doe@example.com"
BAN = policy(
    "ban", {"name": "ban", "kind": "ban_list", "on": "output", "words": ["forbidden"], "action": "block"}
)
FLAG = policy(
    "flag", {"name": "ban", "kind": "ban_list", "on": "output", "words": ["forbidden"], "action": "flag"}
)


def spoken(text: str, size: int = 3, **more: Any) -> list[Chunk]:
    parts = [text[i : i + size] for i in range(0, len(text), size)]
    return [chat("", role="assistant"), *(chat(part, **more) for part in parts), chat(finish="stop")]


async def test_a_whole_answer_and_a_stream_say_the_same() -> None:
    async with gateway() as g:
        g.script.says = [*spoken("Plain words, nothing else."), usage(5, 7)]
        whole = await g.client.chat.completions.create(**BODY)
        assert whole.choices[0].message.content == "Plain words, nothing else."
        assert whole.choices[0].finish_reason == "stop"
        assert whole.model == "m"
        assert whole.usage is not None
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (5, 7)
        stream = await g.client.chat.completions.create(
            **BODY, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert (
            "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            == "Plain words, nothing else."
        )
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-1].choices == []
        assert chunks[-1].usage == whole.usage
        assert {chunk.id for chunk in chunks} == {chunks[0].id}


async def test_no_usage_chunk_unless_it_was_asked_for() -> None:
    async with gateway() as g:
        g.script.says = [*spoken("Hi."), usage(5, 7)]
        stream = await g.client.chat.completions.create(**BODY, stream=True)
        chunks = [chunk async for chunk in stream]
        assert all(chunk.choices for chunk in chunks)
        assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize("stream", [True, False])
async def test_personal_data_is_redacted_however_it_is_cut(size: int, stream: bool) -> None:
    async with gateway() as g:
        g.script.says = spoken(f"Write to {MAIL} soon", size)
        answer = await g.http.post(
            "/v1/chat/completions",
            json=BODY | {"stream": stream},
            headers={"authorization": "Bearer sk-test"},
        )
        assert "jane" not in answer.text
        assert "example.com" not in answer.text
        assert "soon" in answer.text
        assert answer.text.rstrip().endswith("data: [DONE]") == stream


@pytest.mark.parametrize("stream", [True, False])
async def test_a_blocked_choice_ends_as_content_filter_and_the_model_is_stopped(stream: bool) -> None:
    async with gateway(snapshot(routes=[route(policy="ban")], policies=[BAN])) as g:
        g.script.says = [*spoken("It is forbidden to say more. And it goes on and on."), usage(5, 50)]
        if stream:
            parts = await g.client.chat.completions.create(**BODY, stream=True)
            chunks = [chunk async for chunk in parts]
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            reason = chunks[-1].choices[0].finish_reason
        else:
            whole = await g.client.chat.completions.create(**BODY)
            text, reason = whole.choices[0].message.content or "", whole.choices[0].finish_reason
        assert reason == "content_filter"
        assert "forbidden" not in text
        assert "goes on" not in text
        assert g.script.closed == 1


async def test_choices_are_guarded_apart() -> None:
    async with gateway(snapshot(routes=[route(policy="ban")], policies=[BAN])) as g:
        g.script.says = [
            chat("for", index=0),
            chat("for", index=1),
            chat("bidden ", index=0),
            chat("ever ", index=1),
            chat(index=0, finish="stop"),
            chat("yours", index=1, finish="length"),
            usage(5, 9),
        ]
        whole = await g.client.chat.completions.create(**BODY, n=2)
        first, second = whole.choices
        assert (first.message.content or "", first.finish_reason) == ("", "content_filter")
        assert (second.message.content, second.finish_reason) == ("forever yours", "length")


def tool(index: int, arguments: str, **head: Any) -> Chunk:
    function = {"arguments": arguments} | ({"name": head.pop("name")} if "name" in head else {})
    return chat(tool_calls=[{"index": index, "function": function, **head}])


@pytest.mark.parametrize("stream", [True, False])
async def test_tool_calls_are_guarded_and_stay_json(stream: bool) -> None:
    async with gateway() as g:
        g.script.says = [
            chat("", role="assistant"),
            tool(0, "", id="c1", type="function", name="send_mail"),
            *(tool(0, part) for part in ('{"to": "jane.', "doe@exam", 'ple.com", ', '"subject": "hi"}')),
            tool(1, "", id="c2", type="function", name="wait"),
            tool(1, '{"seconds": 3}'),
            chat(finish="tool_calls"),
        ]
        if stream:
            parts = await g.client.chat.completions.create(**BODY, stream=True)
            calls: dict[int, dict[str, str]] = {}
            async for chunk in parts:
                for call in chunk.choices[0].delta.tool_calls or []:
                    known = calls.setdefault(call.index, {"id": "", "name": "", "arguments": ""})
                    known["id"] += call.id or ""
                    known["name"] += call.function.name or "" if call.function else ""
                    known["arguments"] += call.function.arguments or "" if call.function else ""
            found = [calls[0], calls[1]]
        else:
            whole = await g.client.chat.completions.create(**BODY)
            assert whole.choices[0].message.content in (None, "")
            found = [
                {"id": call.id, "name": call.function.name, "arguments": call.function.arguments}
                for call in whole.choices[0].message.tool_calls or []
            ]
        assert [call["name"] for call in found] == ["send_mail", "wait"]
        assert [call["id"] for call in found] == ["c1", "c2"]
        arguments = json.loads(found[0]["arguments"])
        assert arguments["subject"] == "hi"
        assert "jane" not in arguments["to"]
        assert json.loads(found[1]["arguments"]) == {"seconds": 3}


async def test_reasoning_and_refusals_are_guarded_too() -> None:
    async with gateway() as g:
        g.script.says = [
            chat("", role="assistant"),
            chat(reasoning=f"She wrote {MAIL} to me. "),
            chat(refusal=f"I do not write to {MAIL} now."),
            chat(finish="stop"),
        ]
        answer = await g.http.post(
            "/v1/chat/completions", json=BODY, headers={"authorization": "Bearer sk-test"}
        )
        message = answer.json()["choices"][0]["message"]
        assert "jane" not in answer.text
        assert message["reasoning"].startswith("She wrote")
        assert message["refusal"].endswith("now.")


def logprob(token: str) -> dict[str, Any]:
    return {"content": [{"token": token, "logprob": -0.1, "bytes": list(token.encode()), "top_logprobs": []}]}


async def test_log_probabilities_never_spell_what_was_redacted() -> None:
    async with gateway() as g:
        parts = ["Write ", "to ", "jane.doe", "@example.com", " soon"]
        g.script.says = [*(chat(part, logprobs=logprob(part)) for part in parts), chat(finish="stop")]
        whole = await g.client.chat.completions.create(**BODY, logprobs=True)
        assert whole.choices[0].logprobs is None
        g.script.says = [chat(part, logprobs=logprob(part)) for part in ("Nothing ", "here")] + [
            chat(finish="stop")
        ]
        for stream in (True, False):
            if stream:
                chunks = [
                    c
                    async for c in await g.client.chat.completions.create(**BODY, logprobs=True, stream=True)
                ]
                entries = [
                    e for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content or []
                ]
            else:
                whole = await g.client.chat.completions.create(**BODY, logprobs=True)
                assert whole.choices[0].logprobs is not None
                entries = whole.choices[0].logprobs.content or []
            assert [entry.token for entry in entries] == ["Nothing ", "here"]


async def test_log_probabilities_are_not_held_where_nothing_can_change() -> None:
    async with gateway(snapshot(routes=[route(policy="flag")], policies=[FLAG])) as g:
        g.script.says = [chat("Hello there ", logprobs=logprob("Hello there ")), chat("you. ", finish="stop")]
        chunks = [c async for c in await g.client.chat.completions.create(**BODY, logprobs=True, stream=True)]
        assert chunks[0].choices[0].logprobs is not None


async def test_fields_of_the_engine_do_not_leave() -> None:
    async with gateway() as g:
        leaky = chat("Hi. ", finish="stop")
        leaky["choices"][0] |= {"token_ids": [1, 2], "stop_reason": 7}
        leaky |= {"prompt_token_ids": [5], "model": "engine-m", "system_fingerprint": "vllm"}
        g.script.says = [leaky]
        answer = await g.http.post(
            "/v1/chat/completions", json=BODY, headers={"authorization": "Bearer sk-test"}
        )
        assert set(answer.json()) == {"id", "object", "created", "model", "choices", "usage"}
        assert set(answer.json()["choices"][0]) == {"index", "message", "logprobs", "finish_reason"}


async def test_usage_is_exact_also_of_an_answer_cut_short() -> None:
    async with gateway(snapshot(routes=[route(policy="ban")], policies=[BAN])) as g:
        running = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
        g.script.says = [chat("forbidden words ") | {"usage": running}, *spoken("more"), usage(5, 50)]
        whole = await g.client.chat.completions.create(**BODY)
        assert whole.usage is not None
        assert whole.usage.total_tokens == 8


async def test_a_failure_in_mid_stream_raises_in_the_client_and_what_was_held_back_stays() -> None:
    async with gateway() as g:
        g.script.says = [chat("Good so far. jane.doe@exam"), ApiError(500, "It broke.", kind="server_error")]
        stream = await g.client.chat.completions.create(**BODY, stream=True)
        text: list[str] = []

        async def read() -> None:
            async for chunk in stream:
                text.append(chunk.choices[0].delta.content or "")

        with pytest.raises(openai.APIError, match="It broke"):
            await read()
        assert "".join(text).startswith("Good so far.")
        assert "jane" not in "".join(text)


async def test_a_model_that_stops_in_the_middle_is_an_error_and_no_answer() -> None:
    async with gateway() as g:
        g.script.says = [chat("Half of")]
        with pytest.raises(openai.InternalServerError, match="before its answer was complete"):
            await g.client.chat.completions.create(**BODY)


async def test_completions_with_several_prompts() -> None:
    async with gateway() as g:
        g.script.says = [
            {"choices": [{"index": 0, "text": "one ", "logprobs": None, "finish_reason": None}]},
            {"choices": [{"index": 1, "text": f"to {MAIL} ", "logprobs": None, "finish_reason": "length"}]},
            {"choices": [{"index": 0, "text": "two", "logprobs": None, "finish_reason": "stop"}]},
            usage(2, 3),
        ]
        whole = await g.client.completions.create(model="m", prompt=["a", "b"])
        assert whole.object == "text_completion"
        assert [
            choice.text.startswith(start)
            for choice, start in zip(whole.choices, ("one two", "to "), strict=True)
        ]
        assert "jane" not in whole.choices[1].text
        assert [choice.finish_reason for choice in whole.choices] == ["stop", "length"]


async def test_who_goes_away_stops_the_model() -> None:
    async with gateway() as g:
        g.script.says = [chat("word ") for _ in range(1000)]
        g.script.go_on.clear()
        request = asyncio.create_task(g.client.chat.completions.create(**BODY))
        await g.script.begun.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await asyncio.sleep(0)
        assert g.script.closed == 1


async def test_more_requests_than_places_are_refused_and_places_come_back() -> None:
    async with gateway(max_concurrent_requests=2) as g:
        g.script.says = spoken("Slow.")
        g.script.go_on.clear()
        asked = {asyncio.create_task(g.client.chat.completions.create(**BODY)) for _ in range(5)}
        refused = list[BaseException | None]()
        while len(refused) < 3:  # Whoever has a place has no answer yet.
            done, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            refused += [task.exception() for task in done]
        for error in refused:
            assert isinstance(error, openai.InternalServerError)
            assert error.status_code == 503
            assert error.response.headers["retry-after"]
        g.script.go_on.set()
        assert [(await task).choices[0].message.content for task in asked] == ["Slow."] * 2
        assert (await g.client.chat.completions.create(**BODY)).choices[0].message.content == "Slow."


async def test_alternatives_of_log_probabilities_do_not_leave_where_output_can_change() -> None:
    async with gateway() as g:
        entry = logprob("Hi")["content"][0] | {
            "top_logprobs": [{"token": MAIL, "logprob": -9, "bytes": None}]
        }
        g.script.says = [chat("Hi", logprobs={"content": [entry]}), chat(finish="stop")]
        whole = await g.client.chat.completions.create(**BODY, logprobs=True, top_logprobs=1)
        assert whole.choices[0].logprobs is not None
        assert [(e.token, e.top_logprobs) for e in whole.choices[0].logprobs.content or []] == [("Hi", [])]
        told = {
            "tokens": ["Hi"],
            "token_logprobs": [-0.1],
            "top_logprobs": [{"Hi": -0.1, MAIL: -9}],
            "text_offset": [0],
        }
        g.script.says = [{"choices": [{"index": 0, "text": "Hi", "logprobs": told, "finish_reason": "stop"}]}]
        text = await g.client.completions.create(model="m", prompt="a", logprobs=2)
        assert text.choices[0].logprobs is not None
        assert text.choices[0].logprobs.top_logprobs == [{"Hi": -0.1}]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_name_in_pieces_is_judged_whole_and_odd_ids_roles_and_reasons_do_not_leave(
    stream: bool,
) -> None:
    async with gateway() as g:
        g.script.says = [
            chat("", role=MAIL),
            tool(0, "", id=MAIL, type=MAIL, name="jane.doe@"),
            tool(0, "", name="example.com"),
            tool(0, "{}"),
            tool(1, "", id="c2", type="function", name="without_arguments"),
            chat(finish=MAIL),
        ]
        answer = await g.http.post(
            "/v1/chat/completions",
            json=BODY | {"stream": stream},
            headers={"authorization": "Bearer sk-test"},
        )
        assert "jane" not in answer.text
        assert "example.com" not in answer.text
        assert "[EMAIL_ADDRESS]" in answer.text
        assert "without_arguments" in answer.text
        assert '"call_' in answer.text
        assert '"c2"' in answer.text


async def test_a_last_chunk_without_a_delta_is_an_end() -> None:
    async with gateway() as g:
        g.script.says = [chat("Fine."), {"choices": [{"index": 0, "delta": None, "finish_reason": "stop"}]}]
        answer = await g.client.chat.completions.create(**BODY)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Fine.", "stop")


@pytest.mark.parametrize("n", [1, 2])
async def test_who_leaves_before_the_usage_pays_for_every_prompt(n: int) -> None:
    """Until its last chunk an engine tells of each choice its own prompt's tokens."""
    keeps = Keeps()
    async with gateway(snapshot(routes=[route(policy="ban")], policies=[BAN]), observers=[keeps]) as g:
        prompts = ["one", "two", "three"]
        told = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}
        g.script.says = [
            {"choices": [{"index": i, "text": "forbidden", "logprobs": None, "finish_reason": "stop"}]}
            | {"usage": told}
            for i in range(len(prompts) * n)
        ]
        await g.client.completions.create(model="m", prompt=prompts, n=n)
    assert keeps.records[0].usage["prompt_tokens"] == 300
    assert keeps.records[0].usage["completion_tokens"] == 3 * n


@pytest.mark.parametrize("dumped", [True, False])
async def test_a_message_that_the_clients_stream_put_together_may_be_sent_back(dumped: bool) -> None:
    """It holds the calls' places in the stream, and what the client made of their arguments."""
    function = {"name": "weather", "arguments": '{"city":"Bern"}'}
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": {}, "strict": True}}
    async with gateway() as g:
        g.script.says = [
            chat(role="assistant", content=""),
            chat(tool_calls=[{"index": 0, "id": "call1", "type": "function", "function": function}]),
            chat(finish="tool_calls"),
            usage(3, 2),
        ]
        asked: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Weather?"}]}
        async with g.client.chat.completions.stream(**asked, tools=[tool]) as stream:
            said = (await stream.get_final_completion()).choices[0].message
        (call,) = said.tool_calls or []
        assert call.function.parsed_arguments == {"city": "Bern"}
        assert call.model_dump()["index"] == 0
        asked["messages"].append(said.model_dump(exclude_none=True) if dumped else said)
        asked["messages"].append({"role": "tool", "tool_call_id": call.id, "content": "sunny"})
        g.script.says = [chat("Sunny.", finish="stop"), usage(9, 1)]
        await g.client.chat.completions.create(**asked)
        sent = g.script.requests[1].body["messages"][1]
        assert sent["tool_calls"] == [{"id": "call1", "type": "function", "function": function}]
        assert sent.keys() <= {"role", "content", "tool_calls"}
