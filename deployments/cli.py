"""``manta deploy``: thin over Serve's own configuration files and Ray's own client."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click

from cluster.errors import UsageError
from cluster.settings import load_settings
from deployments.plan import Plan, Say


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--wait/--no-wait", default=True, help="Wait until every application runs (the default).")
@click.option("--timeout-s", type=float, default=1200.0, show_default=True, help="Longest wait in seconds.")
@click.option("--dry-run", is_flag=True, help="Print what would be deployed or removed, and change nothing.")
@click.option("--delete", "delete", metavar="NAME", help="Remove the application of that name instead.")
@click.option(
    "--render",
    is_flag=True,
    help="Fetch the weights, and print what Serve gets as a RayService's serveConfigV2 (code: the image's).",
)
@click.option(
    "--publish-only",
    is_flag=True,
    help="Change no application: wait until a RayService has rolled FILE's out, and publish their routes.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of lines.")
def deploy(
    file: Path | None,
    wait: bool,
    timeout_s: float,
    dry_run: bool,
    delete: str | None,
    render: bool,
    publish_only: bool,
    as_json: bool,
) -> int:
    """Deploy the applications of a Serve configuration file.

    FILE has Serve's own schema (applications: name, route_prefix, import_path, args). Names of models are
    resolved to addresses once, here. Applications that the file does not name stay as they are.
    """
    from deployments.rollout import Serve, take_down, would_take_down

    started = time.monotonic()

    def say(text: str) -> None:
        if not as_json:
            click.echo(f"{time.monotonic() - started:6.1f} s  {text}", err=render)

    if (file is None) == (delete is None):
        raise click.UsageError("name a FILE to deploy, or an application with --delete")
    if render + publish_only + (delete is not None) > 1:
        raise click.UsageError("--render, --publish-only and --delete exclude each other")
    if publish_only and (dry_run or not wait):
        raise click.UsageError("--publish-only waits and publishes: leave --dry-run and --no-wait out")
    result: dict[str, object]
    if delete is not None and dry_run:
        result = {"would_delete": would_take_down(Serve.connect(), delete)}
    elif delete is not None:
        snapshot = take_down(Serve.connect(), delete, say)
        result = {"deleted": delete, "snapshot": snapshot.number}
    elif render:
        assert file is not None
        click.echo(_render(file, dry_run, as_json, say), nl=False)
        return 0
    elif publish_only:
        assert file is not None
        result = _publish(file, timeout_s, say)
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
    from deployments.package import upload_code, upload_jobs
    from deployments.plan import bundles, make_plan, read_file
    from deployments.rollout import Serve, roll_out

    content = read_file(file)
    serve = Serve.connect()
    root = find_working_dir()
    environment = read_runtime_env(root)
    code = None if dry_run else upload_code(root, environment.get("excludes") or [], object_store())
    plan = make_plan(content, code, environment.get("env_vars") or {}, say, dry_run=dry_run)
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
    upload_jobs(root, environment, object_store())
    snapshot, states = roll_out(serve, plan, wait_s=wait_s, say=say)
    return {"applications": states, "routes": routes, "snapshot": snapshot.number, "code": code}


def _render(file: Path, dry_run: bool, as_json: bool, say: Say) -> str:
    """Serve's configuration as a document. No cluster is asked."""
    import yaml

    serve = _plan_for_image(file, say, dry_run=dry_run).serve
    if as_json:
        return json.dumps(serve) + "\n"
    return f"# manta deploy {file} --render\n" + yaml.safe_dump(serve, sort_keys=False, width=110)


def _publish(file: Path, timeout_s: float, say: Say) -> dict[str, object]:
    from deployments.rollout import Serve, publish_routes

    serve = Serve.connect()
    plan = _plan_for_image(file, say)
    snapshot, states = publish_routes(serve, plan, timeout_s, say)
    routes = {route.model: route.targets[0].model for route in plan.routes}
    return {"applications": states, "routes": routes, "snapshot": snapshot.number}


def _plan_for_image(file: Path, say: Say, *, dry_run: bool = False) -> Plan:
    """What a file asks for where every node's image has the code."""
    from cluster.job.submit import find_working_dir, read_runtime_env
    from deployments.plan import make_plan, read_file

    if load_settings().profile == "local":
        raise UsageError("--render and --publish-only are for a cluster: set MANTA_PROFILE=cluster.")
    env_vars = read_runtime_env(find_working_dir()).get("env_vars") or {}
    return make_plan(read_file(file), None, env_vars, say, dry_run=dry_run)
