"""Packaged guards in their application on Serve: batches, and validators that raise, hang or die."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.contracts import Direction, Segment
from deployments.guards import GuardsArgs, ServeGuards, application_name, build
from validation.guards import GuardContext, GuardEngine, Verdict, parse_policy

pytestmark = [pytest.mark.integration, pytest.mark.slow]
ODD = {
    "kind": "guardrails",
    "on": "input",
    "validator": "tests.integration.odd_validator:Odd",
    "unit": "text",
}
POLICY = parse_policy(
    {
        "name": "odd",
        "version": 1,
        "guards": [ODD | {"name": "odd", "timeout_s": 1}, ODD | {"name": "well", "timeout_s": 1}],
    }
)
Asked = dict[str, Verdict]


@pytest.fixture(scope="module")
def application(local_ray: None) -> Iterator[Any]:
    """The handle of the policy's application."""
    pytest.importorskip("guardrails")
    from ray import serve

    name = application_name(POLICY.digest)
    yield serve.run(build(GuardsArgs(policy=POLICY.model_dump(mode="json"))), name=name, route_prefix=None)
    serve.shutdown()


async def ask(*texts: str, impatient: tuple[str, ...] = ()) -> Asked:
    """What follows for each, all asked at once. Only guards that are named give up after their second."""
    engine = GuardEngine(POLICY, ServeGuards(POLICY))
    engine.packaged = [
        spec if spec.name in impatient else spec.model_copy(update={"timeout_s": 300.0})
        for spec in engine.packaged
    ]
    segments = [Segment(text=text, direction=Direction.INPUT) for text in texts]
    verdicts = await asyncio.gather(*(engine.judge(segment, GuardContext()) for segment in segments))
    return dict(zip(texts, verdicts, strict=True))


def labels(verdict: Verdict) -> set[tuple[str, str]]:
    return {(finding.guard, finding.label) for finding in verdict.findings}


def test_texts_that_wait_for_one_guard_are_judged_together_each_with_its_own_outcome(
    application: Any,
) -> None:
    asked = asyncio.run(
        ask(*(f"good {number}" for number in range(20)), "bad", "raise", "good too", "bad too")
    )
    assert {text for text, verdict in asked.items() if verdict.blocked} == {"bad", "raise", "bad too"}
    assert labels(asked["bad"]) == {("odd", "Odd"), ("well", "Odd")}
    assert labels(asked["raise"]) == {("odd", "GUARD_ERROR"), ("well", "GUARD_ERROR")}


def test_a_guard_that_hangs_blocks_holds_up_no_other_and_serve_learns_of_it(
    application: Any, tmp_path: Path
) -> None:
    hangs = tmp_path / "hangs"

    async def health() -> str:
        try:
            await application.check_health.remote()
        except RuntimeError as error:
            return str(error)
        return "good"

    async def both() -> None:
        guards = ServeGuards(POLICY)
        hanging = asyncio.create_task(
            guards.check("odd", POLICY.digest, Segment(text=f"hang {hangs}", direction=Direction.INPUT))
        )
        async with asyncio.timeout(300):
            while not hangs.exists():  # noqa: ASYNC110 - the replica has no other way to tell.
                await asyncio.sleep(0.05)
        asked = await ask("bad", impatient=("odd",))
        assert asked["bad"].blocked
        assert labels(asked["bad"]) == {("odd", "GUARD_ERROR"), ("well", "Odd")}
        async with asyncio.timeout(300):
            while "has judged one text for" not in await health():  # noqa: ASYNC110 - nor Serve.
                await asyncio.sleep(0.1)
        hangs.unlink()
        assert await hanging == []
        assert await health() == "good"

    asyncio.run(both())


def test_a_guard_that_takes_its_replica_down_blocks_until_serve_has_another(application: Any) -> None:
    assert asyncio.run(ask("die"))["die"].blocked
    verdict, until = None, time.monotonic() + 500
    while (verdict is None or verdict.blocked) and time.monotonic() < until:
        asked = asyncio.run(ask("good", "bad"))
        verdict = asked["good"]
        assert asked["bad"].blocked
    assert verdict is not None
    assert not verdict.blocked
