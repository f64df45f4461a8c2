"""``manta batch``: what became of a batch, or how far it is."""

from __future__ import annotations

import json

import click


@click.group()
def batch() -> None:
    """Look at batches: progress, counts, tokens, cost and first errors."""


@batch.command()
@click.argument("run_or_address")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of lines.")
def show(run_or_address: str, as_json: bool) -> None:
    """Show one batch by its run's id or its artifact's address, be it finished, at work or failed.

    Of a comparison, its table.
    """
    from cluster.settings import load_settings
    from cluster.storage import ArtifactStore, object_store
    from jobs.batch.comparing import stored
    from jobs.batch.showing import describe, lines

    store = object_store()
    store.check()
    settings, artifacts = load_settings(), ArtifactStore(store)
    if (comparison := stored(run_or_address, settings, artifacts, as_json=as_json)) is not None:
        click.echo(comparison)
        return
    about = describe(run_or_address, settings, artifacts)
    click.echo(json.dumps(about) if as_json else "\n".join(lines(about)))
