"""How requests and answers are judged in the gateway: modes of streams, beside the model, and back again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

from cluster.contracts import Finding, PolicyDocument, Segment, Target, UpstreamRequest
from cluster.contracts.batches import BatchRecord
from deployments.batches.asking import Asker
from deployments.batches.parts import Row
from deployments.gateway.audit import keeps_text, texts
from deployments.gateway.record import RequestRecord
from tests.unit.gateway_app import KEY, Chunk, Fixture, chat, gateway, key, route, snapshot
from tests.unit.test_gateway_record import Keeps
from validation.guards import GuardEngine, parse_policy
from validation.guards.breaker import GuardUnavailableError

BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
MAIL = "jane.doe@example.com"
PII = {"name": "pii", "kind": "pii", "on": "both", "action": "redact"}
FAR = {"name": "far", "kind": "guardrails", "on": "input", "validator": "a.b:C", "timeout_s": 300}


def document(*guards: dict[str, Any], **more: Any) -> PolicyDocument:
    return parse_policy({"name": "p", "version": 3, "guards": list(guards)} | more).document()


class Far:
    """Where packaged guards run: judges when it is told to."""

    def __init__(self) -> None:
        self.may_judge = asyncio.Event()
        self.may_judge.set()
        self.asked: list[str] = []
        self.came = asyncio.Event()
        self.raises: Exception | None = None

    async def check(self, guard: str, policy_digest: str, segment: Segment) -> list[Finding]:
        self.asked.append(segment.text)
        self.came.set()
        await self.may_judge.wait()
        if self.raises:
            raise self.raises
        start = segment.text.find("bad")
        found = {"guard": guard, "label": "BAD", "score": 1, "action": "flag"}
        return [Finding(**found, start=start, end=start + 3)] if start >= 0 else []


@asynccontextmanager
async def guarded(
    *guards: dict[str, Any], far: Far | None = None, observers: Any = (), **more: Any
) -> AsyncIterator[Fixture]:
    content = snapshot(routes=[route(policy="p")], policies=[document(*guards, **more)])
    async with gateway(
        content, engines=lambda policy: GuardEngine(policy, far or Far()), observers=observers
    ) as g:
        yield g


def spoken(*parts: str, **more: Any) -> list[Chunk]:
    return [*(chat(part, **more) for part in parts), chat(finish="stop", **more)]


async def streamed(g: Fixture, **more: Any) -> tuple[list[str], str | None]:
    """The pieces that came, and why it ended."""
    parts = await g.client.chat.completions.create(**BODY | more, stream=True)
    chunks = [chunk async for chunk in parts]
    return [c.choices[0].delta.content or "" for c in chunks], chunks[-1].choices[0].finish_reason


async def test_stream_first_is_cut_off_and_who_does_not_stream_gets_nothing_unchecked() -> None:
    async with guarded(PII, stream="stream_first") as g:
        g.script.says = spoken("Write ", "to jane.d", "oe@example.com", " and ", "so on")
        pieces, reason = await streamed(g)
        assert "".join(pieces) == "Write to jane.doe@example.com"
        assert reason == "content_filter"
        assert g.script.closed == 1
        whole = await g.client.chat.completions.create(**BODY)
        assert whole.choices[0].message.content == "Write to [EMAIL_ADDRESS] and so on"
        assert whole.choices[0].finish_reason == "stop"


async def test_hold_and_end_redact_the_same_and_end_waits() -> None:
    for mode, most in (("hold", 5), ("end", 1)):
        async with guarded(PII, stream=mode) as g:
            g.script.says = spoken("Write ", "to jane.d", "oe@example.com", " and ", "so on. ")
            pieces, reason = await streamed(g)
            assert "".join(pieces) == "Write to [EMAIL_ADDRESS] and so on. "
            assert reason == "stop"
            assert len([piece for piece in pieces if piece]) <= most


REVERSIBLE = PII | {"reversible": True}


@pytest.mark.parametrize("stream", [True, False])
async def test_the_model_sees_a_placeholder_and_the_client_its_own_address(stream: bool) -> None:
    body = BODY | {"messages": [{"role": "user", "content": f"Mail {MAIL}, again {MAIL}"}], "n": 2}
    async with guarded(REVERSIBLE) as g:
        arguments = [
            {
                "index": 0,
                "id": "c1",
                "type": "function",
                "function": {"name": "mail", "arguments": '{"to": "<EM'},
            },
            {"index": 0, "function": {"arguments": 'AIL_1>", "cc": "<EMAIL_7>"}'}},
        ]
        g.script.says = [
            *(
                chat(part, index=0)
                for part in ("To <", "EMAIL", "_1", "> and <EMAIL_2>, not al@exam", "ple.com.")
            ),
            *(chat(index=1, tool_calls=[part]) for part in arguments),
            chat(index=0, finish="stop"),
            chat(index=1, finish="tool_calls"),
        ]
        if stream:
            async with g.client.chat.completions.stream(**body) as events:
                whole = await events.get_final_completion()
        else:
            whole = await g.client.chat.completions.create(**body)
        first, second = whole.choices
        assert first.message.content == f"To {MAIL} and <EMAIL_2>, not [EMAIL_ADDRESS]."
        (call,) = second.message.tool_calls or []
        assert json.loads(call.function.arguments) == {"to": MAIL, "cc": "<EMAIL_7>"}
        (sent,) = g.script.requests
        assert sent.body["messages"][0]["content"] == "Mail <EMAIL_1>, again <EMAIL_1>"


async def test_placeholders_of_one_request_mean_nothing_in_another() -> None:
    async with guarded(REVERSIBLE) as g:
        g.script.says = spoken("It is <EMAIL_1>.")
        mine = BODY | {"messages": [{"role": "user", "content": MAIL}]}
        both = await asyncio.gather(*(g.client.chat.completions.create(**body) for body in (mine, BODY)))
        assert [answer.choices[0].message.content for answer in both] == [
            f"It is {MAIL}.",
            "It is <EMAIL_1>.",
        ]


async def test_what_a_batch_stores_keeps_its_redactions() -> None:
    record = BatchRecord.model_construct(key_id="tester", endpoint="/v1/chat/completions")
    engine = GuardEngine(parse_policy(document(REVERSIBLE).body))
    async with guarded(REVERSIBLE) as g:
        g.script.says = spoken("It is <EMAIL_1>, or [EMAIL_ADDRESS].")
        asked = BODY | {"messages": [{"role": "user", "content": f"Mail {MAIL}"}]}
        done = await Asker(g.pipeline, record, engine, 1, asyncio.Lock()).ask(
            Row(1, "a", json.dumps(asked).encode())
        )
        assert g.script.requests[0].body["messages"][0]["content"] == "Mail [EMAIL_ADDRESS]"
        assert done.answered
        assert MAIL not in json.dumps(done.line)


async def test_in_parallel_nothing_is_kept_of_a_request_before_it_was_judged() -> None:
    records: list[RequestRecord] = []

    class Notes:
        def ended(self, record: RequestRecord) -> None:
            records.append(record)

    far = Far()
    async with guarded(FAR, PII, far=far, input="parallel", observers=[Notes()]) as g:
        g.script.says = spoken("Hi")
        mail = BODY | {"messages": [{"role": "user", "content": MAIL}]}
        await g.client.chat.completions.create(**mail)
        far.may_judge.clear()
        far.came.clear()
        request = asyncio.create_task(g.client.chat.completions.create(**mail))
        await far.came.wait()
        assert len(far.asked) == 2
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
    judged, unjudged = records
    assert judged.judged is not None
    assert judged.judged["messages"][0]["content"] == "[EMAIL_ADDRESS]"
    assert unjudged.judged is None


async def test_in_parallel_the_model_begins_at_once_and_its_first_token_waits_for_the_verdict() -> None:
    far = Far()
    far.may_judge.clear()
    async with guarded(FAR, PII, far=far, input="parallel") as g:
        g.script.says = spoken("Hi ", "there")
        request = asyncio.create_task(
            g.client.chat.completions.create(
                **BODY | {"messages": [{"role": "user", "content": f"I am {MAIL}"}]}
            )
        )
        await g.script.begun.wait()
        assert g.script.requests[0].body["messages"][0]["content"] == "I am [EMAIL_ADDRESS]"
        await far.came.wait()
        assert far.asked == [f"I am {MAIL}"], "it judges what the client wrote"
        for _ in range(100):  # Whatever could go on without the verdict has done so.
            await asyncio.sleep(0)
        assert not request.done()
        far.may_judge.set()
        assert (await request).choices[0].message.content == "Hi there"


@pytest.mark.parametrize("stream", [True, False])
async def test_in_parallel_a_refusal_aborts_the_generation_and_no_token_leaves(stream: bool) -> None:
    records: list[RequestRecord] = []

    class Notes:
        def ended(self, record: RequestRecord) -> None:
            records.append(record)

    async with guarded(FAR, input="parallel", observers=[Notes()]) as g:
        g.script.says = spoken("Hi ", "there")
        g.script.pause_s = 30
        with pytest.raises(openai.BadRequestError, match="far refused the text") as told:
            await g.client.chat.completions.create(
                **BODY | {"messages": [{"role": "user", "content": "so bad"}], "stream": stream}
            )
        assert told.value.code == "content_filter"
        assert (len(g.script.requests), g.script.closed) == (1, 1)
        (record,) = records
        assert (record.status, record.error_code, record.first_s) == (400, "content_filter", None)
        assert [finding.label for _, finding in record.findings] == ["BAD"]


async def test_in_parallel_a_client_that_goes_away_stops_both() -> None:
    far, keeps = Far(), Keeps()
    far.may_judge.clear()
    async with guarded(FAR, far=far, input="parallel", record_text="redacted", observers=[keeps]) as g:
        g.script.says = spoken("Hi ")
        g.script.pause_s = 30
        request = asyncio.create_task(g.client.chat.completions.create(**BODY))
        await g.script.begun.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert g.script.closed == 1
        assert "prompt" not in texts(keeps.records[0], 1000), "nobody has judged it"
        far.may_judge.set()
        g.script.pause_s, g.script.says = 0, spoken("Hi ")
        await g.client.chat.completions.create(**BODY)
        assert "hello" in texts(keeps.records[1], 1000)["prompt"]


async def test_what_left_before_it_was_judged_is_not_kept_where_a_guard_objects() -> None:
    keeps = Keeps()
    async with guarded(PII, stream="stream_first", record_text="redacted", observers=[keeps]) as g:
        g.pipeline._keeps_answer = keeps_text  # As the traffic record has it.
        g.script.says = spoken("Write ", "to jane.d", "oe@example.com", " and ", "so on")
        await streamed(g)
        g.script.says = spoken("Write ", "soon")
        await streamed(g)
    assert MAIL not in str(texts(keeps.records[0], 1000))
    assert "Write soon" in texts(keeps.records[1], 1000)["answer"]


async def test_in_parallel_a_failure_of_the_model_is_told_after_the_verdict() -> None:
    async with guarded(FAR, input="parallel") as g:

        async def fails(target: Target, request: UpstreamRequest) -> AsyncGenerator[list[Chunk], None]:
            raise RuntimeError("broken")
            yield []

        g.script.chunks = fails  # type: ignore[method-assign]
        with pytest.raises(openai.InternalServerError):
            await g.client.chat.completions.create(**BODY)
        with pytest.raises(openai.BadRequestError):
            await g.client.chat.completions.create(
                **BODY | {"messages": [{"role": "user", "content": "so bad"}]}
            )


@pytest.mark.parametrize("where", ["before", "parallel"])
@pytest.mark.parametrize("why", [ValueError("bug"), GuardUnavailableError()])
async def test_a_guard_that_cannot_judge_is_no_fault_of_the_client(where: str, why: Exception) -> None:
    far = Far()
    far.raises = why
    async with guarded(FAR, far=far, input=where) as g:
        g.script.says = spoken("Hi")
        with pytest.raises(openai.InternalServerError) as told:
            await g.client.chat.completions.create(**BODY)
        assert (told.value.status_code, told.value.code) == (503, "guard_unavailable")
        assert told.value.response.headers["retry-after"] == "1"
        assert "hello" not in told.value.message
    rated = snapshot(keys=[key(policy="p")], policies=[document(FAR)])
    async with gateway(rated, engines=lambda policy: GuardEngine(policy, far)) as g:
        body = {"request_id": "r", "comment": "fine"}
        answer = await g.http.post("/v1/feedback", json=body, headers={"authorization": f"Bearer {KEY}"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "guard_unavailable")
    async with guarded(FAR | {"on_error": "open"}, far=far, input=where) as g:
        g.script.says = spoken("Hi")
        assert (await g.client.chat.completions.create(**BODY)).choices[0].message.content == "Hi"


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_no_guard_could_judge_is_an_error_and_not_the_models_fault(stream: bool) -> None:
    far = Far()
    far.raises = ValueError("bug")
    async with guarded(FAR | {"on": "output"}, far=far) as g:
        g.script.says = spoken("Hi. ", "There. ")
        with pytest.raises(openai.APIError, match="could not judge"):
            await (streamed(g) if stream else g.client.chat.completions.create(**BODY))


async def test_every_answer_says_which_policy_judged_it() -> None:
    async with guarded(PII | {"action": "block"}) as g:
        tag = f"p@3;sha256={document(PII | {'action': 'block'}).digest}"
        g.script.says = spoken("Hi")
        told = [
            (await g.client.chat.completions.with_raw_response.create(**BODY)).headers,
            (await g.client.chat.completions.with_raw_response.create(**BODY, stream=True)).headers,
        ]
        with pytest.raises(openai.BadRequestError) as refused:
            await g.client.chat.completions.create(**BODY | {"messages": [{"role": "user", "content": MAIL}]})
        told.append(refused.value.response.headers)
        assert [headers["x-guard-policy"] for headers in told] == [tag] * 3


def call(index: int, **function: str) -> Chunk:
    return chat(tool_calls=[{"index": index, "id": f"c{index}", "type": "function", "function": function}])


async def test_a_text_is_complete_when_the_next_one_begins() -> None:
    """The official client takes it so: a tool call's arguments have ended where the next call starts."""
    async with guarded(PII) as g:
        g.script.says = [
            chat("I look up joe@example.com"),
            call(0, name="look", arguments='{"who": "al@exam'),
            call(0, arguments='ple.com", "age": 41}'),
            call(1, name="wait", arguments='{"s": 3}'),
            chat(finish="tool_calls"),
        ]
        done: list[tuple[str, Any]] = []
        async with g.client.chat.completions.stream(
            **BODY,
            tools=[
                {"type": "function", "function": {"name": name, "parameters": {}, "strict": True}}
                for name in ("look", "wait")
            ],
        ) as events:
            async for event in events:
                if event.type == "tool_calls.function.arguments.done":
                    done.append((event.name, json.loads(event.arguments)))
                if event.type == "content.done":
                    done.append(("content", event.content))
        assert done == [
            ("content", "I look up [EMAIL_ADDRESS]"),
            ("look", {"who": "[EMAIL_ADDRESS]", "age": 41}),
            ("wait", {"s": 3}),
        ]


