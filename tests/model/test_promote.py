"""Promotion: the gate, the registry, the adapter's place and the alias, through ``jobs.promote.run``."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime

import pytest

from cluster import snapshots
from cluster.contracts import ArtifactInput, ArtifactRef, CodeRevision, Manifest, Principal, Route, Target
from cluster.errors import NotFoundError, RefusedError, UsageError
from cluster.registry import Registry
from cluster.settings import load_settings
from cluster.storage import ArtifactStore, ObjectStore, fingerprint, object_store
from jobs import retire
from jobs.promote import PromoteConfig, run
from jobs.retire import RetireConfig
from tests.unit.test_model_gate import card

pytestmark = pytest.mark.integration

BASE, DATASET = f"default/model/tiny/{'a' * 16}", f"default/dataset/tiny-shield/{'b' * 16}"


def make(kind: str, name: str, files: dict[str, bytes], **fields) -> Manifest:
    """An artifact whose content is its files."""
    artifacts = ArtifactStore(object_store())
    digest = fingerprint(kind, {"name": name, "files": sorted(map(str, files.items()))}, [], 1)
    ref = ArtifactRef(team=load_settings().team, kind=kind, name=name, fingerprint=digest)
    attempt = artifacts.attempt(ref, f"{kind}-test-1")
    for path, data in files.items():
        attempt.write(path, data)
    return attempt.commit(
        owner=Principal(key_id="tester", team=ref.team),
        code=CodeRevision(git_revision=None, package=None, epoch=1),
        started_at=datetime.now(UTC),
        **{"configuration": {}} | fields,
    )


def make_checkpoint(name: str, weights: bytes, **fields) -> Manifest:
    files = {
        "adapter/adapter_config.json": json.dumps({"r": 8}).encode(),
        "adapter/adapter_model.safetensors": weights,
        "training.jsonl": b"{}\n",
    }
    return make("checkpoint", name, files, summary={"base_model": BASE, "dataset": DATASET}, **fields)


def make_evaluation(name: str, checkpoint: Manifest, *, right: int = 180, digest: str = "") -> Manifest:
    """The base is right on 20 of 200 rows, the tuned model on ``right``."""
    return make(
        "evaluation",
        name,
        {"scorecard.json": card(20, right).model_dump_json().encode(), "of": str(checkpoint.ref).encode()},
        inputs=[ArtifactInput(address=str(checkpoint.ref), digest=digest or checkpoint.data_digest)],
        summary={"checkpoint": str(checkpoint.ref)},
    )


@pytest.fixture(scope="module")
def registry(s3) -> Registry:
    return Registry(load_settings())


def test_a_good_model_becomes_champion_and_again_changes_nothing(
    registry: Registry, artifacts: ArtifactStore, store: ObjectStore
) -> None:
    checkpoint = make_checkpoint("good", b"weights one")
    evaluation = make_evaluation("good", checkpoint)
    wanted = PromoteConfig(name="good", evaluation="latest:good")
    done = run(wanted)

    model = registry.resolve("models:/good@champion")
    assert str(model.ref) == done.summary["model"] == "good@1"
    assert (model.checkpoint, model.digest) == (str(checkpoint.ref), checkpoint.data_digest)
    assert model.base == BASE
    assert model.adapter == "default/adapters/good-v1/"
    assert model.tags["manta.evaluation"] == str(evaluation.ref)
    assert store.get("default/adapters/good-v1/adapter_model.safetensors") == b"weights one"
    assert store.exists("default/adapters/good-v1/adapter_config.json")
    (move,) = registry.history("good")
    assert move.evidence == str(evaluation.ref)
    assert "90.0%" in move.why
    lineage = [str(manifest.ref) for manifest in artifacts.lineage(done.artifact)]
    assert str(evaluation.ref) in lineage
    assert str(checkpoint.ref) in lineage

    again = run(wanted)
    assert again.reused
    assert again.artifact == done.artifact
    assert len(registry.history("good")) == 1


def test_the_next_version_takes_over_and_an_equal_rerun_moves_nothing_back(registry: Registry) -> None:
    first = make_evaluation("line", make_checkpoint("line", b"one"))
    second = make_evaluation("line", make_checkpoint("line", b"two"), right=190)
    for evaluation in (first, second):
        run(PromoteConfig(name="line", evaluation=str(evaluation.ref)))
    assert str(registry.resolve("line@champion").ref) == "line@2"
    again = run(PromoteConfig(name="line", evaluation=str(first.ref)))
    assert again.reused
    assert str(registry.resolve("line@champion").ref) == "line@2"
    assert [(move.from_version, move.to_version) for move in registry.history("line")] == [
        (None, 1),
        (1, 2),
    ]


def test_a_model_that_does_not_reach_the_gate_is_refused(registry: Registry, store: ObjectStore) -> None:
    make_evaluation("weak", make_checkpoint("weak", b"weak"), right=120)
    with pytest.raises(RefusedError, match=r"not promoted: accuracy is 60\.0% \(80\.0% required\)"):
        run(PromoteConfig(name="weak", evaluation="latest:weak", gate={"min_accuracy": 0.8}))
    with pytest.raises(NotFoundError):
        registry.resolve("weak@champion")
    assert list(store.list("default/adapters/weak")) == []


def test_an_evaluation_of_another_checkpoint_proves_nothing(registry: Registry) -> None:
    judged, other = make_checkpoint("mixed", b"judged"), make_checkpoint("mixed", b"other")
    evaluation = make_evaluation("mixed", judged)
    with pytest.raises(RefusedError, match=r"is of .*, not of"):
        run(PromoteConfig(name="mixed", evaluation=str(evaluation.ref), checkpoint=str(other.ref)))
    swapped = make_evaluation("swapped", judged, digest="0" * 64)
    with pytest.raises(RefusedError, match="its digest differs"):
        run(PromoteConfig(name="mixed", evaluation=str(swapped.ref)))
    with pytest.raises(NotFoundError):
        registry.resolve("mixed@champion")


def test_an_adapter_name_never_changes_its_content(registry: Registry, store: ObjectStore) -> None:
    make_evaluation("taken", make_checkpoint("taken", b"ours"))
    store.put("default/adapters/taken-v1/adapter_model.safetensors", b"somebody else's")
    with pytest.raises(RefusedError, match="holds another adapter"):
        run(PromoteConfig(name="taken", evaluation="latest:taken"))
    with pytest.raises(NotFoundError):
        registry.resolve("taken@champion")
    assert store.get("default/adapters/taken-v1/adapter_model.safetensors") == b"somebody else's"


def test_unknown_inputs_are_told_apart(s3) -> None:
    with pytest.raises(NotFoundError, match="no evaluation named 'nothing'"):
        run(PromoteConfig(name="x", evaluation="latest:nothing"))
    checkpoint = make_checkpoint("kinds", b"kinds")
    with pytest.raises(UsageError, match="is of kind checkpoint"):
        run(PromoteConfig(name="x", evaluation=str(checkpoint.ref)))


def test_what_is_retired_is_loaded_by_nobody(
    registry: Registry, artifacts: ArtifactStore, store: ObjectStore
) -> None:
    for weights in (b"one", b"two"):
        evaluation = make_evaluation("old", make_checkpoint("old", weights))
        run(PromoteConfig(name="old", evaluation=str(evaluation.ref)))
    wanted = RetireConfig(name="old", version=1, why="superseded")
    target = Target(application="app", deployment="model", model="base:old-v1", model_version="old@1")
    served = Route(model=f"old-{uuid.uuid4().hex[:8]}", targets=[target], created_at=datetime.now(UTC))
    snapshots.publish(lambda now: now.model_copy(update={"routes": [*now.routes, served]}), "test")
    with pytest.raises(RefusedError, match=f"old@1 is served as {served.model}"):
        retire.run(wanted)
    snapshots.publish(
        lambda now: now.model_copy(update={"routes": [r for r in now.routes if r != served]}), "test"
    )
    done = retire.run(wanted)
    manifest = artifacts.open(done.artifact)
    assert manifest.counts == {"files": 2}
    assert list(store.list("default/adapters/old-v1/")) == []
    assert len(list(store.list("default/adapters/old-v2/"))) == 2
    with pytest.raises(RefusedError, match="superseded"):
        registry.resolve("old@1")
    assert registry.resolve("old@champion").ref.version == 2
    # What was trained can still be explained, and said twice it is done once.
    artifacts.verify(artifacts.open(manifest.inputs[0].address))
    assert retire.run(wanted).reused
    again = make_evaluation("old", make_checkpoint("old", b"one"))
    with pytest.raises(RefusedError, match="superseded"):
        run(PromoteConfig(name="old", evaluation=str(again.ref), alias="back"))
    assert list(store.list("default/adapters/old-v1/")) == []
    # All of them: the one that is left goes as well, and where there is none that is no error.
    done = retire.run(RetireConfig(name="old", version="all", why="the end"))
    assert [item["model"] for item in done.summary["retired"]] == ["old@1", "old@2"]
    assert list(store.list("default/adapters/old-v2/")) == []
    assert registry.aliases("old") == {}
    assert retire.run(RetireConfig(name="nobody", version="all", why="the end")).summary["retired"] == []
    for name, version in (("old", 9), ("nobody", 1)):
        with pytest.raises(NotFoundError):
            retire.run(RetireConfig(name=name, version=version, why="x"))
