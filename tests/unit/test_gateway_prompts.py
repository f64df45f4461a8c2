"""Prompt templates in a request: the published version that it names, filled, and judged like all else."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from cluster.contracts import PromptMessage, PromptTemplate
from tests.unit.gateway_app import Fixture, chat, gateway, policy, snapshot

ASK = {"role": "user", "content": "Where is my parcel?"}


def template(version: int, text: str, *aliases: str) -> PromptTemplate:
    messages = [PromptMessage(role="system", content=text), PromptMessage(role="user", content="Hi.")]
    return PromptTemplate(name="desk", version=version, messages=messages, aliases=list(aliases))


def published(*templates: PromptTemplate, **more: Any) -> Any:
    return snapshot(prompts={item.ref: item for item in templates}, **more)


async def ask(g: Fixture, *messages: dict[str, str], **prompt: Any) -> list[dict[str, Any]]:
    """What the engine gets to read."""
    g.script.says = [chat("ok", finish="stop")]
    await g.client.chat.completions.create(
        model="m", messages=list(messages), extra_body={"prompt": {"id": "desk"} | prompt}
    )
    assert "prompt" not in g.script.requests[-1].body
    return g.script.requests[-1].body["messages"]


async def test_a_template_stands_before_the_messages() -> None:
    async with gateway(published(template(3, "You help {{ name }} in {{city}}."))) as g:
        sent = await ask(g, ASK, variables={"name": "Ann", "city": "{{name}}"})
        assert sent == [
            {"role": "system", "content": "You help Ann in {{name}}."},
            {"role": "user", "content": "Hi."},
            ASK,
        ]
        assert len(await ask(g, variables={"name": "Ann", "city": "Rome"})) == 2


@pytest.mark.parametrize(
    ("named", "version"),
    [
        ({}, 2),
        ({"version": "3"}, 3),
        ({"version": 1}, 1),
        ({"version": "next"}, 3),
        ({"version": "champion"}, 2),
    ],
)
async def test_which_version_is_meant(named: dict[str, Any], version: int) -> None:
    versions = template(1, "v1"), template(2, "v2", "champion"), template(3, "v3", "next")
    async with gateway(published(*versions)) as g:
        assert (await ask(g, ASK, **named))[0]["content"] == f"v{version}"
    async with gateway(published(template(1, "v1"), template(2, "v2"))) as g:
        assert (await ask(g, ASK))[0]["content"] == "v2"


@pytest.mark.parametrize(
    ("prompt", "status", "param"),
    [
        ({"id": "none"}, 404, "prompt.id"),
        ({"id": "desk", "version": "9"}, 404, "prompt.version"),
        ({"id": "desk"}, 400, "prompt.variables.name"),
        ({"id": "desk", "variables": {"name": "a", "more": "b"}}, 400, "prompt.variables.more"),
        ({"id": "desk", "variables": {"name": ["a"]}}, 400, "prompt.variables.name"),
        ({"id": "desk", "colour": "red"}, 400, "prompt.colour"),
    ],
)
async def test_what_cannot_be_filled_is_refused_by_name(
    prompt: dict[str, Any], status: int, param: str
) -> None:
    async with gateway(published(template(1, "Help {{name}}."))) as g:
        with pytest.raises(openai.APIStatusError) as refused:
            await g.client.chat.completions.create(model="m", messages=[ASK], extra_body={"prompt": prompt})
        assert (refused.value.status_code, refused.value.param) == (status, param)
        assert not g.script.requests


async def test_variables_are_judged() -> None:
    pii = {"name": "pii", "kind": "pii", "on": "input", "action": "block"}
    async with gateway(published(template(1, "Help {{name}}."), policies=[policy("default", pii)])) as g:
        with pytest.raises(openai.BadRequestError) as blocked:
            await ask(g, ASK, variables={"name": "ann@example.com"})
        assert blocked.value.code == "content_filter"


async def test_what_a_variable_says_is_redacted_whatever_role_its_template_has() -> None:
    """What a template's author writes may be trusted; what a client puts into it may not."""
    pii = {"name": "pii", "kind": "pii", "on": "input", "action": "redact", "skip_roles": ["system"]}
    trusting = policy("default", pii)
    async with gateway(
        published(template(1, "I am desk@ours.com. Help {{name}}."), policies=[trusting])
    ) as g:
        system, *_ = await ask(g, ASK, variables={"name": "ann@example.com"})
        assert system["content"] == "I am desk@ours.com. Help [EMAIL_ADDRESS]."
