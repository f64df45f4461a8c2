"""The session's served models: a tiny base model and an adapter on it behind the gateway, on real parts.

One engine start, shared by every test that needs a model. What is deployed goes through ``manta deploy``.
"""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openai
import yaml

from cluster.contracts import ArtifactInput, ArtifactRef, CodeRevision, Manifest
from cluster.settings import Settings
from tests.integration.conftest import ROOT, LocalCluster
from tests.tiny_model import make_tiny_adapter, make_tiny_llama

BASE = "tiny"
TUNED = "tiny-tuned"
#: A cent for each token.
PRICE = {"input_per_million_tokens": 10_000, "output_per_million_tokens": 10_000}
DEMO = Path(__file__).parents[2] / "deployments" / "configs" / "demo.yaml"


@dataclass(frozen=True)
class Served:
    """Models that answer."""

    cluster: LocalCluster
    #: The file that is deployed; a test may deploy a changed copy.
    file: Path
    #: Directory of the base model.
    model_dir: Path
    adapter_dir: Path
    base_url: str
    api_key: str
    #: A copy of the code: an edit in the checkout while tests run must not deploy anew.
    code: Path
    #: What `manta deploy --json` said.
    result: dict[str, Any]

    def deploy(self, *words: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Run `manta deploy`."""
        return self.cluster.manta("deploy", *words, cwd=self.code, timeout=timeout)

    def must_deploy(self, *words: str, timeout: float = 600) -> str:
        """Run `manta deploy`; it must succeed. Returns its standard output."""
        done = self.deploy(*words, timeout=timeout)
        assert done.returncode == 0, f"manta deploy {' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def client(self, **options: Any) -> openai.OpenAI:
        """The official client, without retries."""
        return openai.OpenAI(
            **{"base_url": self.base_url, "api_key": self.api_key, "max_retries": 0} | options
        )

    def async_client(self, **options: Any) -> openai.AsyncOpenAI:
        """The official asynchronous client, without retries."""
        return openai.AsyncOpenAI(
            **{"base_url": self.base_url, "api_key": self.api_key, "max_retries": 0} | options
        )


def register_adapter(settings: Settings, adapter: Path, base: Manifest, name: str) -> str:
    """Register ``adapter`` as a version of ``name`` with the alias champion, as `promote` does; its URI."""
    from cluster.contracts import adapter_id
    from cluster.registry import Registry
    from cluster.storage import ArtifactStore, fingerprint, object_store

    store = object_store()
    print_ = fingerprint("checkpoint", {"name": name}, [base.data_digest], 1)
    ref = ArtifactRef(team=settings.team, kind="checkpoint", name=name, fingerprint=print_)
    attempt = ArtifactStore(store).attempt(ref, "test-1")
    attempt.upload(adapter, "adapter")
    checkpoint = attempt.commit(
        owner=settings.principal,
        configuration={"name": name},
        code=CodeRevision(epoch=1),
        started_at=datetime.now(UTC),
        inputs=[ArtifactInput(address=str(base.ref), digest=base.data_digest)],
    )
    registry = Registry(settings)
    model = registry.register(
        name, checkpoint, base=str(base.ref), served_adapter=f"{settings.team}/adapters/{{adapter_id}}/"
    )
    store.upload_dir(adapter, f"{settings.team}/adapters/{adapter_id(model.ref)}/")
    registry.set_alias(name, "champion", model.ref.version, by=settings.principal, why="test", evidence=None)
    return f"models:/{name}@champion"


def tiny_configuration(model: Path, adapters: list[str]) -> dict[str, Any]:
    """The demo's own configuration file with the tiny model in it."""
    content: dict[str, Any] = copy.deepcopy(yaml.safe_load(DEMO.read_text()))
    content["applications"][0]["args"] |= {
        "records": {"file_s": 1, "traffic_share": 1},
        "batches": {"lease_s": 10},  # Of 30 usually: a test kills the worker.
    }
    application = content["applications"][1]
    application["name"] = BASE
    application["args"] |= {"model": str(model), "adapters": adapters, "price": PRICE}
    config = application["args"]["llm_config"]
    config["model_loading_config"]["model_id"] = BASE
    config["engine_kwargs"] |= {
        "max_model_len": 512,
        "enable_auto_tool_choice": True,
        "tool_call_parser": "hermes",
        # A model that speaks nonsense would fill its JSON with spaces.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }
    return content


def deploy_tiny_models(platform: Settings, cluster: LocalCluster, work: Path) -> Served:
    """Make the models, register the adapter, deploy; returns when they answer."""
    from cluster.local.credentials import Credentials
    from cluster.local.home import Home
    from cluster.models import ensure_model

    model = make_tiny_llama(work / "tiny-llama")
    adapter = make_tiny_adapter(model, work / "adapter")
    uri = register_adapter(platform, adapter, ensure_model(str(model)), TUNED)
    file = work / "serve.yaml"
    file.write_text(yaml.safe_dump(tiny_configuration(model, [uri])))
    code = work / "code"
    for room in ("cluster", "validation", "deployments", "jobs"):
        shutil.copytree(ROOT / room, code / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "runtime_env.yaml", code)
    credentials = Credentials.load(Home(platform.state_dir))
    assert credentials is not None
    served = Served(
        cluster=cluster,
        file=file,
        model_dir=model,
        adapter_dir=adapter,
        base_url=f"http://127.0.0.1:{platform.ports.serve_http}/v1",
        api_key=credentials.openai_key,
        code=code,
        result={},
    )
    return replace(
        served, result=json.loads(served.must_deploy(str(file), "--json", timeout=900).splitlines()[-1])
    )
