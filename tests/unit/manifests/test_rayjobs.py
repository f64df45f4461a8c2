"""The RayJobs: each runs a verb that there is, on a cluster that there is, with arguments that it takes."""

from __future__ import annotations

import copy
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.unit.manifests.documents import Json, of_kind, put
from tests.unit.manifests.kubectl import KUBERNETES, Kubectl
from tests.unit.manifests.operator import operator_problems
from tests.unit.manifests.pods import secret_problems
from tests.unit.manifests.schemas import schema_problems

ROOT = Path(__file__).parents[3]
FILES = sorted((KUBERNETES / "jobs").glob("*.yaml"))


def problems(job: Json) -> list[str]:
    return list(schema_problems(job)) or [*operator_problems(job), *secret_problems(job)]


def read(name: str) -> Json:
    job: Json = yaml.safe_load((KUBERNETES / "jobs" / f"{name}.yaml").read_text())
    return job


def dry_run(entrypoint: str) -> subprocess.CompletedProcess[str]:
    """What the verb says to its arguments; it prints its whole configuration and stops."""
    _, directory, _, python, *words = shlex.split(entrypoint)
    assert (directory, python) == ("/opt/manta", "python")  # As cluster/Dockerfile has it.
    environment = {**os.environ, "MANTA_PROFILE": "cluster"}
    command = [sys.executable, *words, "--dry-run"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_job_is_sound_and_its_verb_takes_the_arguments(file: Path, kubectl: Kubectl) -> None:
    job = read(file.stem)
    assert problems(job) == []
    assert f"-m jobs.{file.stem} " in job["spec"]["entrypoint"]
    clusters = kubectl.kustomize(KUBERNETES / "overlays" / "prod")
    selected = {"ray.io/cluster": of_kind(clusters, "RayCluster")["metadata"]["name"]}
    assert job["spec"]["clusterSelector"] == selected
    done = dry_run(job["spec"]["entrypoint"])
    assert done.returncode == 0, done.stderr


def test_every_verb_of_the_demo_has_its_job() -> None:
    assert {file.stem for file in FILES} >= {
        "preprocess",
        "finetune",
        "evaluate",
        "promote",
        "batch_inference",
    }


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [("jobs.finetune", "jobs.fine_tune", "fine_tune"), ("--num_workers", "--workers", "--workers")],
)
def test_a_wrong_entrypoint_is_named(old: str, new: str, said: str) -> None:
    done = dry_run(read("finetune")["spec"]["entrypoint"].replace(old, new))
    assert done.returncode != 0
    assert said in done.stderr


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("spec.submissionMode", "HttpMode", "submissionMode: 'HttpMode' is not one of"),
        ("spec.entryPoint", "python", "'entryPoint' was unexpected"),
        (
            "spec.deletionStrategy.deletionRules.0.condition.jobDeploymentStatus",
            "Failed",
            "is valid under each",
        ),
        ("spec.deletionStrategy.deletionRules.0.policy", "DeleteCluster", "may not delete a cluster"),
        ("spec.backoffLimit", 2, "goes with neither backoffLimit"),
        ("spec.ttlSecondsAfterFinished", 60, "deletionRules go with neither"),
        ("spec.clusterSelector", None, "one of clusterSelector and rayClusterSpec"),
        ("spec.activeDeadlineSeconds", 0, "activeDeadlineSeconds must be positive"),
        ("metadata.generateName", "Batch_", "must be a DNS label"),
    ],
)
def test_a_planted_mistake_is_named(path: str, value: object, said: str) -> None:
    job = copy.deepcopy(read("batch_inference"))
    put(path, value, job)
    found = problems(job)
    assert any(said in problem for problem in found), found
