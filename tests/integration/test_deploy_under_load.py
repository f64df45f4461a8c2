"""Model applications come, change and go by `manta deploy` under a load on them and on others."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.conftest import ROOT
from tests.integration.constant_load import Load
from tests.integration.serving import BASE, Served
from tests.integration.test_gateway import _replicas

pytestmark = [pytest.mark.integration, pytest.mark.slow]

NAMES = ("paced-one", "paced-two")


#: In place of the engine, in the code that is deployed; all that leads to it and from it is the real thing.
_PACED = """

def build(args: ModelApplicationArgs) -> "Application":
    from paced_engine import PacedArgs
    from paced_engine import build as paced

    return paced(PacedArgs(words=args.llm_config["engine_kwargs"]["words"]))
"""


@pytest.fixture
def code(served: Served, tmp_path: Path) -> Path:
    """The served code with the paced engine in place of vLLM."""
    code = tmp_path / "code"
    shutil.copytree(served.code, code)
    shutil.copy(ROOT / "tests" / "paced_engine.py", code / "paced_engine.py")
    with (code / "deployments" / "model.py").open("a") as model:
        model.write(_PACED)
    return code


def configuration(name: str, model: Path, words: str) -> dict[str, Any]:
    """A file with one model application that says these words."""
    llm_config = {
        "model_loading_config": {"model_id": name},
        "accelerator_config": {"kind": "cpu"},
        "engine_kwargs": {"words": words},
        "deployment_config": {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0}},
    }
    application = {
        "name": name,
        "route_prefix": None,
        "import_path": "deployments.model:build",
        "args": {"model": str(model), "llm_config": llm_config},
    }
    return {"applications": [application]}


@pytest.fixture
def deploy(served: Served, code: Path, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """`manta deploy` of a paced application that says these words, or without words its removal."""

    there = set[str]()

    def deploy(name: str, words: str | None) -> None:
        (there.add if words else there.discard)(name)
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(configuration(name, served.model_dir, words or "")))
        asked = [str(file)] if words else ["--delete", name]
        done = served.cluster.manta("deploy", *asked, cwd=code)
        assert done.returncode == 0, done.stdout + done.stderr

    yield deploy
    for name in there:
        served.cluster.manta("deploy", "--delete", name, cwd=code)


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
        first = Load(client, one, stream=True, clients=2, max_tokens=30)
        second = Load(client, two, stream=True, clients=2, max_tokens=30)
        async with engine.running():
            await asyncio.to_thread(deploy, one, "old")
            await until_answers(first)
            async with first.running():
                await asyncio.to_thread(deploy, two, "two")
                await until_answers(second)
                async with second.running():
                    await asyncio.to_thread(deploy, one, "new")
                    while first.texts[-1].split()[0] != "new":  # noqa: ASYNC110 - nobody tells.
                        await asyncio.sleep(0.1)
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
