"""``manta deploy``: thin over Serve's own configuration files and Ray's own client."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click

from cluster.settings import load_settings
from deployments.plan import Say


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--wait/--no-wait", default=True, help="Wait until every application runs (the default).")
@click.option("--timeout-s", type=float, default=1200.0, show_default=True, help="Longest wait in seconds.")
@click.option("--dry-run", is_flag=True, help="Print what would be deployed or removed, and change nothing.")
@click.option("--delete", "delete", metavar="NAME", help="Remove the application of that name instead.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of lines.")
def deploy(
    file: Path | None, wait: bool, timeout_s: float, dry_run: bool, delete: str | None, as_json: bool
) -> int:
    """Deploy the applications of a Serve configuration file.

    FILE has Serve's own schema (applications: name, route_prefix, import_path, args). Names of models are
    resolved to addresses once, here. Applications that the file does not name stay as they are.
    """
    from deployments.rollout import Serve, take_down, would_take_down

    started = time.monotonic()

    def say(text: str) -> None:
        if not as_json:
            click.echo(f"{time.monotonic() - started:6.1f} s  {text}")

    if (file is None) == (delete is None):
        raise click.UsageError("name a FILE to deploy, or an application with --delete")
    result: dict[str, object]
    if delete is not None and dry_run:
        result = {"would_delete": would_take_down(Serve.connect(), delete)}
    elif delete is not None:
        snapshot = take_down(Serve.connect(), delete, say)
        result = {"deleted": delete, "snapshot": snapshot.number}
    else:
        assert file is not None
        result = _deploy(file, timeout_s if wait else None, dry_run, say)
    if as_json or dry_run:
        json.dump(result, sys.stdout, indent=None if as_json else 2)
        click.echo()
    return 0


def _deploy(file: Path, wait_s: float | None, dry_run: bool, say: Say) -> dict[str, object]:
    from cluster.job.preflight import preflight
    from cluster.job.submit import find_working_dir, read_runtime_env
    from cluster.storage import object_store
    from deployments.package import upload_code
    from deployments.plan import bundles, make_plan, read_file
    from deployments.rollout import Serve, roll_out

    content = read_file(file)
    serve = Serve.connect()
    root = find_working_dir()
    environment = read_runtime_env(root)
    code = None if dry_run else upload_code(root, environment.get("excludes") or [], object_store())
    plan = make_plan(content, code, environment.get("env_vars") or {}, say, dry_run=dry_run)
    if load_settings().profile == "local":  # A real cluster may scale up to what is asked for.
        others = [config for config in serve.configurations() if config["name"] not in plan.names]
        preflight(
            bundles([*others, *plan.applications]),
            asker="What would be deployed",
            remedy="lower num_replicas, or remove an application with `manta deploy --delete NAME`",
        )
    routes = {route.model: route.targets[0].model for route in plan.routes}
    if dry_run:
        return {
            "applications": plan.applications,
            "routes": routes,
            "policies": [p.name for p in plan.policies],
        }
    snapshot, states = roll_out(serve, plan, wait_s=wait_s, say=say)
    return {"applications": states, "routes": routes, "snapshot": snapshot.number, "code": code}
