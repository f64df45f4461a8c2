"""Refuse a plan that the cluster could never schedule, instead of waiting for ever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from cluster.errors import RefusedError
from cluster.ray_api import RayApi
from cluster.settings import load_settings

_NAMES = {"CPU": "CPUs", "GPU": "GPUs"}


def preflight(
    resources: Mapping[str, float] | Iterable[Mapping[str, float]],
    *,
    asker: str = "The job",
    remedy: str = "lower what it asks for",
    nodes: Sequence[Mapping[str, float]] | None = None,
) -> None:
    """Check that the cluster has the logical resources, busy or not.

    :param resources: what is asked for in all (``{"CPU": 2}``), or one such mapping for each process that
        must find its place on one node (``[{"CPU": 0.5}] * workers``).
    :param asker: who asks, as the sentence's subject.
    :param remedy: which setting to lower, e.g. ``"lower num_workers"``.
    :param nodes: resources of each node; asked of Ray if absent.

    Only the local cluster is asked: one that others started may scale up, from zero, to what is asked for.
    Raises RefusedError with the figures; UnavailableError or AccessError if Ray cannot be asked.
    """
    if nodes is None and load_settings().profile != "local":
        return
    bundles = [] if isinstance(resources, Mapping) else list(resources)
    total = Counter(resources) if isinstance(resources, Mapping) else _sum(bundles)
    nodes = _nodes() if nodes is None else nodes
    have = _sum(nodes)
    for name, wanted in total.items():
        if wanted > have[name]:
            raise RefusedError(
                f"{asker} asks for {_say(name, wanted)} but the cluster has {have[name]:g}: "
                f"{remedy}{_more(name)}."
            )
    for bundle in bundles:
        if not any(all(node.get(name, 0) >= value for name, value in bundle.items()) for node in nodes):
            one = " and ".join(_say(name, value) for name, value in bundle.items())
            raise RefusedError(f"{asker} asks for {one} on one node and no node has that: {remedy}.")


def _nodes() -> Sequence[Mapping[str, float]]:
    """Of Ray itself inside a job, of its REST interface elsewhere."""
    import sys

    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return RayApi.from_environment(load_settings().ports.dashboard).nodes()


def _sum(bundles: Iterable[Mapping[str, float]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for bundle in bundles:
        total.update(bundle)
    return total


def _say(name: str, amount: float) -> str:
    return f"{amount:g} {name if amount == 1 else _NAMES.get(name, name)}"


def _more(name: str) -> str:
    """A local cluster's CPUs are a currency: more of them are one setting away."""
    if name == "CPU" and load_settings().profile == "local":
        return ", or raise MANTA_RAY__NUM_CPUS and start the cluster anew"
    return ""
