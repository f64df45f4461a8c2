"""Prompts from MLflow's own registry to what gateways know."""

from __future__ import annotations

import json

import pytest

from cluster import snapshots
from cluster.errors import NotFoundError, UsageError
from cluster.mlflow_store import mlflow_client
from cluster.prompts import registered
from cluster.settings import Settings
from tests.integration.conftest import LocalCluster

pytestmark = pytest.mark.integration


def test_versions_are_published_with_their_aliases(
    platform: Settings, platform_cluster: LocalCluster
) -> None:
    def published() -> dict[str, list[str]]:
        snapshot = snapshots.newest()
        assert snapshot is not None
        return {ref: t.aliases for ref, t in snapshot.prompts.items() if t.name == "greeting"}

    client = mlflow_client(platform)
    client.register_prompt("greeting", "You greet {{name}}.")
    client.register_prompt("greeting", [{"role": "system", "content": "Greet {{name}} in {{language}}."}])
    client.set_prompt_alias("greeting", "champion", 1)
    said = json.loads(platform_cluster.must("prompt", "publish", "greeting", "--json"))
    assert said["prompts"] == ["greeting@1", "greeting@2"]
    assert published() == {"greeting@1": ["champion"], "greeting@2": []}
    first = snapshots.newest()
    assert first is not None
    assert first.prompts["greeting@1"].messages[0].model_dump() == {
        "role": "system",
        "content": "You greet {{name}}.",
    }

    client.set_prompt_alias("greeting", "champion", 2)
    platform_cluster.must("prompt", "publish", "greeting")
    assert published() == {"greeting@1": [], "greeting@2": ["champion"]}  # Whoever named 1 keeps it.
    platform_cluster.must("prompt", "publish", "greeting", "--prune")
    assert published() == {"greeting@2": ["champion"]}


def test_what_gateways_cannot_fill_is_refused(platform: Settings) -> None:
    client = mlflow_client(platform)
    client.register_prompt("loop", "{% for name in names %}{{name}}{% endfor %}")
    with pytest.raises(UsageError, match="Prompt loop version 1 is a Jinja template"):
        registered(platform, ["loop"])
    with pytest.raises(NotFoundError, match="no prompt 'none'"):
        registered(platform, ["none"])
