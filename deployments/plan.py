"""From a Serve configuration file to what is deployed: every name resolved to what never changes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, Field, ValidationError

from cluster.contracts import ModelRef, PolicyDocument, Price, Route, Snapshot, Target, engine_model_id
from cluster.contracts.tuning import TuningRecord
from cluster.errors import RefusedError, UsageError
from cluster.serve_environment import SERVE_ENVIRONMENT
from cluster.settings import describe_validation_error, load_settings
from deployments import embeddings
from deployments.embeddings import EmbeddingsApplicationArgs
from deployments.gateway.args import GatewayArgs
from deployments.model import DEPLOYMENT, ModelApplicationArgs
from deployments.tuning.publishing import tuned_route

if TYPE_CHECKING:
    from cluster.registry import RegisteredModel
    from validation.guards import GuardPolicy

MODEL = "deployments.model:build"
GATEWAY = "deployments.gateway:build"
GUARDS = "deployments.guards:build"
EMBEDDINGS = "deployments.embeddings:build"
#: Logical CPUs of a replica of each of our light deployments, where the file says nothing else.
_USUAL_CPUS = {
    GATEWAY: {"gateway": 0.2, "batches": 0.1},
    GUARDS: {"guards": 0.2},
    EMBEDDINGS: {"embeddings": 1.0},
}
#: Mappings in llm_config that are read here, each after the one that it is in.
_MAPPINGS = (
    "model_loading_config",
    "engine_kwargs",
    "accelerator_config",
    "lora_config",
    "experimental_configs",
    "runtime_env",
    "runtime_env.env_vars",
    "placement_group_config",
    "placement_group_config.bundle_per_worker",
    "deployment_config",
    "deployment_config.autoscaling_config",
    "deployment_config.ray_actor_options",
)
Say = Callable[[str], None]


class DeployedModelArgs(ModelApplicationArgs):
    """``args`` of a model application in a file for ``manta deploy``: the replica's, and what is routed."""

    adapters: list[str] = Field(
        default_factory=list,
        description="Registered models to serve on this base: models:/name@alias or models:/name/version. "
        "Adding one restarts nothing.",
    )
    policy: str = Field(
        "default", description="Guard policy of these models: a shipped name, or a YAML file."
    )
    price: Price | None = Field(
        None, description="What tokens of these models cost, in the settings' currency; nothing if absent."
    )


class DeployedEmbeddingsArgs(EmbeddingsApplicationArgs):
    """``args`` of an embeddings application in a file for ``manta deploy``."""

    policy: str = Field("default", description="Guard policy of its inputs: a shipped name, or a YAML file.")
    price: Price | None = Field(
        None, description="What tokens of its inputs cost, in the settings' currency; nothing if absent."
    )


@dataclass
class Plan:
    """What a file asks for."""

    serve: dict[str, Any]
    routes: list[Route] = field(default_factory=list)
    policies: list[PolicyDocument] = field(default_factory=list)

    @property
    def applications(self) -> list[dict[str, Any]]:
        """Serve's applications."""
        found: list[dict[str, Any]] = self.serve["applications"]
        return found

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [application["name"] for application in self.applications]


def read_file(path: Path) -> dict[str, Any]:
    """A file in Serve's own schema. Raises UsageError with one sentence."""
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"The file {path} does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The file {path} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not content.get("applications"):
        raise UsageError(f"{path}: expected a mapping with a list of applications, as Serve's files have.")
    from ray.serve.schema import ServeDeploySchema

    try:
        ServeDeploySchema.model_validate(copy.deepcopy(content))
    except ValidationError as error:
        raise UsageError(describe_validation_error(error, str(path), ServeDeploySchema)) from None
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from None
    return content


def make_plan(
    content: Mapping[str, Any],
    code: str | None,
    env_vars: Mapping[str, str],
    say: Say,
    *,
    dry_run: bool = False,
) -> Plan:
    """Resolve everything that ``content`` names.

    :param code: address of the code package that applications get which name none.
    :param env_vars: environment of every application; its own variables win.
    :param dry_run: only look up where weights are, or would be; import none.

    Raises UsageError, NotFoundError and what the model's source raises.
    """
    plan = Plan(copy.deepcopy(dict(content)))
    _serve_options(plan.serve)
    for application in plan.applications:
        application["import_path"] = _import_path(application["import_path"])
        if application["import_path"] != GATEWAY:
            _close_door(application)
        environment = application["runtime_env"] = application.get("runtime_env") or {}
        if code is not None:
            environment.setdefault("working_dir", code)
        environment["env_vars"] = {**env_vars, **SERVE_ENVIRONMENT, **(environment.get("env_vars") or {})}
        if application["import_path"] == MODEL:
            _resolve_model(application, plan, say, dry_run)
        elif application["import_path"] == EMBEDDINGS:
            _resolve_embeddings(application, plan, say, dry_run)
        elif application["import_path"] == GATEWAY:
            application["args"] = _args(GatewayArgs, application).model_dump(exclude_unset=True)
    twice = {route.model for route in plan.routes if sum(r.model == route.model for r in plan.routes) > 1}
    if twice:
        raise UsageError(f"Two applications serve a model named {min(twice)}: rename one.")
    _add_guards(plan, code, env_vars)
    return plan


