"""Model applications come, change and go by `manta deploy` under a load on them and on others."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from cluster import snapshots
from cluster.contracts import Route, Snapshot, Target
from tests.integration.conftest import ROOT
from tests.integration.constant_load import Load
from tests.integration.serving import BASE, Served
from tests.integration.test_gateway import _replicas

pytestmark = [pytest.mark.integration, pytest.mark.slow]

NAMES = ("paced-one", "paced-two")


@pytest.fixture
def code(served: Served, tmp_path: Path) -> Path:
    """The served code with the paced engine beside it: tests are no part of what is deployed."""
    code = tmp_path / "code"
    shutil.copytree(served.code, code)
    shutil.copy(ROOT / "tests" / "paced_engine.py", code / "paced_engine.py")
    return code


@pytest.fixture
def deploy(served: Served, code: Path, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """`manta deploy` of a paced application that says these words, or without words its removal."""

    def deploy(name: str, words: str | None) -> None:
        file = tmp_path / f"{name}.yaml"
        application = {"name": name, "route_prefix": None, "import_path": "paced_engine:build"}
        file.write_text(yaml.safe_dump({"applications": [application | {"args": {"words": words}}]}))
        asked = [str(file)] if words else ["--delete", name]
        done = served.cluster.manta("deploy", *asked, cwd=code)
        assert done.returncode == 0, done.stdout + done.stderr

    yield deploy
    for name in NAMES:
        served.cluster.manta("deploy", "--delete", name, cwd=code)


def publish(name: str) -> None:
    """A route to that application. `manta deploy` makes routes of engines only."""
    target = Target(application=name, deployment="model", model="paced")
    route = Route(model=name, targets=[target], created_at=datetime.now(UTC))

    def with_route(now: Snapshot) -> Snapshot:
        return now.model_copy(
            update={"routes": [route, *(other for other in now.routes if other.model != name)]}
        )

    snapshots.publish(with_route, by="test")


async def until_answers(load: Load) -> None:
    """As soon as the gateway knows the route."""
    while not load.texts:
        await load._one()
    load.failed.clear()


async def test_two_applications_added_upgraded_and_removed_under_load(
    served: Served, deploy: Callable[..., None]
) -> None:
    one, two = NAMES
    before = _replicas(served)
    async with served.async_client() as client:
        engine = Load(client, BASE, clients=1, max_tokens=4)
        first = Load(client, one, stream=True, clients=4, max_tokens=30)
        second = Load(client, two, stream=True, clients=4, max_tokens=30)
        async with engine.running():
            await asyncio.to_thread(deploy, one, "old")
            await asyncio.to_thread(publish, one)
            await until_answers(first)
            async with first.running():
                await asyncio.to_thread(deploy, two, "two")
                await asyncio.to_thread(publish, two)
                await until_answers(second)
                async with second.running():
                    await asyncio.to_thread(deploy, one, "new")
                    await asyncio.sleep(1)
                    assert not second.failed + second.broken
                    await asyncio.to_thread(deploy, two, None)
        assert not first.failed + first.broken
        assert not engine.failed + engine.broken
        assert not second.broken
        # Who still asks for what is gone is told so.
        assert {failure.partition(":")[0] for failure in second.failed} <= {"NotFoundError"}
        said = [text.split()[0] for text in first.texts]
        assert {len(text.split()) for text in first.texts} == {30}
        assert set(said) == {"old", "new"}
        assert said[0] == "old"
        assert said[-1] == "new"
        assert engine.texts
        await asyncio.to_thread(deploy, one, None)
    assert _replicas(served) == before
