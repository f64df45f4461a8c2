"""What the warm engine does with failures: who is asked again, how often, and with whom.

A Serve handle is played by this process: an engine that dies or falls silent at a given moment can be had no
other way in milliseconds. tests/model/test_batch_resume.py has a real one die. Time is the loop's own.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.exceptions import ActorDiedError

from cluster.contracts import PolicyDocument, Principal, Target
from cluster.errors import UnavailableError
from jobs.batch import warm
from jobs.batch.guarding import BatchGuards
from jobs.batch.lanes import Lanes
from jobs.batch.rows import BatchRequest


class Timeless(asyncio.SelectorEventLoop):
    """A loop whose clock goes on only when nothing else is left to do, and then at once to what is next.

    So no test waits, and none sees how slow the machine is.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0

    def time(self) -> float:
        return self._now

    def stand_still(self, seconds: float) -> None:
        self._now += seconds

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self._now = max(self._now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


class Handle:
    """One replica. ``behave`` says by row and try what it does; a death hits all that are in flight."""

    def __init__(self, behave: Callable[[str, int], str]) -> None:
        self.behave, self.tries = behave, Counter[str]()
        self.flying: dict[str, asyncio.Future[None]] = {}
        self.deaths: list[set[str]] = []
        self.most = 0

    def remote(self, request: dict[str, Any]) -> Any:
        return _Stream(self._run(request["request_id"].removeprefix("batch-")))

    async def _run(self, row: str) -> AsyncIterator[bytes]:
        self.tries[row] += 1
        dies = asyncio.get_running_loop().create_future()
        self.flying[row] = dies
        self.most = max(self.most, len(self.flying))
        try:
            await asyncio.sleep(0.005)
            does = self.behave(row, self.tries[row])
            if does == "pause":  # Of the whole machine.
                cast(Timeless, asyncio.get_running_loop()).stand_still(100)
            if does == "die":
                self.deaths.append(set(self.flying))
                for other in self.flying.values():
                    other.done() or other.set_result(None)
            if dies.done():
                raise ActorDiedError
            if does == "silent":
                await asyncio.sleep(60)
            if does.isdigit():
                yield b'event: error\ndata: {"status": %s, "message": "no"}\n\n' % does.encode()
                return
            yield _chunk({"content": "Yes"})
            if does == "hang":
                await asyncio.sleep(60)
            yield _chunk({}, "stop")
        finally:
            self.flying.pop(row, None)


class _Stream:
    def __init__(self, items: AsyncIterator[bytes]) -> None:
        self._items = items

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._items

    def cancel(self) -> None:
        pass


def _chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return f"data: {json.dumps({'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n".encode()


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, dict[str, Any]]]:
    """Ask so many rows of a handle; stored rows by id."""
    # Pauses between tries are of no interest here.
    monkeypatch.setattr(warm.random, "uniform", lambda *_: 0.001)

    def run(handle: Handle, rows: int, **changes: Any) -> dict[str, dict[str, Any]]:
        monkeypatch.setattr(warm, "_handle", lambda target: handle)
        monkeypatch.setattr(asyncio.events, "new_event_loop", Timeless)
        document = {
            "name": "open",
            "version": 1,
            "guards": [{"name": "length", "kind": "length", "on": "both", "max_characters": 1000}],
        }
        policy = PolicyDocument(name="open", digest="0" * 64, body=document)
        principal = Principal(key_id="tester", team="test")
        settings = {"concurrency": 16, "attempts": 3, "timeout_s": 30.0, "stall_s": 30.0, "outage_s": 30.0}
        engine = warm.WarmEngine(
            Target(application="a", deployment="model", model="m"),
            BatchGuards(policy, principal),
            principal,
            **settings | changes,
        )
        body = {"messages": [{"role": "user", "content": "Hello"}]}
        requests = (BatchRequest(f"r{n}", f"r{n}", "chat", body, n) for n in range(rows))
        answers = list(engine.answers(requests))
        assert sorted(row["number"] for row in answers) == list(range(rows))
        return {row["row_id"]: row for row in answers}

    return run


def failed(answers: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: row["error_code"] for name, row in answers.items() if row["status"] == "failed"}


def test_a_row_that_kills_the_engine_goes_alone_and_all_others_are_answered(ask: Any) -> None:
    handle = Handle(lambda row, tried: "die" if row in ("r5", "r20") else "answer")
    answers = ask(handle, 40)
    assert failed(answers) == {"r5": "poison", "r20": "poison"}
    assert "3 times" in answers["r5"]["error_message"]
    alone = [death for death in handle.deaths if len(death) == 1]
    assert {"r5"} in alone
    assert {"r20"} in alone
    assert len(handle.deaths) <= 6
    assert handle.most == 16


