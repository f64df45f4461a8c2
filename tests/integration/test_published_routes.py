"""Routes for applications that a RayService rolls out: published when they run as the file says, not before.

What Serve answers is put in here, state by state, for no test can hold a roll-out still; storage is real.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from cluster import snapshots
from cluster.contracts import Route, Target
from cluster.errors import RefusedError, UnavailableError
from deployments.plan import Plan
from deployments.rollout import Serve, publish_routes

pytestmark = pytest.mark.integration


class Rolling(Serve):
    """Serve while somebody else changes its applications; the last state stays."""

    def __init__(self, *states: Mapping[str, Mapping[str, Any]]) -> None:
        self._states = list(states)

    def applications(self) -> dict[str, Mapping[str, Any]]:
        return dict(self._states.pop(0) if len(self._states) > 1 else self._states[0])

    def put(self, configuration: dict[str, Any]) -> None:
        pytest.fail(f"changed Serve: {configuration}")


def application(status: str, **args: object) -> Mapping[str, Any]:
    config = {"name": "base", "import_path": "deployments.model:build", "args": args}
    return {"status": status, "message": "no GPU", "deployed_app_config": config}


@pytest.fixture
def plan(team: str) -> Plan:
    target = Target(application="base", deployment="model", model=team)
    route = Route(model=team, targets=[target], created_at=datetime.now(UTC))
    config = {"name": "base", "import_path": "deployments.model:build", "args": {"gather_ms": 20.0}}
    return Plan({"applications": [config]}, routes=[route])


def published(plan: Plan) -> bool:
    now = snapshots.newest()
    return now is not None and plan.routes[0].model in {route.model for route in now.routes}


@pytest.mark.usefixtures("store")
def test_routes_wait_until_the_new_application_runs(plan: Plan) -> None:
    old, new = {"gather_ms": 1.0}, {"gather_ms": 20.0}
    serve = Rolling(
        {},
        {"base": application("RUNNING", **old)},
        {"base": application("DEPLOYING", **new)},
        {"base": application("RUNNING", **new)},
    )
    told: list[str] = []
    snapshot, states = publish_routes(serve, plan, 60, told.append)
    assert states == {"base": "RUNNING"}
    assert snapshot == snapshots.newest()
    assert told[0].startswith("base: running")
    assert told[1].startswith(f"published {plan.routes[0].model} ")
    assert published(plan)


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("state", "error", "said"),
    [
        ({}, UnavailableError, "base not deployed as the file says"),
        (
            {"base": application("RUNNING", gather_ms=1.0)},
            UnavailableError,
            "base not deployed as the file says",
        ),
        ({"base": application("DEPLOYING", gather_ms=20.0)}, UnavailableError, "not running yet: base"),
        ({"base": application("DEPLOY_FAILED", gather_ms=20.0)}, RefusedError, "base does not start: no GPU"),
    ],
)
def test_nothing_is_published_for_what_does_not_run(
    plan: Plan, state: Mapping[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        publish_routes(Rolling(state), plan, 0, print)
    assert not published(plan)
