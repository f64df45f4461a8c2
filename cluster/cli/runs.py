"""``manta runs | gc``: what ran and how it ended, and what killed runs left in storage."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from cluster.cli.duration import Duration

if TYPE_CHECKING:
    from cluster.contracts import RunRecord

_json = click.option("--json", "as_json", is_flag=True, help="One JSON document instead of lines.")
#: What has no lease (a model's import) is known to be alive by its last write alone.
_YOUNGEST = timedelta(hours=1)
_STATES = ("running", "succeeded", "failed", "lost", "collected")


class Age(Duration):
    """An age that what has no lease can be judged by."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read it, or fail with a sentence."""
        age = super().convert(value, param, ctx)
        if age < _YOUNGEST:
            self.fail(f"{value!r} is too young: at least 1h, since a model's import has no lease", param, ctx)
        return age


@click.command()
@click.argument("run_id", required=False)
@click.option("--verb", help="Only of this verb.")
@click.option("--state", type=click.Choice(_STATES), help="Only in this state.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many.")
@_json
def runs(run_id: str | None, verb: str | None, state: str | None, limit: int, as_json: bool) -> None:
    """List runs with their state, or show one run.

    manta runs [RUN_ID]

    Newest first. A run whose process was killed is found lost here, a minute after it was last heard of, or
    succeeded if its artifact stands.
    """
    from cluster.contracts import RunState
    from cluster.runs import RunRepository
    from cluster.settings import load_settings

    repository = RunRepository(load_settings().database_url)
    _put_right(repository)
    if run_id is not None:
        record = repository.get(run_id)
        click.echo(record.model_dump_json() if as_json else "\n".join(_whole(record)))
        return
    found = repository.list(verb, RunState(state) if state else None, limit)
    if as_json:
        click.echo(json.dumps([run.model_dump(mode="json") for run in found]))
        return
    for run in found:
        click.echo(f"{run.state:<10}{run.started_at:%Y-%m-%d %H:%M:%S}  {run.id}  {_told(run)}".rstrip())


@click.command()
@click.option("--older-than", type=Age(), default="7d", show_default=True, help="Nothing younger: 7d, 12h.")
@click.option("--team", help="Only this team's.")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and delete nothing.")
@_json
def gc(older_than: timedelta, team: str | None, dry_run: bool, as_json: bool) -> None:
    """Delete what killed and beaten attempts left in storage.

    Attempts without a manifest, beaten ones, training checkpoints and unfinished uploads to which nothing
    has happened for --older-than; never a run's that is alive, nor what an artifact is made of. Until then a
    killed finetune can be resumed from its checkpoints. Without --team also files of /v1/files whose time is
    over.
    """
    from cluster.files import FileRepository
    from cluster.gc import Collector
    from cluster.runs import RunRepository
    from cluster.settings import load_settings
    from cluster.storage import ArtifactStore, object_store

    store = object_store()
    store.check()
    runs = RunRepository(load_settings().database_url)
    found = []
    for one in Collector(ArtifactStore(store), runs, older_than, dry_run=dry_run).collect(team):
        found.append(one)
        if not as_json:
            size = f"{one.files} files, {one.bytes / 1e6:.1f} MB; " if one.files else ""
            click.echo(f"{one.path}: {one.why} ({size}last written {one.last:%Y-%m-%d %H:%M})")
    uploads = 0 if dry_run or team else FileRepository(load_settings().database_url).sweep(store)
    total = {"files": sum(one.files for one in found), "bytes": sum(one.bytes for one in found)}
    if as_json:
        items = [{**vars(one), "last": one.last.isoformat()} for one in found]
        click.echo(json.dumps({"dry_run": dry_run, **total, "uploads": uploads, "collected": items}))
        return
    done = "would be deleted" if dry_run else "deleted"
    click.echo(f"{len(found)} {done}: {total['files']} files, {total['bytes'] / 1e6:.1f} MB")
    if uploads:
        click.echo(f"{uploads} uploaded files deleted that had expired or never came whole")


def _put_right(repository: Any) -> None:
    """Reconcile; without storage only with what the leases say."""
    from cluster.errors import MantaError
    from cluster.reconcile import reconcile
    from cluster.storage import ArtifactStore, object_store

    try:
        store = object_store()
        store.check()
        reconcile(repository, ArtifactStore(store))
    except MantaError as error:
        repository.reconcile()
        print(f"warning: manifests were not looked at: {error}", file=sys.stderr)


def _told(run: RunRecord) -> str:
    if run.lease is not None:
        return f"held by {run.lease.holder}"
    return run.artifact or "" if run.state == "succeeded" else run.message or ""


def _whole(run: RunRecord) -> list[str]:
    fields = run.model_dump(mode="json", exclude={"owner", "lease"}, exclude_none=True)
    fields["owner"] = f"{run.owner.team}/{run.owner.key_id}"
    if run.lease is not None:
        fields["holder"] = f"{run.lease.holder} until {run.lease.expires_at:%Y-%m-%d %H:%M:%S} UTC"
    return [f"{name:<12} {value}" for name, value in fields.items()]
