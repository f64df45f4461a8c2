"""The registry with the real MLflow, crashes between its steps included: SQLite, and once PostgreSQL."""

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from cluster.alias_history import MoveState
from cluster.contracts import (
    ArtifactInput,
    ArtifactRef,
    CodeRevision,
    FileEntry,
    Manifest,
    ModelRef,
    Principal,
)
from cluster.errors import NotFoundError, RefusedError, UnavailableError, UsageError
from cluster.registry import Registry
from cluster.settings import Settings

pytestmark = pytest.mark.integration

ALICE = Principal(key_id="alice", team="default")
BASE = "default/model/gemma/00000000000000aa"
DATASET = "default/dataset/prompts/00000000000000bb"
EVALUATION = "default/evaluation/shield/00000000000000cc"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MANTA_PROFILE", "MANTA_DATABASE__URL"):
            patch.delenv(name, raising=False)
        patch.setenv("MANTA_HOME", str(tmp_path_factory.mktemp("registry")))
        yield Settings()


@pytest.fixture(scope="module")
def registry(settings: Settings) -> Registry:
    return Registry(settings)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model of this test's own."""
    return hashlib.sha256(request.node.name.encode()).hexdigest()[:12]


def checkpoint(number: int = 1) -> Manifest:
    now = datetime.now(UTC)
    return Manifest(
        ref=ArtifactRef(team="default", kind="checkpoint", name="shield", fingerprint=f"{number:016x}"),
        owner=ALICE,
        run_id=f"finetune-{number:016x}-1",
        data_digest=f"{number:064x}",
        files=[FileEntry(path="adapter/x", bytes=1, sha256="0" * 64)],
        inputs=[ArtifactInput(address=DATASET, digest="d"), ArtifactInput(address=BASE, digest="b")],
        configuration={},
        code=CodeRevision(git_revision="abc123", epoch=1),
        started_at=now,
        ended_at=now,
    )


def register(registry: Registry, name: str, number: int = 1, **tags: str):
    return registry.register(
        name, checkpoint(number), base=BASE, served_adapter="default/adapters/{adapter_id}/", tags=tags
    )


def move(registry: Registry, name: str, alias: str, version: int | None, why: str = "better") -> None:
    registry.set_alias(name, alias, version, by=ALICE, why=why, evidence=EVALUATION)


def test_a_version_carries_its_lineage(registry: Registry, name: str) -> None:
    made = register(registry, name, **{"manta.evaluation": EVALUATION})
    assert made.ref == ModelRef(name=name, version=1)
    assert made.checkpoint == str(checkpoint().ref)
    assert (made.digest, made.base) == (checkpoint().data_digest, BASE)
    assert made.adapter == f"default/adapters/{name}-v1/"
    assert made.tags["manta.dataset"] == DATASET
    assert made.tags["manta.evaluation"] == EVALUATION
    assert made.tags["manta.git_revision"] == "abc123"
    # The same checkpoint again is the same version; another one is the next.
    assert register(registry, name) == made
    again = register(registry, name, **{"manta.evaluation": "another"})
    assert (again.ref.version, again.tags["manta.evaluation"]) == (1, "another")
    assert register(registry, name, 2).ref.version == 2
    assert [version.ref.version for version in registry.versions(name)] == [1, 2]
    whole = registry.register(name, checkpoint(3), base=BASE, served_adapter=None, tags={})
    assert whole.adapter is None


def test_all_forms_of_an_address(registry: Registry, name: str) -> None:
    made = [register(registry, name, number) for number in (1, 2)]
    move(registry, name, "champion", 2)
    for uri in (f"models:/{name}@champion", f"models:/{name}/2", f"{name}@2", f"{name}@champion"):
        assert registry.resolve(uri) == made[1]
    assert registry.resolve(f"{name}@1") == made[0]


