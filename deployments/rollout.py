"""Carry a plan out on the cluster: change Serve's applications, wait, publish the routes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from cluster.errors import AccessError, NotFoundError, RefusedError, UnavailableError
from cluster.ray_api import RayApi
from cluster.settings import load_settings
from deployments.plan import GATEWAY, GUARDS, MODEL, Plan, Say, merge, with_routes

if TYPE_CHECKING:
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    from cluster.contracts import Snapshot
    from cluster.contracts.tuning import TuningRecord

_POLL_S = 1.0
#: After so many seconds of silence the state is said again: an engine takes minutes on a CPU.
_SILENCE_S = 30.0
_FAILED = ("DEPLOY_FAILED", "UNHEALTHY")


class Serve:
    """Serve on one cluster, by Ray's own client."""

    def __init__(self, client: ServeSubmissionClient) -> None:
        self._client = client

    @classmethod
    def connect(cls) -> Serve:
        """The cluster that the environment names. Raises UnavailableError or AccessError."""
        api = RayApi.from_environment(load_settings().ports.dashboard)
        api.version()
        from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

        return cls(ServeSubmissionClient(api.address))

    def applications(self) -> dict[str, Mapping[str, Any]]:
        """Every application by name: status, message, deployments and ``deployed_app_config``."""
        try:
            return dict(self._client.get_serve_details().get("applications") or {})
        except (RuntimeError, OSError) as error:
            raise UnavailableError(f"Serve does not answer: {_last_line(str(error))}") from None

    def configurations(self) -> list[dict[str, Any]]:
        """What was deployed by configuration; it must be sent again, or Serve takes it away."""
        return [
            dict(app["deployed_app_config"])
            for app in self.applications().values()
            if app.get("deployed_app_config")
        ]

    def put(self, configuration: dict[str, Any]) -> None:
        """Make these the applications of the cluster. Raises RefusedError."""
        try:
            self._client.deploy_applications(configuration)
        except OSError as error:
            raise UnavailableError(f"Serve does not answer: {_last_line(str(error))}") from None
        except RuntimeError as error:
            raise RefusedError(f"Serve refused the configuration: {_last_line(str(error))}") from None

    def wait(self, names: Iterable[str], timeout_s: float, say: Say) -> dict[str, str]:
        """Wait until all of ``names`` are RUNNING; their status by name.

        Raises RefusedError when one fails, with its reason; UnavailableError after ``timeout_s`` seconds.
        """
        wanted, told = list(names), dict[str, str]()
        said = time.monotonic()
        deadline = said + timeout_s
        while True:
            found = self.applications()
            for name in wanted:
                line = _progress(found.get(name) or {})
                changed = told.get(name) != line
                if changed or (time.monotonic() - said > _SILENCE_S and not line.startswith("running")):
                    say(f"{name}: {'' if changed else 'still '}{line}")
                    told[name], said = line, time.monotonic()
            states = {name: str((found.get(name) or {}).get("status", "NOT_STARTED")) for name in wanted}
            for name, state in states.items():
                if state in _FAILED:
                    raise RefusedError(f"Application {name} does not start: {_reason(found[name])}")
            if all(state == "RUNNING" for state in states.values()):
                return states
            if time.monotonic() > deadline:
                late = ", ".join(name for name, state in states.items() if state != "RUNNING")
                raise UnavailableError(
                    f"After {timeout_s:g} s not running yet: {late}; Serve goes on with it."
                )
            time.sleep(_POLL_S)

    def wait_gone(self, names: Iterable[str], timeout_s: float = 300.0) -> None:
        """Wait until none of ``names`` is there; what they have begun they may finish first."""
        left = set(names)
        deadline = time.monotonic() + timeout_s
        while left := left & self.applications().keys():
            if time.monotonic() > deadline:
                raise UnavailableError(f"After {timeout_s:g} s not gone yet: {', '.join(sorted(left))}.")
            time.sleep(_POLL_S)


