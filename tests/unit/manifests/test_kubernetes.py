"""The Kubernetes definitions: what kubectl renders is sound, and a mistake in it is named."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable, Iterable
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from tests.unit.manifests.documents import Json, of_kind, put
from tests.unit.manifests.kubectl import KUBERNETES, Kubectl
from tests.unit.manifests.operator import operator_problems, set_problems
from tests.unit.manifests.pods import pod_problems, secret_problems
from tests.unit.manifests.schemas import schema_problems

OVERLAYS = ("dev", "prod")
#: Made by whoever runs the cluster; base/raycluster.yaml and the prod overlay say so.
SECRETS = {"manta-secrets", "manta-ray-token", "manta-redis"}


def problems(documents: list[Json]) -> list[str]:
    """Everything that is wrong; a document of the wrong form is not looked at further."""
    shapes = list(chain.from_iterable(_shape(json.dumps(document)) for document in documents))
    if shapes:
        return shapes
    checks: Iterable[Callable[[Json], Iterable[str]]] = (operator_problems, pod_problems, secret_problems)
    found = [problem for check in checks for document in documents for problem in check(document)]
    return found + list(set_problems(documents, SECRETS))


@cache
def _shape(document: str) -> list[str]:
    return list(schema_problems(json.loads(document)))


@pytest.fixture(scope="module")
def rendered(kubectl: Kubectl) -> dict[str, list[Json]]:
    return {name: kubectl.kustomize(KUBERNETES / "overlays" / name) for name in OVERLAYS}


@pytest.fixture
def prod(rendered: dict[str, list[Json]]) -> list[Json]:
    return copy.deepcopy(rendered["prod"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_sound(rendered: dict[str, list[Json]], overlay: str) -> None:
    documents = rendered[overlay]
    assert problems(documents) == []
    kinds = {d["kind"] for d in documents}
    assert kinds == {"Namespace", "ServiceAccount", "ConfigMap", "NetworkPolicy", "RayCluster", "RayService"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_service_has_the_nodes_of_the_cluster(rendered: dict[str, list[Json]], overlay: str) -> None:
    service = of_kind(rendered[overlay], "RayService")
    assert service["spec"]["rayClusterConfig"] == of_kind(rendered[overlay], "RayCluster")["spec"]
    file = KUBERNETES / "overlays" / overlay / "serve.yaml"
    assert service["spec"]["serveConfigV2"] == file.read_text()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_a_worker_keeps_on_disk_outlives_its_container(
    rendered: dict[str, list[Json]], overlay: str
) -> None:
    settings = next(
        item["data"]
        for item in rendered[overlay]
        if item["kind"] == "ConfigMap" and item["metadata"]["name"].startswith("manta-settings")
    )
    for kind in ("RayCluster", "RayService"):
        spec = of_kind(rendered[overlay], kind)["spec"]
        for group in spec.get("rayClusterConfig", spec)["workerGroupSpecs"]:
            pod = group["template"]["spec"]
            (mount,) = pod["containers"][0]["volumeMounts"]
            assert mount["mountPath"] == settings["MANTA_HOME"]
            assert {"name": mount["name"], "emptyDir": {}} in pod["volumes"]


def test_prod_keeps_the_heads_state_and_starts_gpus_from_zero(prod: list[Json]) -> None:
    spec = of_kind(prod, "RayCluster")["spec"]
    assert spec["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert groups.keys() == {"cpu", "gpu-serving", "gpu-training"}
    for name in ("gpu-serving", "gpu-training"):
        (container,) = groups[name]["template"]["spec"]["containers"]
        assert groups[name]["minReplicas"] == 0
        assert groups[name]["resources"]["GPU"] == container["resources"]["limits"]["nvidia.com/gpu"]
    strategy = of_kind(prod, "RayService")["spec"]["upgradeStrategy"]
    assert strategy["type"] == "NewClusterWithIncrementalUpgrade"


HEAD = "spec.headGroupSpec.template.spec"
WORKER = "spec.workerGroupSpecs.1.template.spec"
OPTIONS = "spec.upgradeStrategy.clusterUpgradeOptions"


@pytest.mark.parametrize(
    ("kind", "path", "value", "said"),
    [
        # KubeRay's schema, and Kubernetes' inside it.
        (
            "RayCluster",
            "spec.autoscalerOptions.version",
            "v3",
            "autoscalerOptions.version: 'v3' is not one of",
        ),
        ("RayCluster", "spec.headGroupSpecs", {}, "'headGroupSpecs' was unexpected"),
        ("RayCluster", "spec.authOptions.mode", "tokens", "authOptions.mode: 'tokens' is not one of"),
        ("RayCluster", "spec.workerGroupSpecs.0.minReplicas", "1", "minReplicas: '1' is not of type"),
        ("RayCluster", "spec.workerGroupSpecs.0.groupName", None, "'groupName' is a required property"),
        (
            "RayCluster",
            "spec.headGroupSpec.rayStartParams.num-cpus",
            0,
            "num-cpus: 0 is not of type 'string'",
        ),
        ("RayCluster", f"{HEAD}.containers.0.imagee", "x", "'imagee' was unexpected"),
        ("RayCluster", f"{WORKER}.tolerations.0.operator", 1, "tolerations.0.operator: 1 is not"),
        ("RayCluster", "apiVersion", "ray.io/v1alpha1", "apiVersion: 'ray.io/v1' was expected"),
        ("RayService", f"{OPTIONS}.gatewayClassName", None, "'gatewayClassName' is a required property"),
        (
            "RayService",
            "spec.upgradeStrategy.type",
            "Incremental",
            "upgradeStrategy.type: 'Incremental' is not",
        ),
        ("RayService", "spec.serveConfigV2", {"applications": []}, "serveConfigV2: "),
        ("RayService", "kind", "RayServise", "RayServise/manta-serve"),
        # Kubernetes' own.
        ("NetworkPolicy", "spec.policyType", ["Ingress"], "'policyType' was unexpected"),
        ("NetworkPolicy", "apiVersion", "networking.k8s.io/v2", "Couldn't find schema"),
        ("ServiceAccount", "automountServiceAccountToken", "no", "automountServiceAccountToken: 'no' is not"),
        # What the operator refuses.
        ("RayCluster", "spec.rayVersion", "2.59.0", "rayVersion 2.59.0 is not the locked"),
        ("RayCluster", "spec.authOptions.mode", "disabled", "authOptions.mode is not token"),
        ("RayCluster", "spec.enableInTreeAutoscaling", False, "without enableInTreeAutoscaling"),
        (
            "RayCluster",
            "spec.networkPolicy",
            {"mode": "DenyAll"},
            "networkPolicy needs an alpha feature gate",
        ),
        ("RayCluster", "spec.workerGroupSpecs.0.minReplicas", 11, "group cpu has more minReplicas"),
        (
            "RayCluster",
            "spec.workerGroupSpecs.1.rayStartParams",
            {"num-gpus": "1"},
            "resources in rayStartParams",
        ),
        ("RayCluster", f"{HEAD}.restartPolicy", "Always", "group head restarts its pods"),
        ("RayCluster", "metadata.name", "a" * 54, "DNS label of at most 53"),
        ("RayService", f"{OPTIONS}.stepSizePercent", 60, "stepSizePercent must be at most"),
        ("RayService", OPTIONS, None, "needs clusterUpgradeOptions"),
        # Pod security.
        ("RayCluster", f"{HEAD}.securityContext.runAsNonRoot", None, "ray-head may run as root"),
        ("RayCluster", f"{WORKER}.securityContext.runAsUser", 0, "ray-worker may run as root"),
        ("RayCluster", f"{WORKER}.securityContext.seccompProfile", None, "has no seccomp profile"),
        ("RayCluster", f"{HEAD}.containers.0.securityContext.capabilities", None, "keeps capabilities"),
        ("RayCluster", f"{HEAD}.containers.0.securityContext.privileged", True, "may gain privileges"),
        ("RayCluster", f"{HEAD}.hostNetwork", True, "hostNetwork is set"),
        (
            "RayCluster",
            f"{HEAD}.volumes",
            [{"name": "x", "hostPath": {"path": "/"}}],
            "volume x is of a kind",
        ),
        (
            "RayCluster",
            "spec.autoscalerOptions.securityContext",
            None,
            "autoscalerOptions may gain privileges",
        ),
        ("Namespace", "metadata.labels", {}, "pod security standard is not enforced"),
        # Secrets.
        (
            "RayCluster",
            f"{HEAD}.containers.0.env",
            [{"name": "MANTA_DATABASE__URL", "value": "postgresql://x"}],
            "MANTA_DATABASE__URL has its value in clear",
        ),
        (
            "RayCluster",
            "spec.gcsFaultToleranceOptions.redisAddress",
            "rediss://user:word@host:6379",
            "redisAddress: holds a secret",
        ),
        ("RayCluster", "spec.gcsFaultToleranceOptions.redisPassword", {"value": "x"}, "a password in clear"),
        ("ConfigMap", "data.AWS_SECRET_ACCESS_KEY", "x", "AWS_SECRET_ACCESS_KEY: a secret in a ConfigMap"),
        # References and images.
        ("RayCluster", f"{HEAD}.serviceAccountName", "manta", "there is no ServiceAccount manta"),
        (
            "RayCluster",
            f"{HEAD}.containers.0.envFrom.0.configMapRef.name",
            "manta-settings",
            "there is no ConfigMap manta-settings",
        ),
        ("RayCluster", f"{HEAD}.containers.0.envFrom.1.secretRef.name", "mine", "there is no Secret mine"),
        ("RayCluster", f"{HEAD}.containers.0.image", "host:5000/manta", "has no fixed tag"),
        ("RayCluster", f"{HEAD}.containers.0.image", "manta:latest", "has no fixed tag"),
        # Doors.
        ("RayCluster", "spec.headGroupSpec.serviceType", "LoadBalancer", "open to the outside"),
        ("RayCluster", "spec.headGroupSpec.enableIngress", True, "open to the outside"),
    ],
)
def test_a_planted_mistake_is_named(prod: list[Json], kind: str, path: str, value: Any, said: str) -> None:
    put(path, value, of_kind(prod, kind))
    found = problems(prod)
    assert any(said in problem for problem in found), found


@pytest.mark.parametrize(
    ("name", "path", "value", "said"),
    [
        ("deny-all", "spec.policyTypes", ["Ingress"], "none denies all"),
        ("gateway", "spec.ingress.0.from", None, "lets everybody in"),
        ("gateway", "spec.ingress.0.from.0.namespaceSelector", {}, "lets everybody in"),
        ("ray-nodes", "spec.ingress.0.from", [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "from outside"),
    ],
)
def test_an_open_network_policy_is_named(
    prod: list[Json], name: str, path: str, value: Any, said: str
) -> None:
    put(path, value, of_kind(prod, "NetworkPolicy", name))
    assert any(
        f"NetworkPolicy{'' if name == 'deny-all' else '/' + name}: " in p and said in p
        for p in problems(prod)
    )


def test_a_new_kind_of_door_is_named(prod: list[Json]) -> None:
    ports = [{"port": 8000}]
    prod.append(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "door"},
            "spec": {"type": "LoadBalancer", "ports": ports},
        }
    )
    prod.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"a": "eA=="}})
    assert [p.partition(":")[0] for p in problems(prod)] == ["Secret/s", "Service/door"]


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("base/kustomization.yaml", "raycluster.yaml", "raycluster.yml", "raycluster.yml"),
        ("base/kustomization.yaml", "resources:", "resource:", "resource"),
        (
            "overlays/prod/kustomization.yaml",
            "kind: RayCluster, fieldPath: spec",
            "kind: RayKluster",
            "RayKluster",
        ),
        ("overlays/prod/kustomization.yaml", "op: add", "op: added", "added"),
        ("overlays/dev/kustomization.yaml", "workerGroupSpecs/2", "workerGroupSpecs/7", "workerGroupSpecs/7"),
        ("base/raycluster.yaml", "securityContext: *pod", "securityContext: *pot", "pot"),
    ],
)
def test_kubectl_names_a_broken_overlay(
    kubectl: Kubectl, tmp_path: Path, file: str, old: str, new: str, said: str
) -> None:
    tree = shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    text = (tree / file).read_text()
    assert old in text
    (tree / file).write_text(text.replace(old, new, 1))
    overlay = "dev" if "dev" in file else "prod"
    with pytest.raises(ValueError, match=said):
        kubectl.kustomize(tree / "overlays" / overlay)


def test_changed_settings_reach_the_nodes(kubectl: Kubectl, tmp_path: Path, prod: list[Json]) -> None:
    tree = shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    settings = tree / "base" / "settings.env"
    settings.write_text(settings.read_text() + "MORE=1\n")
    changed = of_kind(kubectl.kustomize(tree / "overlays" / "prod"), "RayService")
    assert changed["spec"]["rayClusterConfig"] != of_kind(prod, "RayService")["spec"]["rayClusterConfig"]


def test_the_readme_renders_schedules_for_the_cluster_that_is_defined(prod: list[Json]) -> None:
    readme = (KUBERNETES.parents[1] / "README.md").read_text()
    named = re.search(r"--ray-cluster (\S+) --secret (\S+) --namespace (\S+)", readme)
    assert named is not None
    cluster = of_kind(prod, "RayCluster")
    place = cluster["metadata"]
    assert named.groups() == (place["name"], cluster["spec"]["authOptions"]["secretName"], place["namespace"])