def test_wrong_addresses_name_what_exists(registry: Registry, name: str) -> None:
    register(registry, name)
    move(registry, name, "champion", 1)
    with pytest.raises(NotFoundError, match=rf"no registered model 'nobody' \(there are: .*{name}"):
        registry.resolve("nobody@1")
    with pytest.raises(NotFoundError, match=r"no alias 'challenger' \(it has: champion\)"):
        registry.resolve(f"models:/{name}@challenger")
    with pytest.raises(NotFoundError, match=r"no version 7 \(it has: 1\)"):
        registry.resolve(f"models:/{name}/7")
    for nonsense in (name, f"models:/{name}", f"{name}@", f"models:/{name}/x", "", "s3://a/b@c"):
        with pytest.raises(UsageError, match="is no model version"):
            registry.resolve(nonsense)
    with pytest.raises(NotFoundError, match="no version 9"):
        move(registry, name, "champion", 9)
    with pytest.raises(NotFoundError, match="no registered model"):
        move(registry, "nobody", "champion", 1)
    for alias in ("latest", "v3", "7"):
        with pytest.raises(UsageError, match="reserved"):
            move(registry, name, alias, 1)
    with pytest.raises(UsageError, match="is no alias"):
        move(registry, name, "Not An Alias", 1)
    with pytest.raises(UsageError, match="is no model name"):
        register(registry, "Not a name")
    assert [entry.alias for entry in registry.history(name)] == ["champion"]


def test_every_move_is_written_down(registry: Registry, name: str) -> None:
    for number in (1, 2):
        register(registry, name, number)
    move(registry, name, "champion", 1, why="first")
    move(registry, name, "champion", 2, why="better by 4 points")
    move(registry, name, "champion", 2, why="said twice")
    move(registry, name, "champion", None, why="withdrawn")
    moves = registry.history(name)
    assert [(m.from_version, m.to_version, m.why) for m in moves] == [
        (None, 1, "first"),
        (1, 2, "better by 4 points"),
        (2, None, "withdrawn"),
    ]
    assert all(m.state is MoveState.CONFIRMED and m.settled_at >= m.at for m in moves)
    assert {(m.by, m.evidence) for m in moves} == {(ALICE, EVALUATION)}
    assert registry.aliases(name) == {}
    assert registry.history("nobody") == []


def test_a_retired_version_is_named_no_longer(registry: Registry, name: str) -> None:
    for number in (1, 2):
        register(registry, name, number)
    move(registry, name, "champion", 1)
    move(registry, name, "challenger", 2)
    retired = registry.retire(ModelRef(name=name, version=1), by=ALICE, why="deleted")
    assert "by default/alice: deleted" in retired.tags["manta.retired"]
    again = registry.retire(ModelRef(name=name, version=1), by=ALICE, why="said twice")
    assert again.tags["manta.retired"] == retired.tags["manta.retired"]
    assert registry.aliases(name) == {"challenger": 2}
    last = registry.history(name)[-1]
    assert (last.alias, last.from_version, last.to_version, last.why) == ("champion", 1, None, "deleted")
    for asked in (lambda: registry.resolve(f"{name}@1"), lambda: move(registry, name, "champion", 1)):
        with pytest.raises(RefusedError, match=rf"{name}@1 was retired \(.*: deleted\): name another"):
            asked()
    with pytest.raises(RefusedError, match="was retired"):  # Its adapter must not be put there again.
        register(registry, name, 1, **{"manta.evaluation": "newer"})
    assert registry.resolve(f"{name}@challenger").ref.version == 2
    assert [version.ref.version for version in registry.versions(name)] == [1, 2]
    with pytest.raises(NotFoundError, match="no version 7"):
        registry.retire(ModelRef(name=name, version=7), by=ALICE, why="x")