def roll_out(serve: Serve, plan: Plan, *, wait_s: float | None, say: Say) -> tuple[Snapshot, dict[str, str]]:
    """Deploy ``plan`` and publish its routes; the snapshot, and the applications' status.

    Routes are published when their models run, so that no request meets one that does not; without waiting
    they are published at once, and requests wait for the model.

    :param wait_s: most seconds to wait; None not to wait.
    """
    _check_names(plan, say)
    serve.put(merge(plan, serve.configurations()))
    states = dict.fromkeys(plan.names, "DEPLOYING")
    if wait_s is not None:
        states = serve.wait(plan.names, wait_s, say)
    snapshot = _publish(plan, say)
    _drop_old_guards(serve, snapshot, plan, say)
    return snapshot, states


def _check_names(plan: Plan, say: Say) -> None:
    """A clash of names must show before anything changes, and so must models that go with their base.

    Raises RefusedError.
    """
    from cluster import snapshots

    if (now := snapshots.newest()) is not None:
        tuned, unfit = _returning(plan, say, {})
        kept = {route.model for route in with_routes(now, plan, tuned=tuned, unfit=unfit).routes}
        if gone := sorted(route.model for route in now.routes if route.base and route.model not in kept):
            say(f"what was tuned is not served any more on what is deployed now: {', '.join(gone)}")


def _publish(plan: Plan, say: Say) -> Snapshot:
    from cluster import snapshots

    returned, known = list[str](), dict[str, bool]()

    def change(current: Snapshot) -> Snapshot:
        # Asked anew each time: what a team deletes meanwhile must not come back. Of adapters storage is asked
        # once: there may be thousands, and who is long about it loses to other publishers again and again.
        tuned, unfit = _returning(plan, say, known)
        after = with_routes(current, plan, tuned=tuned, unfit=unfit)
        before = {route.model for route in current.routes}
        returned[:] = sorted(
            route.model for route in after.routes if route.base and route.model not in before
        )
        return after

    snapshot = snapshots.publish(change, by="manta deploy")
    if returned:
        say(f"what was tuned from these weights is served again: {', '.join(returned)}")
    say(f"published {', '.join(r.model for r in plan.routes) or 'no model'} in snapshot {snapshot.number}")
    return snapshot


def _returning(plan: Plan, say: Say, known: dict[str, bool]) -> tuple[list[TuningRecord], set[str]]:
    """Tuned models that the plan's bases can serve, and names of those that they cannot; neither if those who
    know do not answer.
    """
    from deployments.tuning.returning import returning

    try:
        models = [app for app in plan.applications if app.get("import_path") == MODEL]
        return returning(plan.routes, models, known)
    except (UnavailableError, AccessError) as error:
        say(f"warning: what was tuned from these models comes back with the next deploy only: {error}")
        return [], set()


def publish_routes(serve: Serve, plan: Plan, timeout_s: float, say: Say) -> tuple[Snapshot, dict[str, str]]:
    """Publish the routes of applications that somebody else, a RayService, rolls out.

    Waits until all of them run as ``plan`` says; raises UnavailableError if after ``timeout_s`` seconds they
    do not, and RefusedError for one that fails or a clash of names.
    """
    _check_names(plan, say)
    deadline = time.monotonic() + timeout_s
    while other := _others(plan, serve.configurations()):
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"After {timeout_s:g} s {', '.join(other)} not deployed as the file says: is it rolled out?"
            )
        time.sleep(_POLL_S)
    states = serve.wait(plan.names, max(0.0, deadline - time.monotonic()), say)
    snapshot = _publish(plan, say)
    return snapshot, states


def _others(plan: Plan, deployed: Iterable[Mapping[str, Any]]) -> list[str]:
    """The plan's applications that are not deployed, or otherwise."""
    there = {config["name"]: (config["import_path"], config.get("args") or {}) for config in deployed}
    return [
        app["name"]
        for app in plan.applications
        if there.get(app["name"]) != (app["import_path"], app.get("args") or {})
    ]


