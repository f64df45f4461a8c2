"""KubeRay's schema is strict throughout, and a release that differs from it is told in words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.manifests.documents import Json, put
from tests.unit.manifests.kuberay_drift import KINDS, SCHEMA, differences


@pytest.fixture(scope="module")
def schema() -> Json:
    loaded: Json = yaml.safe_load(SCHEMA.read_text())
    return loaded


def objects(schema: Any) -> Iterator[Json]:
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
            yield schema
        for part in schema.values():
            yield from objects(part)


def test_no_object_takes_unknown_keys(schema: Json) -> None:
    found = list(objects(schema["$defs"]))
    assert len(found) > 20
    assert all(each.get("additionalProperties") is False for each in found)


def inlined(part: Any, shared: Json) -> Any:
    """A part without references, as CRDs are; what is Kubernetes' own is anything."""
    if isinstance(part, list):
        return [inlined(each, shared) for each in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        name = part["$ref"].rpartition("/")[2]
        return inlined(shared[name], shared) if part["$ref"].startswith("#") else {"type": "object"}
    found = {key: inlined(value, shared) for key, value in part.items()}
    if found.get("minimum", 0) < 0:
        del found["minimum"]
        found["format"] = "int32"
    return found


def release(folder: Path, schema: Json, path: str | None = None, value: object = None) -> Path:
    """CRDs as a release has them, with something changed if wanted."""
    for kind, plural in KINDS.items():
        spec = inlined(schema["$defs"][f"{kind}Spec"], schema["$defs"])
        if kind == "RayCluster" and path is not None:
            put(path, value, spec)
        version = {"name": "v1", "schema": {"openAPIV3Schema": {"properties": {"spec": spec}}}}
        crd = {"spec": {"versions": [version]}}
        (folder / f"ray.io_{plural}.yaml").write_text(yaml.safe_dump(crd))
    return folder


def test_the_same_release_does_not_differ(tmp_path: Path, schema: Json) -> None:
    assert list(differences(release(tmp_path, schema))) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("properties.new", {"type": "string"}, "RayCluster.new: only in the release"),
        ("properties.suspend", None, "RayCluster.suspend: only in the schema"),
        ("properties.rayVersion.type", "integer", "RayCluster.rayVersion: type string here, integer in the"),
        ("properties.authOptions.properties.mode.enum", ["token"], "authOptions.mode: enum"),
        ("properties.workerGroupSpecs.items.required", ["template"], "workerGroupSpecs[]: required"),
    ],
)
def test_a_difference_is_told(tmp_path: Path, schema: Json, path: str, value: object, said: str) -> None:
    found = list(differences(release(tmp_path, schema, path, value)))
    assert len(found) == 1
    assert said in found[0]
