"""Where kuberay.schema.yaml and the CRDs of a KubeRay release differ.

    python -m tests.unit.manifests.kuberay_drift DIRECTORY   # ray-operator/config/crd/bases of the release

Prints a line a difference and ends with 1 if there is one. Parts that the schema leaves to Kubernetes' own
are not compared.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

SCHEMA = Path(__file__).with_name("kuberay.schema.yaml")
KINDS = {"RayCluster": "rayclusters", "RayService": "rayservices", "RayJob": "rayjobs"}
#: Stricter here than in the CRD, because the operator itself is.
STRICTER = ("submissionMode", "upgradeStrategy.type", "managedBy")


def differences(directory: Path) -> Iterator[str]:
    """One sentence for each difference."""
    schema = yaml.safe_load(SCHEMA.read_text())
    for kind, plural in KINDS.items():
        crd = yaml.safe_load((directory / f"ray.io_{plural}.yaml").read_text())
        version = next(v for v in crd["spec"]["versions"] if v["name"] == "v1")
        theirs = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
        yield from _compare(kind, schema["$defs"][f"{kind}Spec"], theirs, schema["$defs"])


def _compare(
    path: str, ours: dict[str, Any], theirs: dict[str, Any], shared: dict[str, Any]
) -> Iterator[str]:
    if "$ref" in ours:
        if not ours["$ref"].startswith("#"):
            return
        ours = shared[ours["$ref"].rpartition("/")[2]]
    for name in ("properties", "items", "additionalProperties"):
        if isinstance(ours.get(name), dict) and not theirs.get(name):
            yield f"{path}: the release has no {name}"
            return
    mine, its = ours.get("properties", {}), theirs.get("properties", {})
    for name in sorted(mine.keys() ^ its.keys()):
        yield f"{path}.{name}: only in {'the release' if name in its else 'the schema'}"
    for name in sorted(mine.keys() & its.keys()):
        yield from _compare(f"{path}.{name}", mine[name], its[name], shared)
    if isinstance(ours.get("items"), dict):
        yield from _compare(f"{path}[]", ours["items"], theirs["items"], shared)
    if isinstance(ours.get("additionalProperties"), dict):
        yield from _compare(f"{path}.*", ours["additionalProperties"], theirs["additionalProperties"], shared)
    if path.endswith(STRICTER):
        return
    if "enum" not in ours and ours.get("type") != theirs.get("type"):
        yield f"{path}: type {ours.get('type')} here, {theirs.get('type')} in the release"
    if sorted(ours.get("enum", [])) != sorted(theirs.get("enum", [])):
        yield f"{path}: enum {ours.get('enum')} here, {theirs.get('enum')} in the release"
    if sorted(ours.get("required", [])) != sorted(theirs.get("required", [])):
        yield f"{path}: required {ours.get('required')} here, {theirs.get('required')} in the release"
    least = None if theirs.get("format") == "int32" and ours.get("minimum", 0) < 0 else ours.get("minimum")
    if least != theirs.get("minimum") or ours.get("minItems") != theirs.get("minItems"):
        yield f"{path}: least {least} here, {theirs.get('minimum')} in the release"


if __name__ == "__main__":
    found = list(differences(Path(sys.argv[1])))
    print("\n".join(found) or "no difference")
    raise SystemExit(bool(found))
