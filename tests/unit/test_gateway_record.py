"""What a request leaves behind for those that stand beside it: one record each, whatever became of it."""

from __future__ import annotations

import openai
import pytest

from cluster.contracts import Direction
from deployments.gateway.record import RequestRecord
from tests.unit.gateway_app import chat, gateway, policy, route, snapshot, usage

MAIL = {"role": "user", "content": "write to ann@example.com"}
HELLO = {"role": "user", "content": "hello"}
PII = {"name": "pii", "kind": "pii", "on": "both", "action": "redact"}


class Keeps:
    """Keeps all records."""

    def __init__(self) -> None:
        self.records: list[RequestRecord] = []

    def ended(self, record: RequestRecord) -> None:
        self.records.append(record)


class Breaks:
    """Fails on every record."""

    def ended(self, record: RequestRecord) -> None:
        raise RuntimeError("observers may break")


async def test_an_answer_leaves_one_record() -> None:
    keeps = Keeps()
    published = snapshot(routes=[route(policy="strict")], policies=[policy("strict", PII)])
    async with gateway(published, observers=[Breaks(), keeps]) as running:
        running.script.says = [chat("ask bob@example.com "), chat("now", finish="stop"), usage(5, 2)]
        stream = await running.client.chat.completions.create(model="m", messages=[MAIL], stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
    (record,) = keeps.records
    assert record.key is not None
    assert record.key.id == "tester"
    assert record.route is not None
    assert record.route.model == "m"
    assert record.target is not None
    assert record.target.model == "engine-m"
    assert record.policy is not None
    assert record.policy.name == "strict"
    assert (record.status, record.error_code, record.stream) == (200, None, True)
    assert record.usage["total_tokens"] == 7
    assert [direction for direction, _ in record.findings] == [Direction.INPUT, Direction.OUTPUT]
    times = [
        record.admitted_s,
        record.guarded_s,
        record.sent_s,
        record.answered_s,
        record.first_s,
        record.last_s,
        record.ended_s,
    ]
    assert None not in times
    assert times == sorted(times)


async def test_refusals_and_failures_leave_one_record_each() -> None:
    keeps = Keeps()
    block = policy("default", PII | {"action": "block"})
    async with gateway(snapshot(policies=[block]), observers=[keeps]) as running:
        with pytest.raises(openai.BadRequestError):
            await running.client.chat.completions.create(model="m", messages=[MAIL])
        with pytest.raises(openai.NotFoundError):
            await running.client.chat.completions.create(model="none", messages=[HELLO])
        running.script.says = [RuntimeError("broken")]
        with pytest.raises(openai.InternalServerError):
            await running.client.chat.completions.create(model="m", messages=[HELLO])
        with pytest.raises(openai.AuthenticationError):
            await running.client.with_options(api_key="sk-wrong").chat.completions.create(
                model="m", messages=[HELLO]
            )
    assert [record.status for record in keeps.records] == [400, 404, 500, 401]
    assert keeps.records[0].error_code == "content_filter"
    assert keeps.records[0].sent_s is None
    assert keeps.records[3].key is None
