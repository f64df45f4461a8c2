"""``manta prompt``: which versions of the registry's prompt templates gateways know."""

from __future__ import annotations

import json

import click

_json = click.option("--json", "as_json", is_flag=True, help="One JSON document instead of lines.")


@click.group(no_args_is_help=False)  # A missing command is one sentence, too.
def prompt() -> None:
    """Publish prompt templates from the registry.

    They are made with MLflow's own API. Requests name them as OpenAI's do: prompt: {id, version, variables}.
    """


@prompt.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--prune", is_flag=True, help="Take out versions that are not newest and have no alias.")
@_json
def publish(names: tuple[str, ...], prune: bool, as_json: bool) -> None:
    """Let gateways know the newest version and every version with an alias.

    Of all prompts in the registry unless NAMEs are given. Gateways learn of them within seconds.
    """
    from cluster import prompts
    from cluster.settings import load_settings

    settings = load_settings()
    found = prompts.registered(settings, names)
    gone = {template.name for template in found} if prune else set()
    snapshot = prompts.publish(found, settings.principal.key_id, prune=gone)
    if as_json:
        click.echo(json.dumps({"snapshot": snapshot.number, "prompts": [t.ref for t in found]}))
        return
    for template in found:
        click.echo(f"{template.ref:<40} {', '.join(template.aliases)}".rstrip())


@prompt.command(name="list")
@_json
def list_prompts(as_json: bool) -> None:
    """List what gateways know."""
    from cluster import snapshots

    snapshot = snapshots.newest()
    known = list(snapshot.prompts.values()) if snapshot else []
    if as_json:
        click.echo(json.dumps([template.model_dump(mode="json") for template in known]))
        return
    for template in known:
        click.echo(f"{template.ref:<40} {', '.join(template.aliases)}".rstrip())