def _import_path(path: str) -> str:
    """One spelling: Ray also takes ``module.attribute``."""
    return path if ":" in path else ":".join(path.rsplit(".", 1))


def _close_door(application: dict[str, Any]) -> None:
    """Serve's own default is a route at /."""
    if application.get("route_prefix") is not None:
        raise UsageError(
            f"application {application['name']}: route_prefix must be null, "
            "for the gateway is the only door to models."
        )
    application["route_prefix"] = None


def _serve_options(serve: dict[str, Any]) -> None:
    """Where Serve listens, unless the file says: on one machine on loopback, at the settings' port."""
    if (serve.get("grpc_options") or {}).get("grpc_servicer_functions"):
        raise UsageError(
            "grpc_options: Serve's gRPC door asks nobody for a key, and the gateway is the only door to "
            "models: leave grpc_servicer_functions out."
        )
    settings = load_settings()
    if settings.profile == "local":
        serve.setdefault("proxy_location", "HeadOnly")
        # Key by key: who names a port alone must not get Serve's own host, which is every interface.
        usual = {"host": "127.0.0.1", "port": settings.ports.serve_http}
        serve["http_options"] = usual | (serve.get("http_options") or {})


def _args(kind: type[BaseModel], application: Mapping[str, Any]) -> Any:
    try:
        return kind.model_validate(application.get("args") or {})
    except ValidationError as error:
        raise UsageError(
            describe_validation_error(error, f"application {application['name']}: args", kind)
        ) from None


def _resolve_model(application: dict[str, Any], plan: Plan, say: Say, dry_run: bool) -> None:
    from cluster.registry import Registry

    args: DeployedModelArgs = _args(DeployedModelArgs, application)
    name = application["name"]
    _check_llm_config(f"application {name}", args.llm_config)
    model_id = (args.llm_config.get("model_loading_config") or {}).get("model_id")
    if not isinstance(model_id, str) or ":" in model_id:
        raise UsageError(
            f"application {name}: llm_config.model_loading_config.model_id must name the model, without ':'."
        )
    policy = _add_policy(name, args.policy, plan)
    registry = Registry(load_settings()) if args.adapters or args.model.startswith("models:/") else None
    adapters = [registry.resolve(uri) for uri in args.adapters] if registry else []
    source = args.model
    if source.startswith("models:/") and registry:
        registered = registry.resolve(source)
        source = registered.checkpoint
        if registered.adapter is not None:
            source = registered.base
            adapters.append(registered)
    address, digest = _weights(source, name, say, dry_run)
    base = Target(application=name, deployment=DEPLOYMENT, model=engine_model_id(model_id), digest=digest)
    plan.routes.append(_route(model_id, base, policy, args.price))
    for adapter in adapters:
        _check_adapter(name, adapter, address, args.llm_config)
        tuned = {
            "model": engine_model_id(model_id, adapter.ref),
            "model_version": str(adapter.ref),
            "digest": adapter.digest,
        }
        plan.routes.append(_route(adapter.ref.name, base.model_copy(update=tuned), policy, args.price))
    # Adapters, policies and prices are the gateway's: left in, a new one would restart the engine.
    application["args"] = {"model": address, "llm_config": args.llm_config, "gather_ms": args.gather_ms}


def _resolve_embeddings(application: dict[str, Any], plan: Plan, say: Say, dry_run: bool) -> None:
    args: DeployedEmbeddingsArgs = _args(DeployedEmbeddingsArgs, application)
    name = application["name"]
    policy = _add_policy(name, args.policy, plan)
    address, digest = _weights(args.model, name, say, dry_run)
    target = Target(application=name, deployment=embeddings.DEPLOYMENT, model=args.model_id, digest=digest)
    plan.routes.append(_route(args.model_id, target, policy, args.price))
    kept = args.model_copy(update={"model": address})
    application["args"] = kept.model_dump(exclude={"policy", "price"})


def _route(public: str, target: Target, policy: GuardPolicy, price: Price | None) -> Route:
    return Route(
        model=public,
        targets=[target],
        policy=policy.name,
        created_at=datetime.now(UTC),
        owned_by=load_settings().team,
        price=price,
    )


