"""``manta deploy`` before it touches a cluster: files, routes, resources, the code package."""

from __future__ import annotations

import io
import json
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from pydantic import ValidationError

from cluster import models, snapshots
from cluster.contracts import ApiKey, ArtifactRef, Price, Route, Snapshot, Target
from cluster.errors import NotFoundError, RefusedError, UnavailableError, UsageError
from cluster.serve_environment import SERVE_ENVIRONMENT
from cluster.settings import load_settings
from deployments import rollout
from deployments.cli import deploy
from deployments.gateway.args import GatewayArgs
from deployments.package import code_files, upload_code
from deployments.plan import Plan, bundles, make_plan, merge, read_file, with_routes
from tests.unit.gateway_app import policy
from validation.guards import default_policy

CONFIGS = Path(__file__).parents[2] / "deployments" / "configs"


def route(model: str, application: str, day: int = 1) -> Route:
    target = Target(application=application, deployment="model", model=model)
    return Route(model=model, targets=[target], created_at=datetime(2026, 1, day, tzinfo=UTC))


def snapshot(*routes: Route) -> Snapshot:
    return Snapshot(number=1, created_at=datetime.now(UTC), created_by="test", routes=list(routes))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "does not exist"),
        ("a: [", "is no YAML"),
        ("- 1", "list of applications"),
        ("applications: []", "list of applications"),
        ("applications: [{name: a}]", "import_path"),
        ("applications: [{name: a, import_path: xy}]", "import_path"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "serve.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=said) as told:
        read_file(path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({}, "model: field required"),
        ({"model": "demo", "llm_config": {}}, "model_id"),
        ({"model": "demo", "llm_config": {"model_loading_config": {"model_id": "a:b"}}}, "model_id"),
        ({"model": "demo", "llm_config": {}, "modle": 1}, r"modle is no known key \(did you mean model\?\)"),
        (
            {"model": "demo", "llm_config": {}, "price": {"input_per_million_tokens": 1}},
            "price.output_per_million_tokens: field required",
        ),
        (
            {"model": "demo", "llm_config": {"model_loading_config": "x"}},
            "model_loading_config must be a map",
        ),
        ({"model": "demo", "llm_config": {"engine_kwargs": [1]}}, "engine_kwargs must be a map"),
        ({"model": "demo", "llm_config": {"runtime_env": {"env_vars": "x"}}}, "env_vars must be a map"),
        ({"model": "demo", "llm_config": {"placement_group_config": {"bundles": [1]}}}, "list of mappings"),
        ({"model": "demo", "llm_config": {"engine_kwargs": {"tensor_parallel_size": "2"}}}, "whole number"),
        (
            {"model": "demo", "llm_config": {"deployment_config": {"ray_actor_options": {"num_cpus": "2"}}}},
            "num_cpus must be a number",
        ),
    ],
)
def test_wrong_args_of_a_model(args: dict[str, object], said: str) -> None:
    application = {"name": "a", "import_path": "deployments.model:build", "args": args}
    with pytest.raises(UsageError, match=said):
        make_plan({"applications": [application]}, None, {}, print)


@pytest.mark.parametrize("path", ["deployments.model:build", "deployments.model.build", "mine:app"])
def test_only_the_gateway_gets_a_route_over_http(path: str) -> None:
    args = {"model": "demo", "llm_config": {"model_loading_config": {"model_id": "a"}}}
    application = {"name": "a", "route_prefix": "/a", "import_path": path, "args": args}
    with pytest.raises(UsageError, match="only door"):
        make_plan({"applications": [application]}, None, {}, print)


def test_an_application_that_names_no_route_gets_none() -> None:
    mine = {"name": "a", "import_path": "mine.app", "runtime_env": None}
    gateway = {"name": "g", "import_path": "deployments.gateway.build", "route_prefix": "/"}
    plan = make_plan({"applications": [mine, gateway]}, None, {}, print)
    assert [a["route_prefix"] for a in plan.applications] == [None, "/"]
    assert [a["import_path"] for a in plan.applications] == ["mine:app", "deployments.gateway:build"]


def test_a_gateway_looks_often_enough_for_revocations() -> None:
    with pytest.raises(ValidationError, match="snapshot_interval_s"):
        GatewayArgs(snapshot_interval_s=5)


