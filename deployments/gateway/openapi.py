"""The gateway's OpenAPI document, made from the types that bodies are parsed into."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

_ERRORS = {
    "400": "The request is wrong, or the model's guard policy blocked it.",
    "401": "The key is missing, wrong, expired or revoked.",
    "404": "There is no such model, or this key may not use it.",
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
    model = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    paths["/v1/models"] = {"get": _read("models", "The models that this key may use.")}
    paths["/v1/models/{model}"] = {"get": _read("model", "One of them.") | {"parameters": [model]}}
    paths["/healthz"] = {"get": _read("health", "Whether the gateway is ready.") | {"security": []}}
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
    events = {"text/event-stream": {"schema": {"type": "string"}}}
    answer = {"description": "The answer.", "content": {"application/json": {"schema": {}}} | events}
    return {
        "operationId": path.removeprefix("/v1/").replace("/", "_"),
        "summary": (body.__doc__ or "").strip(),
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {"200": answer} | _errors(),
    }


def _read(name: str, what: str) -> dict[str, Any]:
    answer = {"description": what, "content": {"application/json": {"schema": {"type": "object"}}}}
    return {"operationId": name, "summary": what, "responses": {"200": answer} | _errors()}


def _errors() -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}}
    return {status: {"description": text, "content": content} for status, text in _ERRORS.items()}
