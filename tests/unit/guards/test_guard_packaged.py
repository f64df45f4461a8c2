"""A Guardrails AI validator from PyPI, called for real. It is imported in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from cluster.contracts import Direction, Segment
from cluster.errors import RefusedError, UsageError
from validation.guards import parse_policy
from validation.guards.packaged import PackagedGuards
from validation.guards.policy import GuardPolicy

RUDE = "You are a fucking idiot."

PROGRAM = f"""
import asyncio, json, logging, os, socket, sys, io
attempts = []
def refuse(*args, **kwargs):
    attempts.append(str(args[-1]))
    raise OSError("offline")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
log = io.StringIO()
logging.basicConfig(stream=log, level=logging.DEBUG)

from cluster.contracts import Segment
from validation.guards import GuardContext, GuardEngine, parse_policy
from validation.guards.packaged import PackagedGuards

policy = parse_policy({{"name": "p", "version": 1, "guards": [{{
    "name": "profanity", "kind": "guardrails", "on": "both", "action": "redact", "timeout_s": 300,
    "validator": "guardrails_ai.profanity_free:ProfanityFree"}}]}})
guards = PackagedGuards(policy)
guards.load()
engine = GuardEngine(policy, guards)

async def main():
    segment = Segment(text="Hello. {RUDE} Bye.", direction="output")
    verdict = await engine.judge(segment, GuardContext())
    stream = engine.stream(GuardContext())
    released = "".join([await stream.feed(char) for char in segment.text] + [await stream.flush()])
    return verdict, released

verdict, released = asyncio.run(main())
guards.close()
from guardrails.utils.hub_telemetry_utils import HubTelemetry
print(json.dumps({{
    "text": verdict.text, "released": released, "labels": [f.label for f in verdict.findings],
    "telemetry": HubTelemetry._instance is not None, "attempts": attempts,
    "told": "fucking" in log.getvalue() + repr(verdict.findings),
}}))
"""


@pytest.mark.slow
def test_a_validator_from_pypi_judges_texts_and_streams_and_calls_nobody() -> None:
    pytest.importorskip("profanity_check")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "text": "Hello.[ProfanityFree] Bye.",
        "released": "Hello.[ProfanityFree] Bye.",
        "labels": ["ProfanityFree"],
        "telemetry": False,
        "attempts": [],
        "told": False,
    }


def packaged(validator: str, **more: object) -> GuardPolicy:
    guard = {"name": "far", "kind": "guardrails", "on": "both", "validator": validator, **more}
    return parse_policy({"name": "p", "version": 1, "guards": [guard]})


@pytest.mark.slow
def test_a_package_that_is_missing_is_one_sentence() -> None:
    pytest.importorskip("guardrails")
    with pytest.raises(
        UsageError,
        match=r"no module guardrails_ai\.no_such_thing; install its package, perhaps guardrails-ai",
    ):
        PackagedGuards(packaged("guardrails_ai.no_such_thing:Nothing")).load()
    with pytest.raises(UsageError, match=r"cluster\.errors has no Nothing"):
        PackagedGuards(packaged("cluster.errors:Nothing")).load()


async def test_another_version_of_the_policy_is_refused() -> None:
    guards = PackagedGuards(packaged("cluster.errors:MantaError"))
    with pytest.raises(RefusedError, match="another version of policy p"):
        await guards.check("far", "0" * 64, Segment(text="x", direction=Direction.OUTPUT))
