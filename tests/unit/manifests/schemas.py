"""Strict schemas: Kubernetes' own from kubernetes-validate, and KubeRay's, which stand on them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from referencing import Registry, Resource

from tests.unit.manifests.documents import Json, name_of
from tests.unit.manifests.kuberay_drift import SCHEMA

KUBERNETES_VERSION = "1.37"
_BASE = "https://manta.test/"


def schema_problems(document: Json) -> Iterator[str]:
    """What a strict API server would refuse, at most one sentence a document."""
    name = name_of(document)
    if str(document.get("apiVersion", "")).startswith("ray.io/"):
        error = best_match(_kuberay(document.get("kind", "")).iter_errors(document))
        if error is not None:
            yield f"{name}: {_path(error.absolute_path)}: {error.message[:200]}"
        return
    try:
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{name}: {_path(error.absolute_path)}: {error.message[:200]}"
    except kubernetes_validate.SchemaNotFoundError as error:
        yield f"{name}: {error.message}"


@cache
def _kuberay(kind: str) -> Draft202012Validator:
    folder = f"kubernetes-json-schema/v{KUBERNETES_VERSION}.0-local-strict/_definitions.json"
    kubernetes = Resource.from_contents(json.loads((files("kubernetes_validate") / folder).read_text()))
    schema = yaml.safe_load(SCHEMA.read_text())
    known = kind in schema["$defs"] and kind.startswith("Ray") and not kind.endswith("Spec")
    if not known:
        return Draft202012Validator({"not": {}})
    registry: Registry[Any] = (kubernetes @ Registry()).with_resources(
        [(f"{_BASE}k8s.json", kubernetes), (f"{_BASE}kuberay.json", Resource.from_contents(schema))]
    )
    return Draft202012Validator({"$ref": f"{_BASE}kuberay.json#/$defs/{kind}"}, registry=registry)


def _path(parts: Any) -> str:
    return ".".join(str(part) for part in parts) or "(whole)"