def test_rows_that_were_in_flight_at_somebody_elses_death_are_not_to_blame(ask: Any) -> None:
    # Every replica that first sees one of these dies, whoever asks: an engine that is killed now and then.
    handle = Handle(lambda row, tried: "die" if row in ("r3", "r9", "r12") and tried == 1 else "answer")
    assert failed(ask(handle, 30)) == {}
    assert 1 <= len(handle.deaths) <= 3


def test_a_request_that_stops_half_way_is_cancelled_and_asked_again(ask: Any) -> None:
    handle = Handle(lambda row, tried: "hang" if row == "r1" and tried == 1 else "answer")
    assert failed(ask(handle, 4, stall_s=0.2)) == {}
    assert handle.tries["r1"] == 2


def test_one_that_waits_while_others_get_tokens_is_left_to_its_time_limit(ask: Any) -> None:
    def behave(row: str, tried: int) -> str:
        return "silent" if row == "r0" else "answer"

    handle = Handle(behave)
    answers = ask(handle, 300, concurrency=2, stall_s=0.2, timeout_s=1.0, attempts=1)
    assert failed(answers) == {"r0": "timeout"}
    assert handle.tries["r0"] == 1


def test_an_engine_that_falls_silent_costs_no_row_its_tries(ask: Any) -> None:
    handle = Handle(lambda row, tried: "silent" if tried <= 4 else "answer")
    assert failed(ask(handle, 3, stall_s=0.1, attempts=2)) == {}


def test_an_engine_that_stays_silent_ends_the_run_with_a_sentence(ask: Any) -> None:
    with pytest.raises(UnavailableError, match="no sign of life for 1 s: look at `manta status`"):
        ask(Handle(lambda row, tried: "silent"), 3, stall_s=0.2, outage_s=0.6)


def test_a_machine_that_stands_still_is_no_silence_of_the_engine(ask: Any) -> None:
    handle = Handle(lambda row, tried: "pause" if row == "r9" else "answer")
    assert failed(ask(handle, 40, timeout_s=300.0, stall_s=0.2, outage_s=50.0, attempts=1)) == {}
    assert set(handle.tries.values()) == {1}


@pytest.mark.parametrize(("status", "tries", "code"), [("400", 1, "server_error"), ("503", 3, "unavailable")])
def test_what_the_request_is_wrong_about_is_not_tried_again(
    ask: Any, status: str, tries: int, code: str
) -> None:
    handle = Handle(lambda row, tried: status if row == "r1" else "answer")
    assert failed(ask(handle, 3)) == {"r1": code}
    assert handle.tries["r1"] == tries


async def test_lanes_never_mix_and_keep_their_width() -> None:
    lanes, running, seen = Lanes((4, 2, 1)), Counter[int](), []

    async def one(lane: int) -> None:
        async with lanes.enter(lane):
            running[lane] += 1
            seen.append(dict(+running))
            await asyncio.sleep(0.001)
            running[lane] -= 1

    await asyncio.gather(*(one(number % 3) for number in range(60)))
    assert all(len(now) == 1 for now in seen)
    for lane, width in enumerate((4, 2, 1)):
        assert max(now.get(lane, 0) for now in seen) == width


@pytest.mark.parametrize(
    ("status", "waits"),
    [("RUNNING", True), ("UNHEALTHY", True), ("DEPLOYING", True), ("DEPLOY_FAILED", False), (None, False)],
)
def test_a_batch_begins_while_its_engine_is_replaced(
    monkeypatch: pytest.MonkeyPatch, status: str | None, waits: bool
) -> None:
    """An application is unhealthy for as long as the place of a replica that died is empty."""
    from ray import serve
    from ray.serve.schema import ApplicationStatus

    deployments = {"model": None}
    found = (
        {"a": SimpleNamespace(status=ApplicationStatus(status), deployments=deployments)} if status else {}
    )
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications=found))
    handle = SimpleNamespace(options=lambda **_: "the handle")
    monkeypatch.setattr(serve, "get_deployment_handle", lambda name, app_name: handle)
    target = Target(application="a", deployment="model", model="m")
    if waits:
        assert warm._handle(target) == "the handle"
    else:
        with pytest.raises(UnavailableError, match=f"'a' is {status or 'not deployed'}: deploy it"):
            warm._handle(target)
    deployments.clear()  # Serve forgets them while it builds an application's new code.
    if status == "DEPLOYING":
        with pytest.raises(UnavailableError, match="'a' is DEPLOYING: run this again when it is RUNNING"):
            warm._handle(target)


def test_a_controller_that_does_not_answer_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import serve

    def status() -> None:
        raise ActorDiedError

    monkeypatch.setattr(serve, "status", status)
    with pytest.raises(UnavailableError, match=r"Ray Serve does not say what runs \(ActorDiedError\)"):
        warm.check_running(Target(application="a", deployment="model", model="m"))
