"""What requests are counted as and how they are timed. That Prometheus gets it is tests/integration's."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from cluster.contracts import Price
from deployments.gateway.metrics import COUNTERS, HISTOGRAMS, measurements
from deployments.gateway.record import RequestRecord
from tests.unit.gateway_app import chat, gateway, policy, route, snapshot, usage
from tests.unit.test_gateway_record import HELLO, MAIL, PII
from tests.unit.test_gateway_requests import AUTH, URL

PRICE = Price.model_validate({"input_per_million_tokens": 1, "output_per_million_tokens": 2})


class Collects:
    """Everything measured, by name."""

    def __init__(self) -> None:
        self.found: dict[str, list[tuple[float, dict[str, str]]]] = defaultdict(list)
        self.records: list[RequestRecord] = []

    def ended(self, record: RequestRecord) -> None:
        self.records.append(record)
        for name, value, labels in measurements(record):
            expected = COUNTERS[name][1] if name in COUNTERS else HISTOGRAMS[name][1]
            assert set(labels) == set(expected)  # Ray refuses any other.
            self.found[name].append((value, labels))


async def ask(g: Any, message: dict[str, str], model: str = "m", headers: dict = AUTH, **more: Any) -> int:
    body = {"model": model, "messages": [message]} | more
    return (await g.http.post(URL, json=body, headers=headers)).status_code


async def test_an_answer_is_counted_priced_and_timed() -> None:
    collects = Collects()
    published = snapshot(routes=[route(policy="pii", price=PRICE)], policies=[policy("pii", PII)])
    async with gateway(published, observers=[collects]) as g:
        g.script.pause_s = 0.01
        g.script.says = [chat("one "), chat("two "), chat("three", finish="stop"), usage(5, 3)]
        assert await ask(g, MAIL, stream=True) == 200
    who = {"model": "m", "key": "tester", "endpoint": "chat", "verdict": "redacted"}
    found = collects.found
    assert found["manta_requests_total"] == [(1, who | {"status": "200", "code": ""})]
    assert [(value, labels["kind"]) for value, labels in found["manta_tokens_total"]] == [
        (5, "prompt"),
        (3, "completion"),
    ]
    assert found["manta_cost_total"] == [(0.000011, {"model": "m", "key": "tester"})]
    ((_, finding),) = found["manta_guard_findings_total"]
    assert (finding["guard"], finding["action"], finding["direction"]) == ("pii", "redact", "input")
    assert set(HISTOGRAMS) <= found.keys()
    seconds = {name: found[name][0][0] for name in HISTOGRAMS}
    (record,) = collects.records
    # Where the time to the first token went.
    parts = seconds["manta_gateway_overhead_seconds"] + seconds["manta_engine_first_chunk_seconds"]
    assert abs(parts - seconds["manta_time_to_first_token_seconds"]) < 1e-9
    assert seconds["manta_engine_first_chunk_seconds"] >= 0.01
    assert seconds["manta_request_duration_seconds"] == record.ended_s
    between = seconds["manta_time_per_output_token_seconds"]
    assert between == (record.last_s - record.first_s) / 2 > 0
    assert found["manta_time_to_first_token_seconds"][0][1] == who
    # Each guard by itself: of the request, and of the answer as it streamed.
    guards = {(labels["direction"], labels["verdict"]) for _, labels in found["manta_guard_seconds"]}
    assert guards == {("input", "redacted"), ("output", "passed")}
    assert 0 < sum(seconds for seconds, _ in found["manta_guard_seconds"]) < record.ended_s


async def test_refusals_have_a_verdict_and_a_code_and_no_times_that_never_were() -> None:
    collects = Collects()
    block = policy("default", PII | {"action": "block"})
    async with gateway(snapshot(policies=[block]), observers=[collects]) as g:
        assert await ask(g, MAIL) == 400
        assert await ask(g, HELLO, model="none") == 404
        assert await ask(g, HELLO, headers={}) == 401
    labels = [labels for _, labels in collects.found["manta_requests_total"]]
    assert [(item["status"], item["code"], item["verdict"]) for item in labels] == [
        ("400", "content_filter", "blocked"),
        ("404", "model_not_found", "passed"),
        ("401", "invalid_api_key", "passed"),
    ]
    # What a stranger sends becomes no label.
    assert [(item["model"], item["key"]) for item in labels] == [("m", "tester"), ("", "tester"), ("", "")]
    assert len(collects.found["manta_request_duration_seconds"]) == 3
    assert "manta_time_to_first_token_seconds" not in collects.found
    assert "manta_engine_first_chunk_seconds" not in collects.found


async def test_what_only_a_shadow_saw_changed_nothing() -> None:
    collects = Collects()
    shadow = policy("default", PII | {"action": "block", "mode": "shadow"})
    async with gateway(snapshot(policies=[shadow]), observers=[collects]) as g:
        g.script.says = [chat("ok", finish="stop"), usage(1, 1)]
        assert await ask(g, MAIL) == 200
    assert collects.found["manta_requests_total"][0][1]["verdict"] == "passed"
    assert collects.found["manta_guard_findings_total"][0][1]["action"] == "shadow"


def test_names_carry_units() -> None:
    assert all(name.endswith("_seconds") for name in HISTOGRAMS)
    assert all(name.endswith("_total") for name in COUNTERS)
