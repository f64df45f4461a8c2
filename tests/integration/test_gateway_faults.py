"""Parts that break while the gateway serves: a constant load by the official client must not feel it.

Serve, the gateway and the storage are real, the engine is the paced one. ``--fault-seconds 60`` for the whole
minute that a part may be away.
"""

# No postponed annotations: pytest's fixtures are typed as they are.

import asyncio
import os
import resource
import signal
import socket
import statistics
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from cluster import keys, snapshots
from cluster.contracts import KeyTerms, Route, Target
from cluster.keys import KeyRepository
from cluster.settings import load_settings
from tests.conftest import S3
from tests.integration.constant_load import Load
from tests.ports import free_ports

pytestmark = [pytest.mark.integration, pytest.mark.slow]

WORDS = "one two three four five six seven eight nine ten"
IDLE = 1000


@dataclass(frozen=True)
class Rig:
    """Two gateway replicas before two model replicas."""

    port: int
    model: str
    secret: str

    def client(self, max_retries: int = 0) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            api_key=self.secret,
            base_url=f"http://127.0.0.1:{self.port}/v1",
            max_retries=max_retries,
            timeout=120,
        )


@pytest.fixture(scope="module")
def rig(local_ray: None) -> Iterator[Rig]:
    from ray import serve

    from deployments.batches.deployment import BatchWorkers
    from deployments.gateway import GatewayArgs
    from deployments.gateway.deployment import Gateway
    from tests.paced_engine import PacedArgs, build

    name, port = f"paced-{uuid.uuid4().hex[:8]}", free_ports()
    repository = KeyRepository(load_settings().database_url)
    secret = repository.create(KeyTerms(id=name, owner="test", team="default", models=[name])).secret
    keys.publish(repository, by="test")
    target = Target(application="paced", deployment="model", model="paced")
    route = Route(model=name, targets=[target], created_at=datetime.now(UTC))
    snapshots.publish(lambda s: s.model_copy(update={"routes": [*s.routes, route]}), by="test")
    args = GatewayArgs(max_concurrent_requests=256)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        paced = PacedArgs(words=WORDS, num_replicas=2)
        serve.run(build(paced), name="paced", route_prefix=None)
        gateway = Gateway.options(num_replicas=2).bind(args, BatchWorkers.bind(args))
        serve.run(gateway, name="gateway", route_prefix="/")
        yield Rig(port, name, secret)
    finally:
        serve.shutdown()


def processes(title: str) -> list[psutil.Process]:
    """Of this session's small Ray, by the title that Ray gives them."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any(word.startswith(title) for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


async def both_run(application: str, deployment: str) -> None:
    """Wait for both replicas: Serve looks for dead ones now and then, and starts others."""
    from ray import serve

    def running() -> bool:
        found = serve.status().applications[application].deployments[deployment].replica_states
        there = processes(f"ray::ServeReplica:{application}:{deployment}")
        return len(there) == 2 and found == {"RUNNING": 2}

    async with asyncio.timeout(300):
        while not await asyncio.to_thread(running):  # noqa: ASYNC110 - nobody tells.
            await asyncio.sleep(0.1)


async def kill(title: str) -> None:
    """SIGKILL one process of that title, as soon as there is one."""
    for _ in range(3000):
        if found := processes(title):
            found[0].kill()
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"no process {title}")


def said(load: Load) -> None:
    """Every answer is whole, and there were some."""
    assert len(load.texts) > load.clients
    expected = " ".join(WORDS.split()[number % 10] for number in range(load.max_tokens))
    assert {text.strip() for text in load.texts} == {expected}


async def test_a_model_replica_is_killed(rig: Rig) -> None:
    """No request fails before its first byte, even without the client's own retries."""
    async with rig.client() as client:
        whole, streams = Load(client, rig.model), Load(client, rig.model, stream=True)
        async with whole.running(), streams.running():
            for _ in range(2):
                await asyncio.sleep(1.5)
                await both_run("paced", "model")
                await kill("ray::ServeReplica:paced:model")
            await asyncio.sleep(3)
    assert not whole.failed
    assert not streams.failed
    said(whole)
    said(streams)


