"""What the RayService gives Serve is what `manta deploy` would, and its nodes can run it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from cluster.errors import UsageError
from deployments.cli import deploy
from deployments.gateway.args import GatewayArgs
from deployments.model import ModelApplicationArgs
from deployments.plan import GATEWAY, MODEL, bundles
from tests.conftest import S3, forget_settings
from tests.unit.manifests.documents import Json, of_kind
from tests.unit.manifests.kubectl import KUBERNETES, Kubectl

CONFIGS = KUBERNETES.parents[1] / "deployments" / "configs"
OVERLAYS = {"dev": "demo", "prod": "gpu"}


@pytest.fixture
def on_a_cluster(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MANTA_PROFILE", "cluster")
    forget_settings()
    yield
    monkeypatch.undo()
    forget_settings()


def run(*words: str) -> Result:
    return CliRunner().invoke(deploy, [*words], standalone_mode=False)


def without_adapters(name: str, folder: Path) -> Path:
    """The same file for an empty registry: adapters are the routes', and never reach Serve."""
    content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    for application in content["applications"]:
        application["args"].pop("adapters", None)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.integration
@pytest.mark.usefixtures("on_a_cluster")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_file_in_the_overlay_is_what_manta_deploy_renders(overlay: str, tmp_path: Path) -> None:
    file = without_adapters(OVERLAYS[overlay], tmp_path)
    done = run(str(file), "--render", "--dry-run")
    assert done.exception is None
    rendered = done.stdout.replace(str(file), f"deployments/configs/{file.name}")
    assert rendered == (KUBERNETES / "overlays" / overlay / "serve.yaml").read_text()


def test_loopback_is_never_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANTA_PROFILE", "local")
    forget_settings()
    done = run(str(CONFIGS / "demo.yaml"), "--render")
    assert isinstance(done.exception, UsageError)
    assert "set MANTA_PROFILE=cluster" in str(done.exception)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--render", "--publish-only"], "exclude each other"),
        (["--publish-only", "--dry-run"], "waits and publishes"),
        (["--publish-only", "--no-wait"], "waits and publishes"),
    ],
)
def test_options_that_do_not_go_together(words: list[str], said: str) -> None:
    assert said in str(run(str(CONFIGS / "demo.yaml"), *words).exception)


def misfits(service: Json) -> Iterator[str]:
    """Applications whose first replicas no node group can hold, and arguments that their code refuses."""
    groups = [
        group["resources"] if "resources" in group else _limits(group)
        for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    ]
    for application in yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]:
        kind = {GATEWAY: GatewayArgs, MODEL: ModelApplicationArgs}.get(application["import_path"])
        if kind is not None:
            kind.model_validate(application["args"])
        wanted = (application.get("args") or {}).get("llm_config", {}).get("accelerator_type")
        for bundle in bundles([application]):
            needs = {**bundle, **({f"accelerator_type:{wanted}": 0.001} if wanted else {})}
            if not any(all(float(g.get(key, 0)) >= amount for key, amount in needs.items()) for g in groups):
                yield f"{application['name']}: no node group has {needs}"


def _limits(group: Json) -> dict[str, str]:
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return {"CPU": limits["cpu"], "GPU": limits.get("nvidia.com/gpu", "0")}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_nodes_can_run_it(kubectl: Kubectl, overlay: str) -> None:
    service = of_kind(kubectl.kustomize(KUBERNETES / "overlays" / overlay), "RayService")
    assert list(misfits(service)) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("accelerator_type: L4", "accelerator_type: H100", "H100"),
        ("num_cpus: 1", "num_cpus: 64", "'CPU': 64"),
    ],
)
def test_a_replica_that_fits_no_node_is_named(kubectl: Kubectl, old: str, new: str, said: str) -> None:
    service = of_kind(kubectl.kustomize(KUBERNETES / "overlays" / "prod"), "RayService")
    text = service["spec"]["serveConfigV2"]
    assert old in text
    service["spec"]["serveConfigV2"] = text.replace(old, new)
    (problem,) = set(misfits(service))
    assert said in problem


_TAKES = """
import json, sys
from pydantic import ValidationError
from ray.llm._internal.serve.core.configs.llm_config import LLMConfig
config = json.load(sys.stdin)
print(LLMConfig(**config).model_id)
config["accelerator_typ"] = config.pop("accelerator_type")
try:
    LLMConfig(**config)
except ValidationError as error:
    print(error.errors()[0]["loc"][0])
"""


@pytest.mark.slow
def test_ray_takes_the_models_configuration() -> None:
    """With ray.serve.llm's own class (without vLLM), since the GPU's file runs nowhere in these tests."""
    content = yaml.safe_load((KUBERNETES / "overlays" / "prod" / "serve.yaml").read_text())
    (config,) = (a["args"]["llm_config"] for a in content["applications"] if a["import_path"] == MODEL)
    # In a process of its own: it brings torch in.
    done = subprocess.run(
        [sys.executable, "-c", _TAKES], input=json.dumps(config), capture_output=True, text=True, timeout=600
    )
    assert done.stdout.splitlines()[-2:] == ["gemma-3-270m", "accelerator_typ"], done.stderr
