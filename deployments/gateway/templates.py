"""The prompt template that a request names: a published version, filled, before the request's messages.

``prompt`` has the form of OpenAI's: ``{"id": "triage", "version": "3", "variables": {"city": "Rome"}}``.
``version`` is a number or an alias; without it the version with the alias ``champion`` is used, or the
newest. The filled template is judged like everything else that goes to the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cluster.contracts import PromptTemplate
from cluster.contracts.request import PromptReference
from deployments.gateway.errors import ApiError

_DEFAULT_ALIAS = "champion"
_VARIABLE = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_.]*)\s*\}\}")


def find_template(prompts: Mapping[str, PromptTemplate], named: PromptReference) -> PromptTemplate:
    """The version that is meant. Raises ApiError 404."""
    versions = [template for template in prompts.values() if template.name == named.id]
    wanted = str(named.version or _DEFAULT_ALIAS)
    for template in versions:
        if wanted in (str(template.version), *template.aliases):
            return template
    if versions and named.version is None:
        return max(versions, key=lambda template: template.version)
    version = "" if named.version is None else f" version '{named.version}'"
    raise ApiError(
        404,
        f"Prompt '{named.id}'{version} is not published.",
        param="prompt.version" if versions else "prompt.id",
        code="prompt_not_found",
    )


def fill(template: PromptTemplate, named: PromptReference) -> list[dict[str, Any]]:
    """The template's messages with the variables in them. Raises ApiError 400 unless they are the template's.

    A value is text: ``{{...}}`` in it stays as it is.
    """
    wanted = {name for message in template.messages for name in _VARIABLE.findall(message.content)}
    for name in sorted(wanted - named.variables.keys()):
        raise ApiError(
            400, f"Prompt {template.ref} needs the variable '{name}'.", param=f"prompt.variables.{name}"
        )
    for name in sorted(named.variables.keys() - wanted):
        raise ApiError(
            400, f"Prompt {template.ref} has no variable '{name}'.", param=f"prompt.variables.{name}"
        )
    return [
        {
            "role": message.role,
            "content": _VARIABLE.sub(lambda found: str(named.variables[found[1]]), message.content),
        }
        for message in template.messages
    ]