def _weights(source: str, application: str, say: Say, dry_run: bool) -> tuple[str, str | None]:
    """Address and data digest of a model artifact, made if need be and this is no dry run."""
    from cluster.models import ensure_model, find_model

    say(f"{application}: looking up model {source!r}")
    if not dry_run:
        made = ensure_model(source, progress=lambda text: say(f"{application}: {text}"))
        return str(made.ref), made.data_digest
    ref, found = find_model(source)
    if found is None:
        say(f"{application}: {source} would be imported as {ref}")
    return str(ref), found.data_digest if found else None


def _add_policy(application: str, name_or_path: str, plan: Plan) -> GuardPolicy:
    """The policy of that name, in the plan too. Raises UsageError if it cannot be."""
    from validation.guards import default_policy, load_policy

    policy, shipped = load_policy(name_or_path), default_policy()
    if policy.name == shipped.name and policy.digest != shipped.digest:
        raise UsageError(
            f"application {application}: guard policy {name_or_path} is named {policy.name}, "
            "which is the shipped one's name: rename it."
        )
    same = [document for document in plan.policies if document.name == policy.name]
    if any(document.digest != policy.digest for document in same):
        raise UsageError(
            f"application {application}: two different guard policies are named {policy.name}: rename one."
        )
    plan.policies += [] if same else [policy.document()]
    return policy


def _check_llm_config(where: str, config: Mapping[str, Any]) -> None:
    """What is read here before Ray validates all of it. Raises UsageError."""

    def value(path: str) -> Any:
        found: Any = config
        for key in path.split("."):
            found = found.get(key) or {}
        return found

    for path in _MAPPINGS:
        if not isinstance(value(path), Mapping):
            raise UsageError(f"{where}: llm_config.{path} must be a mapping.")
    bundles = value("placement_group_config.bundles")
    if bundles and not (isinstance(bundles, list) and all(isinstance(b, Mapping) for b in bundles)):
        raise UsageError(f"{where}: llm_config.placement_group_config.bundles must be a list of mappings.")
    for key in ("tensor_parallel_size", "pipeline_parallel_size"):
        size = value("engine_kwargs").get(key, 1)
        if not isinstance(size, int) or size < 1:
            raise UsageError(f"{where}: llm_config.engine_kwargs.{key} must be a whole number from 1 on.")
    if not isinstance(value("deployment_config.ray_actor_options").get("num_cpus", 1), int | float):
        raise UsageError(
            f"{where}: llm_config.deployment_config.ray_actor_options.num_cpus must be a number."
        )


def _check_adapter(name: str, model: RegisteredModel, base: str, llm_config: Mapping[str, Any]) -> None:
    if model.adapter is None:
        raise UsageError(
            f"application {name}: {model.ref} is a whole model: give it an application of its own."
        )
    if model.base.removeprefix("s3://").split("/")[-4:] != base.split("/")[-4:]:
        raise UsageError(
            f"application {name}: {model.ref} was trained on {model.base}, and this base is {base}."
        )
    if not (llm_config.get("engine_kwargs") or {}).get("enable_lora"):
        raise UsageError(
            f"application {name}: set llm_config.engine_kwargs.enable_lora to serve {model.ref} on it."
        )


def _add_guards(plan: Plan, code: str | None, env_vars: Mapping[str, str]) -> None:
    """Packaged validators run in an application of their own, named after the policy's digest."""
    from deployments.guards import application_name
    from validation.guards import parse_policy

    for document in plan.policies:
        policy = parse_policy(document.body)
        if any(guard.kind == "guardrails" for guard in policy.guards):
            runtime_env = {
                "env_vars": {**env_vars, **SERVE_ENVIRONMENT},
                **({"working_dir": code} if code else {}),
            }
            plan.applications.append(
                {
                    "name": application_name(policy.digest),
                    "route_prefix": None,
                    "import_path": GUARDS,
                    "runtime_env": runtime_env,
                    "args": {"policy": document.body},
                }
            )


