"""Prompt templates: MLflow's prompt registry is the truth, gateways get snapshots of it.

Templates are made with MLflow's own API (``mlflow.genai.register_prompt``) in its own form: text or chat
messages with ``{{variables}}``. A version never changes; an alias says which one is in use.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from cluster import snapshots
from cluster.contracts import PromptMessage, PromptTemplate, Snapshot
from cluster.errors import NotFoundError, UsageError
from cluster.mlflow_store import mlflow_client, pages, told
from cluster.settings import Settings
from cluster.storage import ObjectStore

#: MLflow takes a template with any of these for Jinja's, which gateways do not run.
_JINJA = re.compile(r"\{[%#]")


def registered(settings: Settings, names: Iterable[str] = ()) -> list[PromptTemplate]:
    """The versions to publish of these prompts, or of all: each one's newest, and all that have an alias.

    Raises NotFoundError for a name that is not registered, UsageError for a template that gateways cannot
    fill, UnavailableError if MLflow does not answer.
    """
    client = mlflow_client(settings)
    with told():
        known = {prompt.name for prompt in pages(client.search_prompts)}
        wanted = sorted(set(names) or known)
        if missing := [name for name in wanted if name not in known]:
            raise NotFoundError(
                f"There is no prompt {missing[0]!r} in the registry: make it by mlflow.genai.register_prompt."
            )
        return [_template(version) for name in wanted for version in _versions(client, name)]


def publish(
    templates: Iterable[PromptTemplate],
    by: str,
    store: ObjectStore | None = None,
    *,
    prune: Iterable[str] = (),
) -> Snapshot:
    """Let gateways know these templates; versions that they know already stay, for those who named them.

    An alias that moved leaves the version that it stood at.

    :param prune: names of prompts of which nothing but ``templates`` shall stay.

    Raises UnavailableError or AccessError if storage does not answer.
    """
    new = {template.ref: template for template in templates}
    names, gone = {template.name for template in new.values()}, set(prune)

    def with_prompts(snapshot: Snapshot) -> Snapshot:
        kept = {
            ref: old.model_copy(update={"aliases": []}) if old.name in names else old
            for ref, old in snapshot.prompts.items()
            if old.name not in gone
        }
        return snapshot.model_copy(update={"prompts": dict(sorted((kept | new).items()))})

    return snapshots.publish(with_prompts, by=by, store=store)


def _versions(client: Any, name: str) -> list[Any]:
    found = {int(version.version): version for version in pages(client.search_prompt_versions, name=name)}
    # A listing does not tell aliases; one version does.
    whole = [client.get_prompt_version(name, number) for number in sorted(found)]
    return [version for version in whole if version.aliases or version is whole[-1]]


def _template(version: Any) -> PromptTemplate:
    body = version.template
    messages = [{"role": "system", "content": body}] if isinstance(body, str) else body
    where = f"Prompt {version.name} version {version.version}"
    if any(_JINJA.search(str(message.get("content"))) for message in messages):
        raise UsageError(
            f"{where} is a Jinja template, which gateways do not run: write it with {{{{variables}}}} only."
        )
    try:
        return PromptTemplate(
            name=version.name,
            version=int(version.version),
            messages=[
                PromptMessage(role=message.get("role"), content=message.get("content"))
                for message in messages
            ],
            aliases=sorted(version.aliases),
        )
    except ValidationError:
        raise UsageError(
            f"{where}: gateways take messages with a role (system, developer, user or assistant) and text."
        ) from None
