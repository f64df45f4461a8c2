"""HAProxy as Serve's ingress, which a cluster may choose: the gateway behind it is the same."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import openai
import psutil
import pytest

from tests.integration.conftest import ROOT
from tests.integration.constant_load import Load

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.ray]


@dataclass(frozen=True)
class Rig:
    """The program that serves, and where it does."""

    program: subprocess.Popen[str]
    url: str
    model: str
    key: str

    def client(self, max_retries: int = 0) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(api_key=self.key, base_url=self.url, max_retries=max_retries, timeout=120)

    def open_streams(self) -> int:
        """What the engine is at."""
        assert self.program.stdin is not None
        assert self.program.stdout is not None
        self.program.stdin.write("\n")
        self.program.stdin.flush()
        return int(self.program.stdout.readline())

    def gateways(self) -> list[psutil.Process]:
        """The gateway's replicas."""
        found = list[psutil.Process]()
        for process in psutil.Process(self.program.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # Some end just now.
                if any("ServeReplica:gateway:gateway" in word for word in process.cmdline()):
                    found.append(process)
        return found


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    # Nothing of this process's own platform.
    foreign = ("RAY_", "AWS_", "MANTA_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.haproxy_serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=clean | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        text=True,
    )
    assert program.stdin is not None
    assert program.stdout is not None
    try:
        said = ""
        while not said.startswith("{"):  # Before, others' lines may come.
            said = program.stdout.readline()
            assert said, "it ended before it served"
        yield Rig(program, **json.loads(said))
    finally:
        program.stdin.close()
        program.wait(120)
        program.stdout.close()


async def test_haproxy_listens_where_clients_ask(rig: Rig) -> None:
    assert "haproxy" in listeners(rig.program.pid, httpx.URL(rig.url).port)
    async with rig.client() as client:
        assert [model.id for model in (await client.models.list()).data] == [rig.model]


def listeners(root: int, port: int | None) -> set[str]:
    """Names of the processes below one that have that port."""
    found = set[str]()
    for process in psutil.Process(root).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # Some end just now.
            if any(c.laddr and c.laddr.port == port for c in process.net_connections()):
                found.add(process.name())
    return found


async def test_a_stream_arrives_while_it_is_made(rig: Rig) -> None:
    async with rig.client() as client:
        asked = await client.chat.completions.with_raw_response.create(
            model=rig.model,
            messages=[{"role": "user", "content": "Say something."}],
            max_tokens=50,
            stream=True,
            extra_headers={"x-request-id": "one-of-mine"},
        )
        assert asked.headers.get_list("x-request-id") == ["one-of-mine"]
        stream = asked.parse()
        text = ""
        async for chunk in stream:
            if not text and chunk.choices and chunk.choices[0].delta.content:
                assert rig.open_streams() == 1, "the first word is here before the engine has said the last"
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
    assert len(text.split()) == 50


async def test_errors_are_those_of_the_gateway(rig: Rig) -> None:
    async with rig.client() as client:
        with pytest.raises(openai.NotFoundError) as missing:
            await client.models.retrieve("nobody")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.AuthenticationError) as stranger:
            await client.with_options(api_key="sk-none").models.list()
        assert stranger.value.code == "invalid_api_key"


async def test_who_goes_away_ends_the_generation(rig: Rig) -> None:
    async with rig.client() as client:
        stream = await client.chat.completions.create(
            model=rig.model, messages=[{"role": "user", "content": "Go on."}], max_tokens=10_000, stream=True
        )
        async for _ in stream:
            break
        assert rig.open_streams() == 1
        await stream.close()
    until = time.monotonic() + 300  # By itself the generation would take 1,000 s.
    while rig.open_streams():
        assert time.monotonic() < until
        await asyncio.sleep(0.1)


async def test_a_killed_gateway_is_not_felt(rig: Rig) -> None:
    """The client's default retries succeed."""
    async with rig.client(max_retries=openai.DEFAULT_MAX_RETRIES) as client:
        load = Load(client, rig.model, max_tokens=4)
        async with load.running():
            await answered(load, 6)
            gateways = rig.gateways()
            assert len(gateways) == 2
            gateways[0].kill()
            await answered(load, len(load.texts) + 30)
    assert not load.failed


async def answered(load: Load, count: int) -> None:
    """Wait for so many answers in all."""
    for _ in range(3000):
        if len(load.texts) >= count or load.failed:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{len(load.texts)} answers in five minutes")
