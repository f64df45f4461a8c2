"""Pod templates held against the restricted pod security standard, and what they may say in clear."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tests.unit.manifests.documents import Json, name_of

_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
_SECRET_NAME = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN$|API_KEY|ACCESS_KEY|DATABASE__URL|TRACKING_URI")
_SECRET_TEXT = re.compile(r"AKIA[0-9A-Z]{16}|://[^/\s:@]+:[^/\s@]+@|-----BEGIN [A-Z ]*PRIVATE KEY")


def templates(document: Json) -> Iterator[tuple[str, Json]]:
    """Every pod template of a document, with the place where it stands."""
    for path, mapping in _mappings(document, name_of(document)):
        if "containers" in mapping:
            yield path, mapping


def _mappings(value: Any, path: str) -> Iterator[tuple[str, Json]]:
    if isinstance(value, dict):
        yield path, value
        for key, inner in value.items():
            yield from _mappings(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _mappings(inner, f"{path}.{number}")


def pod_problems(document: Json) -> Iterator[str]:
    """What the namespace's restricted standard would refuse."""
    for path, pod in templates(document):
        security = pod.get("securityContext") or {}
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.get(key):
                yield f"{path}: {key} is set"
        for volume in pod.get("volumes") or []:
            if not volume.keys() - {"name"} <= _VOLUMES:
                yield f"{path}: volume {volume['name']} is of a kind that is not allowed"
        for container in [*pod["containers"], *(pod.get("initContainers") or [])]:
            yield from _container(f"{path}: {container['name']}", container, security)
    for path, mapping in _mappings(document, name_of(document)):
        if path.endswith("autoscalerOptions"):
            yield from _privileges(path, mapping.get("securityContext") or {})


def _container(where: str, container: Json, pod: Json) -> Iterator[str]:
    own = container.get("securityContext") or {}
    both = {**pod, **own}
    if both.get("runAsNonRoot") is not True or both.get("runAsUser", 1) == 0:
        yield f"{where} may run as root"
    if (both.get("seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield f"{where} has no seccomp profile"
    if any("hostPort" in port for port in container.get("ports") or []):
        yield f"{where} opens a port of the host"
    yield from _privileges(where, own)


def _privileges(where: str, security: Mapping[str, Any]) -> Iterator[str]:
    capabilities = security.get("capabilities") or {}
    if security.get("privileged") or security.get("allowPrivilegeEscalation") is not False:
        yield f"{where} may gain privileges"
    if capabilities.get("drop") != ["ALL"] or set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"}:
        yield f"{where} keeps capabilities"


def secret_problems(document: Json) -> Iterator[str]:
    """Secrets that stand in clear."""
    name = name_of(document)
    if document.get("kind") == "Secret":
        yield f"{name}: secrets are made outside of the repository"
    for path, mapping in _mappings(document, name):
        if mapping.get("value") and _SECRET_NAME.search(str(mapping.get("name"))):
            yield f"{path}: {mapping['name']} has its value in clear"
        for key, value in mapping.items():
            if document.get("kind") == "ConfigMap" and isinstance(value, str) and _SECRET_NAME.search(key):
                yield f"{path}.{key}: a secret in a ConfigMap"
            if isinstance(value, str) and _SECRET_TEXT.search(value):
                yield f"{path}.{key}: holds a secret"
            if key == "redisPassword" and "value" in value:
                yield f"{path}.{key}: a password in clear"
