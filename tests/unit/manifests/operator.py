"""What KubeRay 1.7's operator refuses although the schema allows it, and what a set of documents must fit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

from tests.unit.manifests.documents import Json, name_of
from tests.unit.manifests.pods import templates

_LONGEST = {"RayCluster": 53, "RayService": 47, "RayJob": 47}
#: Parts that only an alpha feature gate of the operator opens.
_GATED = ("networkPolicy", "tlsOptions", "historyServerOptions")
_EXCLUSIVE = {"num-cpus", "num-gpus", "memory", "resources"}


def operator_problems(document: Json) -> Iterator[str]:
    """One sentence for each rule that is broken."""
    kind, name = document.get("kind", ""), name_of(document)
    if kind not in _LONGEST:
        return
    metadata, spec = document["metadata"], document["spec"]
    # A generated name gets five more characters.
    label = metadata.get("name") or metadata.get("generateName", "") + "x" * 5
    if len(label) > _LONGEST[kind] or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", label):
        yield f"{name}: the name must be a DNS label of at most {_LONGEST[kind]} characters"
    if kind == "RayCluster":
        yield from _cluster(name, spec)
    elif kind == "RayService":
        yield from _cluster(name, spec["rayClusterConfig"])
        yield from _upgrade(name, spec)
    else:
        yield from _job(name, spec)


def _cluster(name: str, spec: Json) -> Iterator[str]:
    if spec.get("rayVersion") != version("ray"):
        yield f"{name}: rayVersion {spec.get('rayVersion')} is not the locked {version('ray')}"
    if (spec.get("authOptions") or {}).get("mode") != "token":
        yield f"{name}: authOptions.mode is not token"
    if (spec.get("autoscalerOptions") or {}).get("version") == "v2" and not spec.get(
        "enableInTreeAutoscaling"
    ):
        yield f"{name}: an autoscaler version without enableInTreeAutoscaling"
    for part in _GATED:
        if part in spec:
            yield f"{name}: {part} needs an alpha feature gate"
    if (spec.get("gcsFaultToleranceOptions") or {}).get("backend") == "rocksdb":
        yield f"{name}: gcsFaultToleranceOptions.backend rocksdb needs an alpha feature gate"
    for group in [spec["headGroupSpec"] | {"groupName": "head"}, *spec.get("workerGroupSpecs", [])]:
        where = f"{name}: group {group['groupName']}"
        if group.get("minReplicas", 0) > group.get("maxReplicas", 0):
            yield f"{where} has more minReplicas than maxReplicas"
        if group.get("resources") and _EXCLUSIVE & (group.get("rayStartParams") or {}).keys():
            yield f"{where} has resources in rayStartParams too"
        if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield f"{where} restarts its pods, which autoscaler v2 does itself"


def _upgrade(name: str, spec: Json) -> Iterator[str]:
    strategy = spec.get("upgradeStrategy") or {}
    if strategy.get("type") != "NewClusterWithIncrementalUpgrade":
        return
    options = strategy.get("clusterUpgradeOptions")
    if not spec["rayClusterConfig"].get("enableInTreeAutoscaling"):
        yield f"{name}: an incremental upgrade needs the autoscaler"
    if not options:
        yield f"{name}: an incremental upgrade needs clusterUpgradeOptions"
        return
    surge = options.get("maxSurgePercent", 100)
    if not 0 <= options["stepSizePercent"] <= surge <= 100:
        yield f"{name}: stepSizePercent must be at most maxSurgePercent, and both percentages"
    if options["intervalSeconds"] <= 0 or not options["gatewayClassName"]:
        yield f"{name}: clusterUpgradeOptions lack an interval or a gateway class"


def _job(name: str, spec: Json) -> Iterator[str]:
    selected = bool(spec.get("clusterSelector"))
    if selected == bool(spec.get("rayClusterSpec")):
        yield f"{name}: one of clusterSelector and rayClusterSpec must be set"
    if selected and (
        spec.get("backoffLimit") or spec.get("suspend") or spec.get("submissionMode") == "SidecarMode"
    ):
        yield f"{name}: clusterSelector goes with neither backoffLimit, suspend nor SidecarMode"
    rules = (spec.get("deletionStrategy") or {}).get("deletionRules") or []
    if selected and any(rule["policy"] in ("DeleteCluster", "DeleteWorkers") for rule in rules):
        yield f"{name}: a job may not delete a cluster that it only selects"
    if rules and (spec.get("shutdownAfterJobFinishes") or spec.get("ttlSecondsAfterFinished")):
        yield f"{name}: deletionRules go with neither shutdownAfterJobFinishes nor ttlSecondsAfterFinished"
    if spec.get("activeDeadlineSeconds", 1) <= 0:
        yield f"{name}: activeDeadlineSeconds must be positive"


def set_problems(documents: Sequence[Json], secrets: set[str]) -> Iterator[str]:
    """References that lead nowhere, doors that are open, and images that may change.

    :param secrets: names of the Secrets that whoever runs the cluster makes.
    """
    named = {(doc["kind"], doc["metadata"]["name"]) for doc in documents}
    named |= {("Secret", name) for name in secrets}
    for document in documents:
        for path, pod in templates(document):
            for kind, name in _references(pod):
                if (kind, name) not in named:
                    yield f"{path}: there is no {kind} {name}"
            for container in pod["containers"]:
                _, _, tag = container["image"].rpartition("/")[2].partition(":")
                if tag in ("", "latest"):
                    yield f"{path}: image {container['image']} has no fixed tag"
        yield from _doors(document)
    policies = [doc["spec"] for doc in documents if doc["kind"] == "NetworkPolicy"]
    closed = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    if closed not in policies:
        yield "NetworkPolicy: none denies all that no other allows"
    for document in documents:
        labels = document["metadata"].get("labels") or {}
        enforced = labels.get("pod-security.kubernetes.io/enforce") == "restricted"
        if document["kind"] == "Namespace" and not enforced:
            yield f"{name_of(document)}: the restricted pod security standard is not enforced"


def _references(pod: Json) -> Iterator[tuple[str, str]]:
    yield "ServiceAccount", pod.get("serviceAccountName", "default")
    for container in pod["containers"]:
        for source in container.get("envFrom") or []:
            for key, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                if key in source:
                    yield kind, source[key]["name"]


def _doors(document: Json) -> Iterator[str]:
    name, spec = name_of(document), document.get("spec") or {}
    if document["kind"] == "NetworkPolicy":
        for rule in spec.get("ingress") or []:
            sources: list[Any] = rule.get("from") or []
            if not sources or any(
                not source.keys() - {"namespaceSelector"} and source.get("namespaceSelector") == {}
                for source in sources
            ):
                yield f"{name}: lets everybody in"
            if any("ipBlock" in source for source in sources):
                yield f"{name}: lets addresses from outside in"
    if document["kind"] in ("RayCluster", "RayService"):
        head = (spec.get("rayClusterConfig") or spec)["headGroupSpec"]
        if head.get("serviceType", "ClusterIP") != "ClusterIP" or head.get("enableIngress"):
            yield f"{name}: the head's service is open to the outside"
    if document["kind"] in ("Ingress", "Gateway") or spec.get("type") in ("LoadBalancer", "NodePort"):
        yield f"{name}: opens a door beside the Gateway"