async def test_a_gateway_replica_is_killed(rig: Rig) -> None:
    """The client's default retries succeed."""
    async with rig.client(max_retries=openai.DEFAULT_MAX_RETRIES) as client:
        whole = Load(client, rig.model)
        async with whole.running():
            await asyncio.sleep(1.5)
            await both_run("gateway", "gateway")
            await kill("ray::ServeReplica:gateway:gateway")
            await asyncio.sleep(4)
    assert not whole.failed
    said(whole)


async def test_the_controller_is_killed_every_five_seconds(rig: Rig, request: pytest.FixtureRequest) -> None:
    async with rig.client() as client:
        whole, streams = Load(client, rig.model), Load(client, rig.model, stream=True)
        async with whole.running(), streams.running():
            for _ in range(max(1, int(request.config.getoption("--fault-seconds") / 5))):
                await asyncio.sleep(1)
                await kill("ray::ServeController")
                await asyncio.sleep(4)
    assert not whole.failed + streams.failed + streams.broken
    said(whole)
    said(streams)


async def test_database_and_storage_are_away(rig: Rig, s3: S3, request: pytest.FixtureRequest) -> None:
    """Serving goes on with what is known, and what was changed meanwhile arrives afterwards."""
    async with rig.client() as client:
        whole = Load(client, rig.model)
        with without_control_plane(s3):
            async with whole.running():
                await asyncio.sleep(request.config.getoption("--fault-seconds"))
        assert not whole.failed
        said(whole)
        made = await asyncio.to_thread(late_key, rig)
        async with openai.AsyncOpenAI(
            api_key=made, base_url=f"http://127.0.0.1:{rig.port}/v1", max_retries=0
        ) as late:
            for _ in range(300):
                try:
                    assert [model.id for model in (await late.models.list()).data] == [rig.model]
                    break
                except (openai.AuthenticationError, openai.RateLimitError):  # The latter after many failures.
                    await asyncio.sleep(1)
            else:
                pytest.fail("the gateway did not catch up")


@contextmanager
def without_control_plane(s3: S3) -> Iterator[None]:
    """The S3 server takes connections and answers none; the database is not there."""
    # The folder: a database that is missing in one that is there would be made anew. And a file in its place:
    # a process that begins meanwhile would make the folder, which could not come back then.
    folder = Path(load_settings().database_url.removeprefix("sqlite:///")).parent
    away = folder.with_name(f"{folder.name}.away")
    folder.rename(away)
    try:
        folder.touch(exist_ok=False)
        os.kill(s3.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(s3.pid, signal.SIGCONT)
    finally:
        folder.unlink(missing_ok=True)
        away.rename(folder)


def late_key(rig: Rig) -> str:
    repository = KeyRepository(load_settings().database_url)
    made = repository.create(
        KeyTerms(id=f"late-{rig.model}", owner="test", team="default", models=[rig.model])
    )
    keys.publish(repository, by="test")
    return made.secret


async def test_a_thousand_connections_that_say_nothing_or_little(rig: Rig) -> None:
    """Half of them are silent, half have begun a request with a good key and go no further."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4 * IDLE)), hard))
    begun = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {rig.secret}\r\n"
        'content-type: application/json\r\ncontent-length: 1000\r\n\r\n{"model":'
    ).encode()
    connections: list[Any] = []
    try:
        async with rig.client() as client:
            alone = Load(client, rig.model)
            async with alone.running():
                await asyncio.sleep(2)
            for number in range(IDLE):
                connections.append(socket.create_connection(("127.0.0.1", rig.port), timeout=300))
                if number % 2:
                    connections[-1].sendall(begun)
            await asyncio.sleep(2)
            beside = Load(client, rig.model)
            async with beside.running():
                await asyncio.sleep(4)
    finally:
        for connection in connections:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not beside.failed
    said(beside)
    medians = [statistics.median(load.seconds) for load in (alone, beside)]
    print(f"median of a healthy request: {medians[0]:.3f} s alone, {medians[1]:.3f} s beside {IDLE} idle")