@pytest.mark.parametrize(
    ("first", "again", "reason", "said"),
    [
        ("Plain ", "words.", "tool_calls", "Plain words."),
        ("joe@exam", "ple.com", "content_filter", "joe@exam"),
        ("Call ", "joe@example.com", "content_filter", "Call "),
        ("joe@example.com ", "again", "tool_calls", "[EMAIL_ADDRESS] again"),
    ],
)
async def test_a_text_that_is_taken_up_again_is_judged_with_all_before_it(
    first: str, again: str, reason: str, said: str
) -> None:
    async with guarded(PII) as g:
        arguments = call(0, name="f", arguments='{"a": 1}')
        g.script.says = [chat(first), arguments, chat(again), chat(finish="tool_calls")]
        whole = await g.client.chat.completions.create(**BODY)
        assert whole.choices[0].finish_reason == reason
        assert whole.choices[0].message.content == said
        g.script.says = [
            call(0, name="f", arguments='{"a": "' + first),
            call(1, name="f", arguments="{}"),
            call(0, arguments=again + '"}'),
            chat(finish="tool_calls"),
        ]
        whole = await g.client.chat.completions.create(**BODY)
        assert whole.choices[0].finish_reason == reason
        told = (whole.choices[0].message.tool_calls or [])[0].function.arguments  # type: ignore[union-attr]
        assert told.startswith('{"a": "' + said)