def _drop_old_guards(serve: Serve, snapshot: Snapshot, plan: Plan, say: Say) -> None:
    """Take away the guards applications of policies that no gateway uses any more."""
    from deployments.guards import application_name

    used = {application_name(policy.digest) for policy in snapshot.policies}
    configurations = serve.configurations()
    old = [c["name"] for c in configurations if c["import_path"] == GUARDS and c["name"] not in used]
    if old:
        time.sleep(2 * _gateway_interval(configurations))
        kept = [config for config in configurations if config["name"] not in old]
        serve.put({**plan.serve, "applications": kept})
        serve.wait_gone(old)
        say(f"removed {', '.join(old)}, which no policy uses any more")


def take_down(serve: Serve, name: str, say: Say) -> Snapshot:
    """Remove an application and its routes. Raises NotFoundError if there is none of that name."""
    from cluster import snapshots

    configurations = _with(serve, name)
    nothing = Plan({"applications": []})
    # First nobody is sent there any more, then it goes; Serve lets it finish what it has begun.
    snapshot = snapshots.publish(lambda current: with_routes(current, nothing, [name]), by="manta deploy")
    time.sleep(2 * _gateway_interval(configurations))
    serve.put({"applications": [config for config in configurations if config["name"] != name]})
    serve.wait_gone([name])
    say(f"removed {name}; snapshot {snapshot.number}")
    return snapshot


def would_take_down(serve: Serve, name: str) -> dict[str, list[str]]:
    """What :func:`take_down` would remove, by kind. Changes nothing, and raises what it raises."""
    from cluster import snapshots

    _with(serve, name)
    gone: dict[str, list[str]] = {"applications": [name], "routes": [], "policies": []}
    if (now := snapshots.newest()) is not None:
        then = with_routes(now, Plan({"applications": []}), [name])
        gone["routes"] = sorted({r.model for r in now.routes} - {r.model for r in then.routes})
        gone["policies"] = sorted({p.name for p in now.policies} - {p.name for p in then.policies})
    return gone


def _with(serve: Serve, name: str) -> list[dict[str, Any]]:
    """All configurations, of which one has that name. Raises NotFoundError."""
    configurations = serve.configurations()
    if all(config["name"] != name for config in configurations):
        known = ", ".join(sorted(config["name"] for config in configurations)) or "none"
        raise NotFoundError(f"There is no application {name}; deployed are: {known}.")
    return configurations


def _gateway_interval(configurations: Iterable[Mapping[str, Any]]) -> float:
    from deployments.gateway.args import GatewayArgs

    usual = GatewayArgs().snapshot_interval_s
    intervals = [  # As it runs: it may have been deployed when other bounds held.
        float((config.get("args") or {}).get("snapshot_interval_s", usual))
        for config in configurations
        if config["import_path"] == GATEWAY
    ]
    return max(intervals, default=0.0)


def _progress(application: Mapping[str, Any]) -> str:
    deployments = application.get("deployments") or {}
    parts = [
        f"{name} {deployment['status'].lower()} "
        f"({sum(r['state'] == 'RUNNING' for r in deployment.get('replicas') or [])}"
        f"/{deployment.get('target_num_replicas', '?')})"
        for name, deployment in deployments.items()
    ]
    return " ".join([str(application.get("status", "NOT_STARTED")).lower(), *parts])


def _reason(application: Mapping[str, Any]) -> str:
    """The last line of a traceback is what went wrong; a deployment's own message is nearer to it."""
    messages = [
        deployment.get("message", "") for deployment in (application.get("deployments") or {}).values()
    ]
    for message in [*messages, application.get("message", "")]:
        for line in reversed((message or "").splitlines()):
            text = line.strip()
            if text and not text.startswith(("File ", "Traceback", "^", "~")):
                return text.removeprefix("cluster.errors.UsageError: ").rstrip(".") + "."
    return "see its logs in the dashboard."


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason was given."