def merge(plan: Plan, deployed: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The whole configuration for Serve: the plan's applications, and all others as they are."""
    others = [dict(config) for config in deployed if config["name"] not in plan.names]
    return plan.serve | {"applications": [*others, *plan.applications]}


def bundles(applications: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Logical resources of every replica that the applications start with, as far as they are ours."""
    found: list[dict[str, float]] = []
    for application in applications:
        if application["import_path"] == MODEL:
            config = application["args"]["llm_config"]
            found += _replica(config) * _replicas(config.get("deployment_config") or {})
        named = {options.get("name"): options for options in application.get("deployments") or []}
        for name, usual in _USUAL_CPUS.get(application["import_path"], {}).items():
            options: dict[str, Any] = named.get(name, {})
            actor = options.get("ray_actor_options") or {}
            bundle = {"CPU": actor.get("num_cpus", usual)}
            bundle |= {"GPU": actor["num_gpus"]} if actor.get("num_gpus") else {}
            found += [bundle] * _replicas(options)
    return found


def _replicas(options: Mapping[str, Any]) -> int:
    scaling = options.get("autoscaling_config") or {}
    number = (
        scaling.get("initial_replicas") or scaling.get("min_replicas") or options.get("num_replicas") or 1
    )
    return number if isinstance(number, int) else 1


def _replica(config: Mapping[str, Any]) -> list[dict[str, float]]:
    """Bundles of one model replica, as Ray makes them: the replica itself joins the first worker's."""
    engine = config.get("engine_kwargs") or {}
    workers = engine.get("tensor_parallel_size", 1) * engine.get("pipeline_parallel_size", 1)
    on_cpu = (config.get("accelerator_config") or {}).get("kind") == "cpu"
    group = config.get("placement_group_config") or {}
    made = (
        group.get("bundles") or [group.get("bundle_per_worker") or {"CPU" if on_cpu else "GPU": 1}] * workers
    )
    made = [dict(bundle) for bundle in made]
    actor = (config.get("deployment_config") or {}).get("ray_actor_options") or {}
    made[0]["CPU"] = made[0].get("CPU", 0) + actor.get("num_cpus", 1)
    return made


def with_routes(
    snapshot: Snapshot,
    plan: Plan,
    removed: Iterable[str] = (),
    tuned: Iterable[TuningRecord] = (),
    unfit: Collection[str] = (),
) -> Snapshot:
    """The next snapshot: the plan's routes and policies in, those of its applications' former ones out.

    :param tuned: what the plan's base models can serve besides; it comes back if it was away.
    :param unfit: names of tuned models that they cannot serve as they are deployed now.

    Raises RefusedError when a name, of a model or of a guard policy, is another application's.
    """
    gone = {*plan.names, *removed}
    old = {route.model: route for route in snapshot.routes}
    new = {route.model: route for route in plan.routes}
    routes = {
        model: kept
        for model, route in old.items()
        if model not in unfit
        and (kept := _kept(route, gone, old.get(route.base or ""), new.get(route.base or ""))) is not None
    }
    _check_policies(snapshot, plan, (kept for kept in routes.values() if kept.base not in new))
    for route in plan.routes:
        if route.model in routes:
            owner = routes[route.model].targets[0].application or routes[route.model].targets[0].base_url
            raise RefusedError(
                f"A model named {route.model} is already served by {owner}: rename one of them."
            )
        before = old.get(route.model)
        routes[route.model] = route.model_copy(update={"created_at": before.created_at}) if before else route
    for record in tuned:
        if record.tuned_name not in routes and record.model_version is not None:
            made_at = record.finished_at or record.created_at
            version = ModelRef.parse(record.model_version)
            routes[record.tuned_name] = tuned_route(
                record, new[record.model], version, record.digest, made_at
            )
    names = {document.name for document in plan.policies}
    used = {route.policy for route in routes.values()} | {key.policy for key in snapshot.keys}
    policies = [p for p in snapshot.policies if p.name in used - names] + plan.policies
    return snapshot.model_copy(update={"routes": list(routes.values()), "policies": policies})


def _kept(route: Route, gone: Collection[str], before: Route | None, now: Route | None) -> Route | None:
    """The route after its applications are deployed anew or removed; None if it goes with them.

    A tuned model's stays while its base does, and follows its policy and price.
    """
    if not any(target.application in gone for target in route.targets):
        return route
    if before is None or now is None or before.targets[0] != now.targets[0]:
        return None
    return route.model_copy(update={"policy": now.policy, "price": now.price})


def _check_policies(snapshot: Snapshot, plan: Plan, others: Iterable[Route]) -> None:
    """Nobody's policy changes because somebody else deploys. Raises RefusedError."""
    from validation.guards import default_policy

    published = {document.name: document.digest for document in snapshot.policies}
    users = {key.policy: f"key {key.id}" for key in snapshot.keys if key.policy and not key.revoked}
    users |= {route.policy: f"model {route.model}" for route in others}
    for document in plan.policies:
        # The shipped one is the same for all: a newer Manta's takes its predecessor's place.
        if document.digest in (published.get(document.name, document.digest), default_policy().digest):
            continue
        if document.name in users:
            raise RefusedError(
                f"Another guard policy named {document.name} is published, and {users[document.name]} "
                "uses it: rename yours, or deploy all that use it from one file."
            )
