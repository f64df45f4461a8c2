"""``manta submit | logs``: jobs, thin over Ray's job submission."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from cluster.errors import NotFoundError
from cluster.installed import missing_platform

_json = click.option("--json", "as_json", is_flag=True, help="One JSON document instead of lines.")


# Options that are not its own are fields of the job's configuration.
@click.command(context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("verb", required=False)
@click.option("--config", help="YAML file with the job's configuration, inside the working directory.")
@click.option("--wait/--no-wait", default=True, help="Wait until it has ended (the default).")
@click.option(
    "--follow/--no-follow", default=None, help="Print its log meanwhile; the default unless --json."
)
@click.option(
    "--working-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The code that it gets.",
)
@click.option("--submission-id", help="Name it; a second job with the same name is refused.")
@_json
@click.option("-h", "--help", "asked", is_flag=True, help="Show this, or the fields of VERB, and exit.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def submit(
    ctx: click.Context,
    verb: str | None,
    config: str | None,
    wait: bool,
    follow: bool | None,
    working_dir: Path | None,
    submission_id: str | None,
    as_json: bool,
    asked: bool,
    overrides: tuple[str, ...],
) -> int:
    """Submit a job and follow it to its end.

    manta submit VERB [--config FILE] [--field value ...]

    It is `ray job submit` of `python -m jobs.VERB` with runtime_env.yaml. Options that are not among those
    below go to the job, and so does all that stands behind `--`. Exit status 1 if the job fails.
    """
    if asked and verb is None:
        click.echo(ctx.get_help())
        return 0
    if verb is None:
        raise click.MissingParameter(ctx=ctx, param_type="argument", param_hint="'VERB'")
    from cluster.job import submit as jobs

    if asked:
        return jobs.show_help(verb, working_dir)
    made = jobs.submit(
        verb,
        config=config,
        overrides=overrides,
        as_json=as_json and wait,
        working_dir=working_dir,
        submission_id=submission_id,
    )
    if not wait:
        click.echo(json.dumps({"submission_id": made}) if as_json else made)
        return 0
    if not as_json:
        click.echo(f"submitted {made}")
    return _until_end(made, follow=not as_json if follow is None else follow, as_json=as_json)


@click.command()
@click.argument("job")
@click.option(
    "--follow", "-f", is_flag=True, help="Go on until the job has ended; exit status 1 if it fails."
)
def logs(job: str, follow: bool) -> int:
    """Print what a job has printed.

    JOB is Ray's submission id, or the id of a run as `manta runs` lists it.
    """
    try:
        return _print_log(job, follow)
    except NotFoundError:
        address = _log_address(job)
        if address is None:
            raise
    return _print_log(address, follow)


def _print_log(submission_id: str, follow: bool) -> int:
    from cluster.job import submit as jobs

    if follow:
        return _until_end(submission_id, follow=True, as_json=False)
    sys.stdout.write(jobs.logs(submission_id))
    return 0


def _log_address(run_id: str) -> str | None:
    """Ray's id of the job that a run was, if there is such a run and this environment has the database."""
    if missing_platform():
        return None
    from cluster.runs import RunRepository
    from cluster.settings import load_settings

    record = RunRepository(load_settings().database_url).find(run_id)
    return None if record is None else record.log_address


def _until_end(submission_id: str, *, follow: bool, as_json: bool) -> int:
    from cluster.job import submit as jobs

    # With --json standard output holds the one document.
    stream = sys.stderr if as_json else sys.stdout

    def write(piece: str) -> None:
        stream.write(piece)
        stream.flush()

    try:
        ended = jobs.wait(submission_id, on_log=write if follow else None)
    except KeyboardInterrupt:
        click.echo(f"\n{submission_id} goes on: `ray job stop {submission_id}` ends it.", err=True)
        return 130
    if as_json:
        click.echo(ended.model_dump_json())
    elif ended.status == "SUCCEEDED":
        click.echo(f"{submission_id} succeeded")
    if ended.status != "SUCCEEDED":
        click.echo(f"error: {submission_id} {ended.status.lower()}: {ended.message}", err=True)
        return 1
    return 0