def test_an_alias_that_moves_on_meanwhile_is_not_taken_away(
    registry: Registry, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        register(registry, name, number)
    move(registry, name, "champion", 1)
    read, others = Registry._aliases, list[Thread]()

    def read_before_another_moves(self: Registry, *args: Any, **more: Any) -> dict[str, int]:
        found = read(self, *args, **more)
        if not others:
            others.append(Thread(target=move, args=(registry, name, "champion", 2)))
            others[0].start()
            others[0].join(1.0)  # Time to be done, unless it is made to wait.
        return found

    monkeypatch.setattr(Registry, "_aliases", read_before_another_moves)
    registry.retire(ModelRef(name=name, version=1), by=ALICE, why="superseded")
    others[0].join()
    assert registry.aliases(name) == {"champion": 2}


# A process that dies at the named call.
_DIE = """
import os, sys
from cluster.contracts import Principal
from cluster.registry import Registry
from cluster.settings import load_settings

registry = Registry(load_settings())
def die(*args, **kwargs):
    os._exit(9)
if sys.argv[2] == "before MLflow":
    registry._client.set_registered_model_alias = die
else:
    registry._history.settle = die
by = Principal(key_id="bob", team="default")
registry.set_alias(sys.argv[1], "champion", 2, by=by, why="why", evidence=None)
"""


def die(name: str, when: str) -> None:
    # The settings fixture has set MANTA_HOME for it.
    done = subprocess.run([sys.executable, "-c", _DIE, name, when], capture_output=True, text=True)
    assert done.returncode == 9, done.stderr


@pytest.mark.parametrize(
    ("when", "state", "version", "by_next_move"),
    [
        ("before MLflow", MoveState.ABANDONED, 1, True),
        ("before MLflow", MoveState.ABANDONED, 1, False),
        ("before the end", MoveState.CONFIRMED, 2, True),
        ("before the end", MoveState.CONFIRMED, 2, False),
    ],
)
def test_a_crash_between_the_steps_is_repaired(
    registry: Registry, name: str, when: str, state: MoveState, version: int, by_next_move: bool
) -> None:
    for number in (1, 2, 3):
        register(registry, name, number)
    move(registry, name, "champion", 1)
    die(name, when)
    assert registry.history(name)[-1].state is MoveState.INTENT
    if by_next_move:
        move(registry, name, "champion", 3)
        assert registry.history(name)[-1].from_version == version
    else:
        assert registry.reconcile() == 1
        assert registry.reconcile() == 0
        assert registry.resolve(f"{name}@champion").ref.version == version
    assert registry.history(name)[1].state is state


def test_a_move_past_the_history_is_found(registry: Registry, name: str) -> None:
    for number in (1, 2):
        register(registry, name, number)
    move(registry, name, "champion", 1)
    registry._client.set_registered_model_alias(name, "champion", "2")
    assert registry.reconcile() == 1
    last = registry.history(name)[-1]
    assert (last.from_version, last.to_version, last.by.key_id) == (1, 2, "outside")


def test_many_at_once(settings: Settings, name: str) -> None:
    def work(number: int) -> None:
        registry = Registry(settings)
        made = register(registry, name, number % 4)
        move(registry, name, "champion", made.ref.version, why=str(number))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(12)))
    registry = Registry(settings)
    assert sorted(v.checkpoint for v in registry.versions(name)) == [str(checkpoint(n).ref) for n in range(4)]
    moves = registry.history(name)
    assert [m.from_version for m in moves[1:]] == [m.to_version for m in moves[:-1]]
    assert registry.aliases(name)["champion"] == moves[-1].to_version
    assert registry.reconcile() == 0


def test_a_version_without_lineage_is_not_served(registry: Registry, name: str) -> None:
    register(registry, name)
    registry._client.create_model_version(name, "s3://elsewhere/x")
    with pytest.raises(NotFoundError, match=r"manta\.checkpoint"):
        registry.resolve(f"{name}@2")
    assert len(registry.versions(name)) == 1


def test_two_processes_make_the_databases_at_once_and_quietly(tmp_path: Path, settings: Settings) -> None:
    code = "import cluster.registry as r, cluster.settings as s; r.Registry(s.load_settings()).initialise()"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANTA_HOME", str(tmp_path / "new"))
        both = [
            subprocess.Popen(
                [sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for _ in range(2)
        ]
    for process in both:
        out, err = process.communicate(timeout=600)
        assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.parametrize(
    "uri",
    ["http://127.0.0.1:9", "postgresql://u:secret@127.0.0.1:9/db", "sqlite:////proc/nothing/mlflow.db"],
)
def test_a_registry_that_is_away(settings: Settings, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises((UnavailableError, UsageError)) as told:
        Registry(settings).resolve("x@1")
    assert "secret" not in str(told.value)
    assert "\n" not in str(told.value)


def test_a_tracking_uri_without_a_registry(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:///tmp/mlruns")
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_URI"):
        Registry(settings).names()


def test_all_of_it_on_postgresql(
    new_postgres_url: Callable[[], str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("MANTA_DATABASE__URL", new_postgres_url())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_postgres_url())
    registry = Registry(Settings())
    registry.initialise()
    for number in (1, 2):
        register(registry, name, number)
    move(registry, name, "champion", 1)
    die(name, "before the end")
    assert registry.history(name)[-1].state is MoveState.INTENT
    assert registry.reconcile() == 1
    assert registry.resolve(f"{name}@champion").ref.version == 2
    assert [m.state for m in registry.history(name)] == [MoveState.CONFIRMED] * 2
    test_many_at_once(Settings(), f"{name}-many")


def test_one_database_for_both_is_refused(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("MANTA_DATABASE__URL", postgres_url)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgres_url)
    with pytest.raises(UsageError, match="give each a database of its own"):
        register(Registry(Settings()), name)
