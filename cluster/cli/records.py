"""``manta usage`` and ``manta erase``: what records of requests tell, and what they must forget."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from cluster.cli.duration import Duration

_json = click.option("--json", "as_json", is_flag=True, help="One JSON document instead of lines.")
_FIRST = datetime(1970, 1, 1, tzinfo=UTC)


class Moment(click.ParamType[datetime]):
    """A point in time: a day such as 2026-11-01, a time such as 2026-11-01T12:30Z, or 7d: so long ago.

    Without a zone it is UTC.
    """

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Read it, or fail with a sentence."""
        if isinstance(value, datetime):
            return value
        if value[-1:] in ("s", "m", "h", "d") and value[:-1].isdigit():
            ago: timedelta = Duration().convert(value, param, ctx)
            return datetime.now(UTC) - ago
        try:
            found = datetime.fromisoformat(value)
            found = found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no time: write a day (2026-11-01), or 7d for so long ago", param, ctx)
        if found < _FIRST:
            self.fail(f"{value!r} is too long ago: there are no records from before 1970", param, ctx)
        return found


@click.command()
@click.option("--key", "key_id", metavar="ID", help="Of this key only.")
@click.option("--team", help="Of this team only.")
@click.option("--since", type=Moment(), help="From this time on: 2026-11-01, or 7d for so long ago.")
@click.option("--until", type=Moment(), help="Before this time: 2026-12-01, or 1d for so long ago.")
@click.option(
    "--by",
    type=click.Choice(["key", "model", "day"]),
    default="key",
    show_default=True,
    help="One line for each of these.",
)
@_json
def usage(
    key_id: str | None,
    team: str | None,
    since: datetime | None,
    until: datetime | None,
    by: Any,
    as_json: bool,
) -> None:
    """Report requests, tokens and cost from the audit, and trainings that succeeded.

    Times are UTC; a request or a training counts when it came. What happened in the last minutes may not be
    in it yet.
    """
    from cluster.records.usage import usage as report
    from cluster.settings import load_settings
    from cluster.storage import object_store
    from cluster.tuning import TuningRepository

    jobs = TuningRepository(load_settings().database_url)
    found = report(object_store(), jobs, by, key=key_id, team=team, since=since, until=until)
    documents = [line.document(by) for line in found]
    if as_json:
        click.echo(json.dumps(documents))
        return
    if not documents:
        click.echo("no requests and no trainings on record")
        return
    shown = [[*documents[0]], *([_shown(value) for value in line.values()] for line in documents)]
    groups = len(found[0].group)
    widths = [max(len(row[column]) for row in shown) for column in range(len(shown[0]))]
    for row in shown:
        cells = [
            cell.ljust(width) if column < groups else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6f}" if isinstance(value, float) else str(value)


@click.command()
@click.option("--key", "key_id", metavar="ID", help="Erase this key.")
@click.option("--user", metavar="ID", help="Erase this end user, as the team's requests named it.")
@click.option("--team", help="The end user's team; MANTA_TEAM if absent.")
@click.option("--dry-run", is_flag=True, help="Print what would be erased, and change nothing.")
@_json
def erase(key_id: str | None, user: str | None, team: str | None, dry_run: bool, as_json: bool) -> None:
    """Take a key or an end user out of all records, or, with neither, apply earlier erasures again.

    Texts, comments and names go; times, tokens and costs stay, under a pseudonym. With a key go its files:
    uploads, what batches and fine-tuning jobs made for it, and the copies that these read. What gateways have
    not shipped yet is erased by the next run: repeat it after some minutes, and revoke the key before.
    """
    from cluster.records.erasure import Eraser
    from cluster.settings import load_settings
    from cluster.storage import object_store

    if key_id and user:
        raise click.UsageError("name a --key or a --user, not both")
    if team and not user:
        raise click.UsageError("--team belongs to --user: a key's id is known without")
    settings = load_settings()
    eraser = Eraser(object_store(), settings.principal, settings.database_url)
    if key_id:
        done = eraser.erase("key", key_id, settings.team, dry_run=dry_run)
    elif user:
        done = eraser.erase("user", user, team or settings.team, dry_run=dry_run)
    else:
        done = eraser.again(dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(asdict(done) | {"dry_run": dry_run}))
        return
    words = ", ".join(f"{count} of {name}" for name, count in sorted(done.rows.items())) or "none"
    verb = "would be erased" if dry_run else "erased"
    click.echo(f"rows {verb}: {words}; in {done.files} files")
    click.echo(f"objects of /v1/files and copies of them {verb}: {done.objects or 'none'}")
    for names, what in (
        (
            done.under_way,
            "under way, with copies of their own: revoke the key, and erase again once they ended",
        ),
        (done.models, "trained on such files, which deleting these does not undo: delete the models, too"),
        (done.files_with_user, "files whose lines name the user, or that were made of such: delete them"),
    ):
        if names:
            click.echo(f"{what}: {', '.join(names)}")
