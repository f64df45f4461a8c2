"""``manta up | down | status | env``: the local cluster."""

from __future__ import annotations

import json
import sys

import click

from cluster.errors import UnavailableError, UsageError
from cluster.installed import missing_platform
from cluster.settings import Settings, load_settings

_json = click.option("--json", "as_json", is_flag=True, help="One JSON document instead of lines.")


def _local_settings() -> Settings:
    """The settings, if they are those of the local cluster. Raises UsageError."""
    settings = load_settings()
    if settings.profile != "local":
        raise UsageError(
            f"MANTA_PROFILE={settings.profile} names a cluster that something else starts and stops: "
            "unset it for the local one."
        )
    return settings


@click.command()
@_json
def up(as_json: bool) -> None:
    """Start the local cluster, or what is missing of it.

    Ray with token authentication, the S3 server and the registry's databases, all on loopback and with all
    state under MANTA_HOME (~/.manta). Ports are settings: MANTA_PORTS__DASHBOARD and so on.
    """
    from cluster.local.up import stopwatch
    from cluster.local.up import up as run

    settings = _local_settings()
    say = stopwatch(lambda line: click.echo(line, err=as_json))
    state = run(settings, say)
    ports = settings.ports
    if as_json:
        found = {
            "home": str(settings.state_dir),
            "dashboard": f"http://127.0.0.1:{ports.dashboard}",
            "storage": f"http://127.0.0.1:{ports.s3}",
            "gateway": f"http://127.0.0.1:{ports.serve_http}/v1",
            "started_at": state.started_at.isoformat(),
        }
        click.echo(json.dumps(found))
    else:
        say(f'up: eval "$(manta env)" for this shell; the dashboard is http://127.0.0.1:{ports.dashboard}')


@click.command()
@_json
def down(as_json: bool) -> None:
    """Stop exactly what `manta up` started; the data stays."""
    from cluster.local.down import down as run
    from cluster.local.up import stopwatch

    settings = _local_settings()
    run(settings, stopwatch(lambda line: click.echo(line, err=as_json)))
    if as_json:
        click.echo(json.dumps({"home": str(settings.state_dir), "up": False}))


@click.command()
@_json
def status(as_json: bool) -> int:
    """Show every part, running jobs and Serve's applications.

    Exit status 1 if a part is down."""
    settings = load_settings()
    if settings.profile == "local" or missing_platform():
        from cluster.local.status import status as ask
    else:
        from cluster.status import status as ask
    found = ask(settings)
    if as_json:
        click.echo(found.model_dump_json())
        return 0 if found.up else 1
    for part in found.parts:
        pid = f"pid {part.pid}" if part.pid else ""
        click.echo(f"{part.name:<10}{part.health:<9}{part.address:<32}{pid:<11}{part.message or ''}".rstrip())
    for job in found.jobs:
        click.echo(f"job       {job.status.lower():<8} {job.id}  {job.entrypoint}")
    for application in found.applications:
        click.echo(
            f"serve     {application.status.lower():<8} {application.name}  {application.message}".rstrip()
        )
    return 0 if found.up else 1


@click.command()
def env() -> None:
    """Print what a shell needs to reach the cluster.

    Use it by eval "$(manta env)"; the lines hold secrets.
    """
    from cluster.local.credentials import Credentials
    from cluster.local.environment import shell_lines
    from cluster.local.home import Home

    settings = _local_settings()
    credentials = Credentials.load(Home(settings.state_dir))
    if credentials is None:
        raise UnavailableError(f"There is no cluster under {settings.state_dir}: start it with `manta up`.")
    if sys.stdout.isatty():
        click.echo('# These lines hold secrets; use them by: eval "$(manta env)"', err=True)
    click.echo(shell_lines(settings, credentials))
