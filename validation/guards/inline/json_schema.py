"""JSON that must follow a schema, judged as it stands when the text is complete.

Nothing is fetched: a schema may refer to parts of itself only. ``pattern`` is RE2's, which takes linear time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from validation.guards.inline.regex import compiled
from validation.guards.scan import Hit

_FENCE = re.compile(r"\s*```[a-z]*[ \t]*\n(.*)\n[ \t]*```\s*\Z", re.DOTALL)
#: Keys of a schema whose patterns Python's own engine would search; it can be made to hang.
_UNSUPPORTED = ("patternProperties",)


def validator_of(schema: Mapping[str, Any]) -> Any:
    """A validator. Raises ValueError with a sentence for what is no schema, or cannot be followed safely."""
    from jsonschema import Draft202012Validator, SchemaError
    from jsonschema.validators import extend
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"it is no JSON schema: {error.message[:200]}") from None
    resolver = Registry().resolver_with_root(DRAFT202012.create_resource(schema))
    for key, value in _entries(schema):
        if key in _UNSUPPORTED:
            raise ValueError(f"the keyword {key} is not supported")
        if key in ("$ref", "$dynamicRef") and isinstance(value, str):
            if not value.startswith("#"):
                raise ValueError(f"{key} may point within the schema only, as in #/$defs/name")
            try:
                resolver.lookup(value)
            except Unresolvable:
                raise ValueError(f"{key} points to {value[:80]}, which is not in the schema") from None
    patterns = {
        value: compiled(value, ignore_case=False)
        for key, value in _entries(schema)
        if key == "pattern" and isinstance(value, str)
    }

    def matches(_: Any, wanted: str, instance: Any, __: Any) -> Iterator[Any]:
        from jsonschema import ValidationError

        if isinstance(instance, str) and not patterns[wanted].search(instance):
            yield ValidationError("pattern")

    strict = extend(Draft202012Validator, {"pattern": matches})
    return strict(schema, registry=Registry())


def _entries(node: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a schema, at any depth, with its value."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield key, value
            yield from _entries(value)
    elif isinstance(node, list):
        for item in node:
            yield from _entries(item)


def json_schema_check(schema: Mapping[str, Any], fenced: bool) -> Callable[[str], list[Hit]]:
    """The guard of policy kind ``json_schema``."""
    validator = validator_of(schema)

    def check(text: str) -> list[Hit]:
        fence = _FENCE.match(text) if fenced else None
        try:
            value = json.loads(fence[1] if fence else text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return [Hit("NOT_JSON", 1.0, 0, len(text))]
        return [] if validator.is_valid(value) else [Hit("NOT_OF_SCHEMA", 1.0, 0, len(text))]

    return check


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