def test_a_dry_run_imports_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    ref = ArtifactRef(team="default", kind="model", name="a", fingerprint="0" * 16)
    monkeypatch.setattr(models, "find_model", lambda source: (ref, None))
    monkeypatch.setattr(models, "ensure_model", lambda *_, **__: pytest.fail("imported"))
    price = {"input_per_million_tokens": 0.15, "output_per_million_tokens": "0.6"}
    args = {"model": "demo", "llm_config": {"model_loading_config": {"model_id": "a"}}, "price": price}
    application = {"name": "a", "import_path": "deployments.model:build", "args": args}
    told: list[str] = []
    plan = make_plan({"applications": [application]}, None, {}, told.append, dry_run=True)
    assert plan.applications[0]["args"]["model"] == str(ref)
    # A price is the gateway's: a new one restarts no engine.
    assert plan.routes[0].price == Price.model_validate(price)
    assert "price" not in plan.applications[0]["args"]
    assert f"a: demo would be imported as {ref}" in told


def test_an_encoder_is_routed_under_its_name_and_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    ref = ArtifactRef(team="default", kind="model", name="a", fingerprint="0" * 16)
    monkeypatch.setattr(models, "find_model", lambda source: (ref, None))
    args = {"model": "organisation/encoder", "model_id": "encoder"}
    application = {"name": "e", "import_path": "deployments.embeddings:build", "args": args}
    application["deployments"] = [{"name": "embeddings", "ray_actor_options": {"num_gpus": 0.5}}]
    plan = make_plan({"applications": [application]}, None, {}, print, dry_run=True)
    (made,) = plan.routes
    assert (made.model, made.policy) == ("encoder", "default")
    assert (made.targets[0].application, made.targets[0].deployment) == ("e", "embeddings")
    assert plan.applications[0]["args"]["model"] == str(ref)
    assert "policy" not in plan.applications[0]["args"]  # A new one must restart nothing.
    assert plan.applications[0]["route_prefix"] is None
    assert bundles(plan.applications) == [{"CPU": 1.0, "GPU": 0.5}]
    with pytest.raises(UsageError, match="model_id"):
        make_plan({"applications": [application | {"args": {"model": "x"}}]}, None, {}, print)


def test_a_dry_run_of_a_removal_removes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Serve:
        def configurations(self) -> list[dict[str, str]]:
            return [{"name": "a", "import_path": "x:y"}]

        def put(self, _: object) -> None:
            pytest.fail("changed Serve")

    strict = policy("strict", {"name": "ban", "kind": "ban_list", "on": "input", "words": ["x"]})
    now = snapshot(route("base", "a").model_copy(update={"policy": "strict"}), route("other", "b"))
    now = now.model_copy(update={"policies": [strict]})
    monkeypatch.setattr(rollout.Serve, "connect", Serve)
    monkeypatch.setattr(snapshots, "newest", lambda: now)
    monkeypatch.setattr(snapshots, "publish", lambda *_, **__: pytest.fail("published"))
    done = CliRunner().invoke(deploy, ["--delete", "a", "--dry-run", "--json"], standalone_mode=False)
    assert done.exception is None
    gone = {"applications": ["a"], "routes": ["base"], "policies": ["strict"]}
    assert json.loads(done.output) == {"would_delete": gone}
    done = CliRunner().invoke(deploy, ["--delete", "b", "--dry-run"], standalone_mode=False)
    assert isinstance(done.exception, NotFoundError)


def test_wrong_args_of_the_gateway() -> None:
    application = {"name": "g", "import_path": "deployments.gateway:build", "args": {"colour": "red"}}
    with pytest.raises(UsageError, match="colour is no known key"):
        make_plan({"applications": [application]}, None, {}, print)


def test_the_shipped_files_are_sound() -> None:
    files = sorted(CONFIGS.glob("*.yaml"))
    assert files
    for path in files:
        content = read_file(path)
        gateways = [a for a in content["applications"] if a["import_path"] == "deployments.gateway:build"]
        plan = make_plan({**content, "applications": gateways}, "s3://b/code/x.zip", {"A": "1"}, print)
        assert all(a["runtime_env"]["working_dir"] == "s3://b/code/x.zip" for a in plan.applications)
        for application in content["applications"]:
            yaml.safe_dump(application)


