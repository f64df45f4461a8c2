"""Schedules as Kubernetes CronJobs that submit to a RayCluster, where no process of ours holds them.

What a CronJob cannot say as a schedule does: ``queue`` keeps one tick waiting and not all of them
(``Forbid`` with a deadline up to the next tick), and with ``catch_up: latest`` a tick that was held up by the
job before it starts late instead of being skipped, since both are one deadline. A local time that does not
exist when clocks go forward is not run, and one that exists twice is run twice. There is no record of ticks
but Kubernetes' events and jobs, and a tick is given up when the cluster is away for longer than its pod is
tried again (some ten minutes).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import UsageError
from cluster.job.submit import RUNTIME_ENV
from cluster.schedule.config import Schedule

#: The controller looks every ten seconds: with less it may never start a job.
_SHORTEST_DEADLINE_S = 10
_CONTAINER = "submit"
#: Exit status of a job that ran and failed; Kubernetes does not try it again, all else it does.
_JOB_FAILED = 42

# The job asks for a CPU, since a RayCluster's head is best left without any: it then runs on a worker. A pod
# that is tried again meets the job of the first try: Ray refuses its id, and it is followed instead.
_SCRIPT = """\
minutes=${{JOB_NAME##*-}}
case $minutes in
  *[!0-9]*) id=sched-$JOB_NAME ;;  # By hand: kubectl create job --from=cronjob/...
  *) id=sched-{name}-$(date -u -d "@$((minutes * 60))" +%Y%m%dT%H%M%SZ) ;;
esac
ray job submit --no-wait --submission-id "$id" --metadata-json {metadata} \\
  --entrypoint-num-cpus 1 --runtime-env {runtime_env} --working-dir . -- {command} \\
  || ray job status "$id" || exit 1
ray job logs --follow "$id"
case $(ray job status "$id") in
  *"' succeeded"*) ;;
  *"' failed"* | *"' was stopped"*) exit {failed} ;;
  *) exit 1 ;;
esac
"""


class Target(BaseModel):
    """Where the CronJobs live and what they reach."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ray_cluster: str = Field(description="Name of the RayCluster, whose head service is <name>-head-svc.")
    image: str = Field(description="An image with Ray whose working directory is the code.")
    secret: str | None = Field(
        None, description="Secret with the token as auth_token; the cluster's own if absent."
    )
    namespace: str | None = Field(None, description="Namespace; what kubectl is set to if absent.")


def render(schedule: Schedule, root: Path, target: Target) -> dict[str, Any]:
    """The CronJob of a schedule.

    Raises UsageError for a schedule with seconds, which Kubernetes does not have.
    """
    labels = {
        "app.kubernetes.io/name": "manta",
        "app.kubernetes.io/component": "schedule",
        "app.kubernetes.io/instance": schedule.name,
        "app.kubernetes.io/part-of": "manta",
        "app.kubernetes.io/managed-by": "manta",
    }
    place = {} if target.namespace is None else {"namespace": target.namespace}
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": schedule.name, **place, "labels": labels},
        "spec": {
            "schedule": _schedule(schedule),
            "timeZone": schedule.time_zone,
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": _deadline_s(schedule),
            "jobTemplate": {"metadata": {"labels": labels}, "spec": _job(schedule, root, target, labels)},
        },
    }


def to_yaml(documents: Sequence[dict[str, Any]]) -> str:
    """The documents as a person would write them: a script in lines, and nothing by reference."""

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def lines(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)

    Plain.add_representer(str, lines)
    return str(yaml.dump_all(documents, Dumper=Plain, sort_keys=False, width=1000))


def _job(schedule: Schedule, root: Path, target: Target, labels: dict[str, str]) -> dict[str, Any]:
    ended = {"containerName": _CONTAINER, "operator": "In", "values": [_JOB_FAILED]}
    return {
        "backoffLimit": 6,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": ended}]},
        "template": {
            "metadata": {"labels": labels},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": False,
                "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [_container(schedule, root, target)],
            },
        },
    }


def _container(schedule: Schedule, root: Path, target: Target) -> dict[str, Any]:
    token = {"name": target.secret or target.ray_cluster, "key": "auth_token"}
    # The job's name ends in its tick, in minutes since 1970.
    job_name = {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/job-name']"}}
    script = _SCRIPT.format(
        name=schedule.name,
        metadata=shlex.quote(json.dumps({"verb": schedule.job, "schedule": schedule.name})),
        runtime_env=RUNTIME_ENV,
        # Kubernetes puts variables for $(NAME), and makes one $ of two.
        command=shlex.join(schedule.entrypoint(root)).replace("$", "$$"),
        failed=_JOB_FAILED,
    )
    return {
        "name": _CONTAINER,
        "image": target.image,
        "command": ["/bin/sh", "-uc", script],
        "env": [
            {"name": "JOB_NAME", "valueFrom": job_name},
            {"name": "RAY_API_SERVER_ADDRESS", "value": f"http://{target.ray_cluster}-head-svc:8265"},
            {"name": "RAY_AUTH_MODE", "value": "token"},
            {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": token}},
        ],
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }


def _schedule(schedule: Schedule) -> str:
    fields = schedule.when.fields
    if fields["second"] != "0":
        raise UsageError(
            f"Schedule {schedule.name}: Kubernetes has no seconds, and cron {schedule.cron!r} names them:"
            " leave that field out, or let `manta schedule start` hold it."
        )
    return " ".join(fields[name] for name in ("minute", "hour", "day", "month", "day_of_week"))


def _deadline_s(schedule: Schedule) -> int:
    """How late a tick may start: until the next one replaces it, if a missed or waiting one is to run."""
    seconds = max(schedule.misfire_grace_time, _SHORTEST_DEADLINE_S)
    if schedule.catch_up == "none" and schedule.overlap == "skip":
        return seconds
    now = datetime.now(UTC)
    ticks = islice(schedule.when.between(now, now + timedelta(days=3660)), 20)
    return max(seconds, *(int((later - tick).total_seconds()) for tick, later in pairwise(ticks)), 0)
