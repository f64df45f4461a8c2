"""The gateway's OpenAPI document, made from the types that bodies are parsed into."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

_ERRORS = {
    "400": "The request is wrong, or the model's guard policy blocked it.",
    "403": "The key may not do this, or a quota is used up.",
    "401": "The key is missing, wrong, expired or revoked.",
    "404": "There is no such thing, or this key may not use it.",
    "408": "The body did not come in time.",
    "409": "There is one already.",
    "413": "The body is too long.",
    "429": "The key's limits are reached, or too many keys were wrong; Retry-After says until when.",
    "500": "The model or the server failed.",
    "502": "The model's server sent what is no answer.",
    "503": "Overloaded, or the model is not there now; Retry-After says when to try again.",
    "504": "The model was silent for too long.",
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_PLACES = re.compile(r"{([a-z_]+)}")
#: What takes no JSON.
_OTHERS = {
    ("get", "/v1/models"): "The models that this key may use.",
    ("get", "/v1/models/{model}"): "One of them.",
    ("delete", "/v1/models/{model}"): "Delete one that the team tuned.",
    ("post", "/v1/files"): "Upload a file.",
    ("get", "/v1/files"): "The team's files.",
    ("get", "/v1/files/{file_id}"): "One of them.",
    ("delete", "/v1/files/{file_id}"): "Delete it.",
    ("get", "/v1/files/{file_id}/content"): "Its bytes.",
    ("get", "/v1/batches"): "The team's batches.",
    ("get", "/v1/batches/{batch_id}"): "One of them.",
    ("post", "/v1/batches/{batch_id}/cancel"): "Ask no more of its rows.",
    ("get", "/v1/fine_tuning/jobs"): "The team's fine-tuning jobs.",
    ("get", "/v1/fine_tuning/jobs/{job_id}"): "One of them.",
    ("post", "/v1/fine_tuning/jobs/{job_id}/cancel"): "End it.",
    ("post", "/v1/fine_tuning/jobs/{job_id}/pause"): "Not supported.",
    ("post", "/v1/fine_tuning/jobs/{job_id}/resume"): "Not supported.",
    ("get", "/v1/fine_tuning/jobs/{job_id}/events"): "What happened to it.",
    ("get", "/v1/fine_tuning/jobs/{job_id}/checkpoints"): "What came of it.",
    ("get", "/admin/keys"): "All keys.",
    ("get", "/admin/keys/{id}"): "One key and its budgets.",
    ("patch", "/admin/keys/{id}"): "Change its terms: a merge patch.",
    ("delete", "/admin/keys/{id}"): "Revoke it.",
    ("get", "/healthz"): "Whether the gateway is ready.",
}
_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"enum": ["batch", "fine-tune"]},
        "expires_after[anchor]": {"enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
    },
}
_UPLOAD = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}}
_REF = "#/components/schemas/{model}"


def document(bodies: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """OpenAPI 3.1. What is true of a body and JSON schema cannot say, a 400 says.

    :param bodies: by path, what is posted there.
    """
    schemas: dict[str, Any] = {"Error": _ERROR}
    paths: dict[str, Any] = {}
    for path, body in bodies.items():
        schema = body.model_json_schema(ref_template=_REF)
        schemas |= schema.pop("$defs", {})
        schemas[body.__name__] = schema
        paths[path] = {"post": _operation(path, body)}
    for (method, path), what in _OTHERS.items():
        paths.setdefault(path, {})[method] = _other(method, path, what)
    paths["/v1/files"]["post"] |= _UPLOAD
    paths["/healthz"]["get"] |= {"security": []}
    for path, operations in paths.items():
        if names := _PLACES.findall(path):
            operations["parameters"] = [_in_path(name) for name in names]
    return {
        "openapi": "3.1.0",
        "info": {"title": "Manta", "version": "1", "description": "OpenAI's API, guarded."},
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(path: str, body: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": _REF.format(model=body.__name__)}
    return _other("post", path, (body.__doc__ or "").strip()) | {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}
    }


def _other(method: str, path: str, what: str) -> dict[str, Any]:
    kinds = ("application/json", "application/octet-stream", "text/event-stream")
    answer = {"description": "The answer.", "content": {kind: {"schema": {}} for kind in kinds}}
    name = "_".join([method, *re.findall(r"[a-z]+", path.removeprefix("/v1"))])
    good = {"201" if (method, path) == ("post", "/admin/keys") else "200": answer}
    return {"operationId": name, "summary": what, "responses": good | _errors()}


def _in_path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _errors() -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}}
    return {status: {"description": text, "content": content} for status, text in _ERRORS.items()}
