"""``manta schedule``: jobs that run again and again."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cluster.settings import load_settings

if TYPE_CHECKING:
    from cluster.schedule.config import Schedule
    from cluster.schedule.ledger import Ledger
    from cluster.schedule.ray_jobs import RayJobs

_json = click.option("--json", "as_json", is_flag=True, help="One JSON document instead of lines.")


def _file(command: Callable[..., Any]) -> Callable[..., Any]:
    """The two options that name the schedules."""
    file = click.option(
        "--file",
        type=click.Path(path_type=Path),
        help="The schedules; schedules.yaml of the working directory.",
    )
    working_dir = click.option(
        "--working-dir",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="The code that the jobs get.",
    )
    return file(working_dir(command))


@click.group(no_args_is_help=False)  # A missing command is one sentence, too.
def schedule() -> None:
    """Run jobs at set times.

    A YAML file names the schedules; `manta schedule start` holds them.
    """


@schedule.command()
@_file
def start(file: Path | None, working_dir: Path | None) -> None:
    """Hold the schedules until Ctrl-C or SIGTERM.

    Started twice, one leads and the other stands by: it takes over when the first has died or stopped. All
    that share a database need the same file: whoever leads forgets what its own does not name. A changed file
    is read at the next start.
    """
    from cluster.schedule.config import check_configurations
    from cluster.schedule.ray_jobs import RayJobs
    from cluster.schedule.scheduler import Scheduler

    schedules, root = _load(file, working_dir)
    check_configurations(schedules, root)
    scheduler = Scheduler(schedules, _ledger(), RayJobs(root), load_settings().schedule, say=_say)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        scheduler.start()
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        _say("stopping")
    finally:
        scheduler.stop()


@schedule.command(name="list")
@_file
@_json
def list_schedules(file: Path | None, working_dir: Path | None, as_json: bool) -> None:
    """Show the schedules with next and last tick."""
    schedules, _ = _load(file, working_dir)
    ledger = _ledger()
    now = datetime.now(UTC)
    rows = [_row(item, ledger, now) for item in schedules]
    leader = ledger.lease.holder()
    if as_json:
        click.echo(json.dumps({"leader": leader, "schedules": rows}))
        return
    for row in rows:
        last = row["last"]
        became = f"last {last['tick']} {last['state']}" if last else "no tick yet"
        following = "paused" if row["paused"] else f"next {row['next']}"
        click.echo(f"{row['name']:<24}{row['cron']:<20}{row['time_zone']:<20}{following:<28}{became}")
    click.echo(f"held by {leader}" if leader else "held by nobody: `manta schedule start` does")


@schedule.command()
@click.argument("name")
@_file
@_json
def run(name: str, file: Path | None, working_dir: Path | None, as_json: bool) -> None:
    """Submit a schedule's job now, whatever the clock says.

    It needs no scheduler, does not ask whether the job before it has ended, and works while the schedule is
    paused. If the cluster does not answer, whoever holds the schedules submits it later.
    """
    from cluster.errors import MantaError, UnavailableError
    from cluster.schedule.ledger import TickState, tick_of
    from cluster.schedule.ray_jobs import RayJobs

    found, root = _find(name, file, working_dir)
    ledger, now = _ledger(), datetime.now(UTC)
    # A whole second is the clock's.
    tick = tick_of(name, now.replace(microsecond=now.microsecond or 1), manual=True)
    ledger.record([tick])
    try:
        _submit(RayJobs(root), found, tick.submission_id)
    except UnavailableError as error:
        # Nobody knows whether the request came through, and the leader may be at it.
        ledger.settle(tick, TickState.PENDING, str(error))
        later = f"`manta schedule start` goes on with {tick.submission_id}"
        raise UnavailableError(f"{str(error).rstrip('.')}; {later}.") from None
    except MantaError as error:
        ledger.settle(tick, TickState.FAILED, str(error))
        raise
    ledger.settle(tick, TickState.SUBMITTED, None)
    click.echo(json.dumps({"submission_id": tick.submission_id}) if as_json else tick.submission_id)


@schedule.command()
@click.argument("name")
@_file
def pause(name: str, file: Path | None, working_dir: Path | None) -> None:
    """Hold a schedule back until it is resumed.

    The pause outlives the scheduler's restarts; a job that runs goes on, a tick that waits is given up.
    """
    found, _ = _find(name, file, working_dir)
    _ledger().set_paused(name, found.definition, datetime.now(UTC), paused=True)
    click.echo(f"{name} is paused: `manta schedule resume {name}` goes on with it")


@schedule.command()
@click.argument("name")
@_file
def resume(name: str, file: Path | None, working_dir: Path | None) -> None:
    """Go on with a paused schedule.

    What ticked meanwhile is not caught up.
    """
    found, _ = _find(name, file, working_dir)
    now = datetime.now(UTC)
    _ledger().set_paused(name, found.definition, now, paused=False)
    click.echo(f"{name} is on: its next tick is {_iso(found.when.after(now))}")


@schedule.command()
@click.argument("name")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Most ticks to show.")
@_file
@_json
def history(name: str, limit: int, file: Path | None, working_dir: Path | None, as_json: bool) -> None:
    """Show what became of a schedule's ticks.

    Newest first: submitted, skipped or failed, and why; what is pending waits for the cluster or its turn.
    How a submitted job went is Ray's to tell: `manta logs SUBMISSION_ID`.
    """
    _find(name, file, working_dir)
    ticks = _ledger().history(name, limit)
    if as_json:
        click.echo(json.dumps([tick.model_dump(mode="json") for tick in ticks]))
        return
    for tick in ticks:
        words = f"{_iso(tick.tick):<22}{tick.state:<11}{tick.submission_id}  {tick.message or ''}"
        click.echo(words.rstrip())


@schedule.command()
@click.argument("names", nargs=-1)
@click.option("--ray-cluster", required=True, help="Name of the RayCluster.")
@click.option("--image", required=True, help="An image with Ray whose working directory is the code.")
@click.option("--secret", help="Secret with the token as auth_token; the RayCluster's own if absent.")
@click.option("--namespace", help="Namespace of the RayCluster.")
@_file
def render(
    names: tuple[str, ...],
    ray_cluster: str,
    image: str,
    secret: str | None,
    namespace: str | None,
    file: Path | None,
    working_dir: Path | None,
) -> None:
    """Print the schedules as Kubernetes CronJobs.

    They are for `kubectl apply -f -`; Kubernetes then holds them instead of `manta schedule start`. Of a
    queue it keeps one tick waiting. A local time that clocks skip is not run, a repeated one runs twice.
    """
    from cluster.schedule.config import check_configurations, find_schedule
    from cluster.schedule.render import Target, to_yaml
    from cluster.schedule.render import render as make

    schedules, root = _load(file, working_dir)
    chosen = [find_schedule(schedules, name) for name in names] or schedules
    target = Target(ray_cluster=ray_cluster, image=image, secret=secret, namespace=namespace)
    documents = [make(item, root, target) for item in chosen]
    check_configurations(chosen, root)
    click.echo(to_yaml(documents), nl=False)


def _load(file: Path | None, working_dir: Path | None) -> tuple[tuple[Schedule, ...], Path]:
    from cluster.job.submit import find_working_dir
    from cluster.schedule.config import load_schedules

    root = (working_dir or find_working_dir()).absolute()
    return load_schedules(file or root / "schedules.yaml", root), root


def _find(name: str, file: Path | None, working_dir: Path | None) -> tuple[Schedule, Path]:
    from cluster.schedule.config import find_schedule

    schedules, root = _load(file, working_dir)
    return find_schedule(schedules, name), root


def _submit(jobs: RayJobs, item: Schedule, submission_id: str) -> None:
    """Submit; an answer that was lost is no failure if the job is there."""
    from cluster.errors import AccessError, UnavailableError

    try:
        jobs.submit(item, submission_id)
    except UnavailableError:
        with suppress(AccessError, UnavailableError):
            if jobs.known(submission_id):
                return
        raise


def _ledger() -> Ledger:
    from cluster.schedule.ledger import Ledger

    return Ledger(load_settings().database_url)


def _row(item: Schedule, ledger: Ledger, now: datetime) -> dict[str, Any]:
    standing = ledger.standing(item.name)
    last = ledger.history(item.name, 1)
    return {
        "name": item.name,
        "cron": item.cron,
        "time_zone": item.time_zone,
        "job": item.job,
        "paused": standing is not None and standing.paused,
        "next": _iso(item.when.after(now)),
        "last": {"tick": _iso(last[0].tick), "state": last[0].state, "message": last[0].message}
        if last
        else None,
    }


def _iso(moment: datetime | None) -> str:
    return "never" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _say(line: str) -> None:
    click.echo(f"{_iso(datetime.now(UTC))} {line}")