def test_other_applications_are_sent_along_as_they_are() -> None:
    other = {"name": "other", "import_path": "x:y", "args": {"k": 1}}
    old = {"name": "mine", "import_path": "x:y", "args": {"k": 2}}
    new = {"name": "mine", "import_path": "x:y", "args": {"k": 3}}
    merged = merge(Plan({"applications": [new], "proxy_location": "HeadOnly"}), [other, old])
    assert merged == {"proxy_location": "HeadOnly", "applications": [other, new]}


@pytest.mark.parametrize(
    ("options", "host", "port"),
    [(None, "127.0.0.1", 8000), ({"port": 8001}, "127.0.0.1", 8001), ({"host": "::"}, "::", 8000)],
    ids=["none", "port-alone", "host-named"],
)
def test_serve_listens_on_loopback_unless_told_otherwise(
    options: dict | None, host: str, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MANTA_PORTS__SERVE_HTTP", raising=False)
    load_settings.cache_clear()
    content = {"applications": [{"name": "a", "import_path": "x:y"}]}
    plan = make_plan(content | ({"http_options": options} if options else {}), None, {}, print)
    load_settings.cache_clear()
    assert plan.serve["http_options"] == {"host": host, "port": port}


def test_serves_door_without_keys_stays_closed() -> None:
    content = {"applications": [], "grpc_options": {"grpc_servicer_functions": ["a:b"]}}
    with pytest.raises(UsageError, match="asks nobody for a key"):
        make_plan(content, None, {}, print)


def test_routes_follow_their_application() -> None:
    plan = Plan({"applications": [{"name": "a"}]}, routes=[route("base", "a", 2), route("tuned-2", "a", 2)])
    made = with_routes(snapshot(route("base", "a"), route("tuned", "a"), route("other", "b")), plan)
    assert [r.model for r in made.routes] == ["other", "base", "tuned-2"]
    assert made.routes[1].created_at.day == 1
    assert [r.model for r in with_routes(made, Plan({"applications": []}), ["a"]).routes] == ["other"]


def test_a_deployment_says_first_which_tuned_models_go_with_their_base(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Serve(rollout.Serve):
        def __init__(self) -> None: ...

        def configurations(self) -> list[dict[str, str]]:
            raise UnavailableError("That is next.")

    mine = route("base", "a")
    tuned = mine.model_copy(update={"model": "ft:base", "base": "base", "team": "default"})
    monkeypatch.setattr(snapshots, "newest", lambda: snapshot(mine, tuned))
    weights = mine.targets[0].model_copy(update={"digest": "e" * 64})
    other = mine.model_copy(update={"targets": [weights]})
    for wanted, told in (
        (mine, []),
        (other, ["what was tuned is not served any more on what is deployed now: ft:base"]),
    ):
        said = list[str]()
        plan = Plan({"applications": [{"name": "a"}]}, routes=[wanted])
        with pytest.raises(UnavailableError, match="That is next"):
            rollout.roll_out(Serve(), plan, wait_s=None, say=said.append)
        assert said == told


def test_two_applications_may_not_serve_one_name() -> None:
    plan = Plan({"applications": [{"name": "a"}]}, routes=[route("base", "a")])
    with pytest.raises(RefusedError, match="already served by b"):
        with_routes(snapshot(route("base", "b")), plan)


def test_nobody_replaces_a_policy_that_others_use() -> None:
    old, new = (
        policy("strict", {"name": "ban", "kind": "ban_list", "on": "input", "words": [word]})
        for word in ("x", "y")
    )
    key = ApiKey(id="k", sha256="0" * 64, team="default", policy="strict")
    mine, theirs = (route(name, name).model_copy(update={"policy": "strict"}) for name in ("a", "b"))
    plan = Plan({"applications": [{"name": "a"}]}, routes=[mine], policies=[new])

    def published(*routes: Route, keys: tuple[ApiKey, ...] = ()) -> Snapshot:
        return snapshot(*routes).model_copy(update={"policies": [old], "keys": list(keys)})

    with pytest.raises(RefusedError, match="named strict is published, and model b uses it"):
        with_routes(published(mine, theirs), plan)
    with pytest.raises(RefusedError, match="key k uses it"):
        with_routes(published(mine, keys=(key,)), plan)
    assert with_routes(published(mine), plan).policies == [new]
    same = Plan({"applications": [{"name": "a"}]}, routes=[mine], policies=[old])
    assert with_routes(published(mine, theirs), same).policies == [old]
    # What was tuned from a model is asked under that model's policy, so it stands in nobody's way.
    tuned = mine.model_copy(update={"model": "ft:a", "base": "a", "team": "default"})
    made = with_routes(published(mine, tuned), plan)
    assert (made.policies, [r.model for r in made.routes]) == ([new], ["ft:a", "a"])


def test_a_newer_shipped_policy_takes_its_predecessors_place() -> None:
    old = policy("default", {"name": "ban", "kind": "ban_list", "on": "input", "words": ["x"]})
    shipped = default_policy().document()
    plan = Plan({"applications": [{"name": "a"}]}, routes=[route("a", "a")], policies=[shipped])
    now = snapshot(route("b", "b")).model_copy(update={"policies": [old]})
    assert with_routes(now, plan).policies == [shipped]


def test_the_shipped_policys_name_is_its_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    ban = {"name": "ban", "kind": "ban_list", "on": "input", "words": ["x"]}
    path.write_text(yaml.safe_dump({"name": "default", "version": 1, "guards": [ban]}))
    args = {
        "model": "demo",
        "policy": str(path),
        "llm_config": {"model_loading_config": {"model_id": "a"}},
    }
    application = {"name": "a", "import_path": "deployments.model:build", "args": args}
    with pytest.raises(UsageError, match="the shipped one's name"):
        make_plan({"applications": [application]}, None, {}, print)


def test_resources_of_a_replica_are_counted_as_ray_counts_them() -> None:
    def model(**config: object) -> dict[str, object]:
        return {"import_path": "deployments.model:build", "args": {"llm_config": config}}

    cpu = {"kind": "cpu"}
    none = {"ray_actor_options": {"num_cpus": 0}}
    assert bundles([model(accelerator_config=cpu)]) == [{"CPU": 2}]
    assert bundles([model(accelerator_config=cpu, deployment_config=none)]) == [{"CPU": 1}]
    scaled = {**none, "autoscaling_config": {"min_replicas": 2, "max_replicas": 4}}
    assert bundles([model(accelerator_config=cpu, deployment_config=scaled)]) == [{"CPU": 1}] * 2
    assert bundles([model(engine_kwargs={"tensor_parallel_size": 2})]) == [{"GPU": 1, "CPU": 1}, {"GPU": 1}]
    gateway = {
        "import_path": "deployments.gateway:build",
        "deployments": [{"name": "gateway", "num_replicas": 2}],
    }
    assert bundles([gateway]) == [{"CPU": 0.2}, {"CPU": 0.2}, {"CPU": 0.1}]


class Store:
    """What upload_code needs of an object store."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def exists(self, key: str) -> bool:
        return key in self.objects

    def put(self, key: str, data: bytes) -> None:
        self.objects[key] = data

    def uri(self, key: str) -> str:
        return f"s3://b/{key}"


def test_the_package_is_named_by_its_content(tmp_path: Path) -> None:
    for name in ("deployments/a.py", "jobs/b.py", "cluster/c.yaml", ".venv/d.py", "README.md", "x.pyc"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(name)
    excludes = [".venv/", "*.pyc"]
    assert list(code_files(tmp_path, excludes)) == ["cluster/c.yaml", "deployments/a.py"]
    store = Store()
    first = upload_code(tmp_path, excludes, store)  # type: ignore[arg-type]
    (tmp_path / "jobs" / "b.py").write_text("changed")
    assert upload_code(tmp_path, excludes, store) == first  # type: ignore[arg-type]
    (content,) = store.objects.values()
    assert zipfile.ZipFile(io.BytesIO(content)).namelist() == ["code/cluster/c.yaml", "code/deployments/a.py"]
    (tmp_path / "deployments" / "a.py").write_text("changed")
    assert upload_code(tmp_path, excludes, store) != first  # type: ignore[arg-type]


def test_applications_have_serves_environment_whatever_jobs_have() -> None:
    """Jobs use handles outside a loop; the variables that they get come to applications too."""
    mine = {"name": "a", "import_path": "mine:app"}
    jobs = dict.fromkeys(SERVE_ENVIRONMENT, "1")
    own = {"name": "b", "import_path": "mine:app", "runtime_env": {"env_vars": jobs}}
    plan = make_plan({"applications": [mine, own]}, None, jobs, print)
    assert [a["runtime_env"]["env_vars"] for a in plan.applications] == [SERVE_ENVIRONMENT, jobs]
