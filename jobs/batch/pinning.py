"""What a batch is pinned to at submission: one target or one set of weights, and one guard policy."""

from __future__ import annotations

import json
from dataclasses import dataclass

from cluster.contracts import ArtifactInput, Manifest, PolicyDocument, Route, Snapshot, Target
from cluster.errors import MantaError, NotFoundError, RefusedError
from cluster.settings import Settings
from cluster.storage import ArtifactStore, ObjectStore
from jobs.batch.dedicated import Weights
from jobs.batch.estimate import PriceConfig

#: The limits that vLLM takes for max_lora_rank.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class Pin:
    """The model, by what reaches it, and the policy; ``inputs`` go into fingerprint and manifest."""

    model: ArtifactInput
    policy: PolicyDocument
    target: Target | None = None
    weights: Weights | None = None
    price: PriceConfig | None = None

    @property
    def inputs(self) -> list[ArtifactInput]:
        """Model and policy as inputs of the artifact."""
        return [self.model, ArtifactInput(address=f"policy:{self.policy.name}", digest=self.policy.digest)]


def deployed(team: str) -> list[str]:
    """Public names that the team may ask, sorted."""
    from cluster.snapshots import newest

    return sorted(_routes(newest(), team))


def pin_warm(model: str, policy: str | None, settings: Settings, store: ObjectStore) -> Pin:
    """Find the route of ``model`` in the newest snapshot, and take its heaviest target with an application.

    Raises NotFoundError when nothing is published under that name, RefusedError when no target has a handle.
    """
    route, target, document = _deployed(model, policy, settings)
    return Pin(
        model=_model_input(target, settings, store),
        policy=document,
        target=target,
        price=_price(route),
    )


def pin_behind(model: str, policy: str | None, settings: Settings, store: ObjectStore) -> Pin:
    """The weights behind a public name, for an engine of one's own; the policy and price are the route's.

    Raises NotFoundError when nothing is published under that name or the weights are in no storage of ours,
    RefusedError when no target has a handle.
    """
    route, target, document = _deployed(model, policy, settings)
    if target.model_version is not None:
        address, weights = _weights(target.model_version, settings, store)
    elif (base := _artifact_of(target, settings, store)) is not None:
        address = ArtifactInput(address=str(base.ref), digest=base.data_digest)
        weights = Weights(ArtifactStore(store).uri(base))
    else:
        raise NotFoundError(f"The weights behind {model!r} are no artifact and no registered version.")
    return Pin(model=address, policy=document, weights=weights, price=_price(route))


def pin_dedicated(model: str, policy: str | None, settings: Settings, store: ObjectStore) -> Pin:
    """The weights of a registered version (``models:/name@alias``, ``name@3``) or of a model source.

    Raises NotFoundError when there is no such model.
    """
    from cluster.snapshots import newest

    document = _policy(policy, newest())
    address, weights = _weights(model, settings, store)
    return Pin(model=address, policy=document, weights=weights)


def _weights(model: str, settings: Settings, store: ObjectStore) -> tuple[ArtifactInput, Weights]:
    from cluster.models.sources import ensure_model

    artifacts = ArtifactStore(store)
    if not (model.startswith("models:/") or model.rpartition("@")[2].isdigit()):
        base = ensure_model(model)
        return ArtifactInput(address=str(base.ref), digest=base.data_digest), Weights(artifacts.uri(base))
    from cluster.registry import Registry

    registered = Registry(settings).resolve(model)
    source = artifacts.uri(artifacts.open(registered.base))
    address = ArtifactInput(address=registered.checkpoint, digest=registered.digest)
    if registered.adapter is None:
        return address, Weights(source)
    folder, _, name = store.key(registered.adapter).rstrip("/").rpartition("/")
    rank = int(json.loads(store.get(f"{folder}/{name}/adapter_config.json"))["r"])
    return address, Weights(
        source,
        adapter=name,
        adapters_uri=store.uri(folder),
        max_lora_rank=next((limit for limit in LORA_RANKS if limit >= rank), rank),
    )


def _deployed(model: str, policy: str | None, settings: Settings) -> tuple[Route, Target, PolicyDocument]:
    """The route of a public name, its target for batches, and the policy: the one named, else the route's."""
    from cluster.snapshots import newest

    snapshot = newest()
    routes = _routes(snapshot, settings.team)
    if snapshot is None or model not in routes:
        known = ", ".join(sorted(routes)) or "none"
        raise NotFoundError(
            f"No model {model!r} is deployed (deployed: {known}): deploy it with `manta deploy`."
        )
    route = routes[model]
    return route, _heaviest(route), _policy(policy or route.policy, snapshot)


def _routes(snapshot: Snapshot | None, team: str) -> dict[str, Route]:
    found = snapshot.routes if snapshot else []
    return {route.model: route for route in found if route.team in (None, team)}


def _price(route: Route) -> PriceConfig | None:
    """The route's published price, if it has one."""
    price = getattr(route, "price", None)
    return (
        None
        if price is None
        else PriceConfig.model_validate(price.model_dump(include=set(PriceConfig.model_fields)))
    )


def _heaviest(route: Route) -> Target:
    reachable = [target for target in route.targets if target.application and target.deployment]
    if not reachable:
        raise RefusedError(
            f"Every target of {route.model!r} is a URL elsewhere; a batch needs a model on this cluster."
        )
    return max(reachable, key=lambda target: target.weight)


def _policy(wanted: str | None, snapshot: Snapshot | None) -> PolicyDocument:
    """A published policy by name, else a shipped one or a file; none named means the default."""
    from validation.guards import load_policy

    for document in snapshot.policies if snapshot else ():
        if document.name == (wanted or "default"):
            return document
    return load_policy(wanted).document()


def _model_input(target: Target, settings: Settings, store: ObjectStore) -> ArtifactInput:
    """The checkpoint or base model behind a target, so that lineage goes on from it."""
    if target.model_version is not None:
        from cluster.registry import Registry

        try:
            registered = Registry(settings).resolve(target.model_version)
            return ArtifactInput(address=registered.checkpoint, digest=registered.digest)
        except MantaError:
            pass  # The registry is down or has forgotten: the digest still pins what is served.
    if (base := _artifact_of(target, settings, store)) is not None:
        return ArtifactInput(address=str(base.ref), digest=base.data_digest)
    return ArtifactInput(
        address=f"serve:{target.application}/{target.model}", digest=target.digest or target.model
    )


def _artifact_of(target: Target, settings: Settings, store: ObjectStore) -> Manifest | None:
    """The model artifact whose digest the target names."""
    if target.digest is None:
        return None
    made = ArtifactStore(store).list(settings.team, "model")
    return next((manifest for manifest in made if manifest.data_digest == target.digest), None)
