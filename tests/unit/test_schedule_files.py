"""The file of schedules and `manta schedule`: every mistake is one sentence, told before anything runs."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from cluster.schedule.config import check_configurations, load_schedules
from cluster.schedule.ledger import Ledger, Tick, TickState, tick_of
from cluster.settings import load_settings
from tests.unit.test_cli import empty_home, run
from tests.unit.test_job_submit import Answers, server

__all__ = ["empty_home", "server"]

#: A verb that needs nothing, with the platform's own way to read a configuration.
VERB = """
from pydantic import Field
from cluster.job import JobConfig, JobResult, command
class TidyConfig(JobConfig):
    rows: int = Field(1, ge=1, description="Rows.")
    note: str = Field("", description="A note.")
def run(config: TidyConfig) -> JobResult:
    return JobResult(artifact=config.name, reused=False, summary={})
if __name__ == "__main__":
    raise SystemExit(command(TidyConfig, run))
"""


@pytest.fixture
def code(tmp_path: Path, empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with one verb; the current one."""
    root = tmp_path / "code"
    (root / "jobs").mkdir(parents=True)
    (root / "jobs" / "__init__.py").write_text("")
    (root / "jobs" / "tidy.py").write_text(VERB)
    (root / "runtime_env.yaml").write_text("{}")
    (root / "tidy.yaml").write_text("name: tidy\n")
    monkeypatch.chdir(root)
    return root


def write(code: Path, *schedules: dict[str, Any], **more: Any) -> None:
    (code / "schedules.yaml").write_text(yaml.safe_dump({"schedules": list(schedules), **more}))


def tidy(**fields: Any) -> dict[str, Any]:
    return {"name": "nightly", "cron": "30 2 * * mon-fri", "job": "tidy", "config": "tidy.yaml", **fields}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"crom": "x"}, "schedules.0.crom is no known key (did you mean cron?)"),
        ({"cron": "0 2 * * 1"}, "'1' is no weekday: name it"),
        ({"cron": "0 25 * * *"}, "cron '0 25 * * *'"),
        ({"time_zone": "Mars/Olympus"}, "there is no time zone 'Mars/Olympus'"),
        ({"job": "fly"}, "Schedule nightly: There is no job 'fly'"),
        ({"config": "missing.yaml"}, "missing.yaml does not exist"),
        ({"config": "/etc/hostname"}, "is outside"),
        ({"overlap": "allow"}, "schedules.0.overlap: input should be 'skip' or 'queue'"),
        ({"catch_up": "all"}, "schedules.0.catch_up: input should be 'none' or 'latest'"),
        ({"name": "Night ly"}, "schedules.0.name"),
        ({"misfire_grace_time": 0}, "schedules.0.misfire_grace_time"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(
    code: Path, capsys: pytest.CaptureFixture[str], fields: dict[str, Any], sentence: str
) -> None:
    write(code, tidy(**fields))
    for words in (["start"], ["list"], ["pause", "nightly"]):
        status, out, err = run(capsys, "schedule", *words)
        assert (status, out) == (2, "")
        assert sentence in err
        assert err.count("\n") == 1


def test_mistakes_in_the_file_as_a_whole(code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told() -> str:
        status, _, err = run(capsys, "schedule", "list")
        assert status == 2
        assert err.count("\n") == 1
        return err

    assert "There is no file" in told()
    write(code)
    assert "schedules: tuple should have at least 1 item" in told()
    write(code, tidy(), tidy())
    assert "nightly is there twice" in told()
    write(code, tidy(), sheduler="x")
    assert "sheduler is no known key" in told()
    (code / "schedules.yaml").write_text("schedules: [")
    assert "is no YAML" in told()


def test_a_wrong_configuration_of_a_job_is_found_at_the_start(
    code: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (code / "tidy.yaml").write_text("name: tidy\nrows: none\n")
    write(code, tidy())
    status, _, err = run(capsys, "schedule", "start")
    assert status == 2
    assert err.startswith("error: Schedule nightly: python -m jobs.tidy configuration: rows: ")
    assert err.count("\n") == 1


def test_an_unknown_verb_and_an_unknown_schedule(code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(code, tidy())
    status, _, err = run(capsys, "schedule", "fly")
    assert (status, err) == (2, "error: No such command 'fly': see `manta schedule --help`.\n")
    status, _, err = run(capsys, "schedule", "history", "weekly")
    assert (status, err) == (1, "error: There is no schedule 'weekly': choose one of nightly.\n")


def test_list_pause_and_resume(code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(code, tidy(time_zone="Europe/Berlin"))

    def listed() -> dict[str, Any]:
        status, out, _ = run(capsys, "schedule", "list", "--json")
        assert status == 0
        assert json.loads(out)["leader"] is None
        [row] = json.loads(out)["schedules"]
        return row

    now = datetime.now(UTC)
    row = listed()
    following = datetime.fromisoformat(row["next"])
    assert following > now
    assert (following.minute, following.weekday() < 5, row["paused"], row["last"]) == (30, True, False, None)
    assert run(capsys, "schedule", "pause", "nightly")[0] == 0
    assert listed()["paused"] is True
    assert "paused" in run(capsys, "schedule", "list")[1]
    assert run(capsys, "schedule", "resume", "nightly")[0] == 0
    assert listed()["paused"] is False


def test_a_run_without_a_cluster_is_on_record_and_left_to_the_scheduler(
    code: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(code, tidy())
    status, _, err = run(capsys, "schedule", "run", "nightly")
    assert status == 1
    assert "does not answer" in err
    assert "`manta schedule start` goes on with sched-nightly-" in err
    assert err.count("\n") == 1
    status, out, _ = run(capsys, "schedule", "history", "nightly", "--json")
    [tick] = [Tick.model_validate(tick) for tick in json.loads(out)]
    assert (status, tick.state, tick.manual) == (0, TickState.PENDING, True)
    assert "does not answer" in str(tick.message)
    [kept] = Ledger(load_settings().database_url).history("nightly", 10)
    assert kept == tick


@pytest.mark.parametrize(
    ("submission", "known", "state"),
    [
        (None, "RUNNING", TickState.SUBMITTED),
        ((503, "Service Unavailable"), "SUCCEEDED", TickState.SUBMITTED),
        (None, None, TickState.PENDING),
        ((400, "ValueError: no such field"), None, TickState.FAILED),
    ],
)
def test_a_run_whose_answer_is_lost_is_no_failure(
    code: Path,
    server: type[Answers],
    capsys: pytest.CaptureFixture[str],
    submission: tuple[int, str] | None,
    known: str | None,
    state: TickState,
) -> None:
    write(code, tidy())
    server.submission, server.known = submission, known
    status, out, _ = run(capsys, "schedule", "run", "nightly")
    [tick] = Ledger(load_settings().database_url).history("nightly", 10)
    assert (tick.state, status) == (state, 0 if state is TickState.SUBMITTED else 1)
    assert out == (f"{tick.submission_id}\n" if state is TickState.SUBMITTED else "")


def test_the_schedule_in_the_readme_is_one(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    parts = (root / "README.md").read_text().split("```")
    [block] = [part for part in parts if part.startswith("yaml\nschedules:")]
    file = tmp_path / "schedules.yaml"
    file.write_text(block.removeprefix("yaml\n"))
    [found] = load_schedules(file, root)
    assert (found.job, found.overlap, found.catch_up) == ("batch_inference", "skip", "latest")
    check_configurations([found], root)


def rendered(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    options = ["--ray-cluster", "manta", "--image", "registry.example/manta:1"]
    status, out, err = run(capsys, "schedule", "render", *options, *words)
    assert (status, err) == (0, "")
    return list(yaml.safe_load_all(out))


def test_cronjobs_hold_to_kubernetes_schema(code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        code,
        tidy(time_zone="Europe/Berlin", arguments=["--note", "it's $HOME"]),
        tidy(name="quarterly", cron="0 0 1 jan,apr,jul,oct *", overlap="queue"),
        tidy(name="late", cron="0 * * * *", catch_up="latest", misfire_grace_time=5),
    )
    first, quarterly, late = rendered(capsys, "--namespace", "ml")
    for document in (first, quarterly, late):
        kubernetes_validate.validate(document, "1.37", strict=True)
        assert document["spec"]["concurrencyPolicy"] == "Forbid"
        assert document["metadata"]["namespace"] == "ml"
    spec = first["spec"]
    assert spec["schedule"] == "30 2 * * mon,tue,wed,thu,fri"
    assert (spec["timeZone"], spec["startingDeadlineSeconds"]) == ("Europe/Berlin", 60)
    assert quarterly["spec"]["startingDeadlineSeconds"] >= 90 * 86400
    assert late["spec"]["startingDeadlineSeconds"] == 3600
    [container] = spec["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    token = next(item for item in container["env"] if item["name"] == "RAY_AUTH_TOKEN")
    assert token["valueFrom"]["secretKeyRef"] == {"name": "manta", "key": "auth_token"}
    assert {"name": "RAY_API_SERVER_ADDRESS", "value": "http://manta-head-svc:8265"} in container["env"]
    [only] = rendered(capsys, "late", "--secret", "own")
    assert only["metadata"]["name"] == "late"
    assert "'name': 'own'" in str(only)


def submitted(
    document: dict[str, Any], tmp_path: Path, job_name: str, *answers: str
) -> tuple[int, list[str]]:
    """Run the pod's command with a `ray` that writes down what it is asked; exit status and calls."""
    ray = tmp_path / "bin" / "ray"
    ray.parent.mkdir(exist_ok=True)
    cases = "\n".join(answers)
    ray.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {tmp_path}/calls\ncase "$2" in\n{cases}\nesac\n')
    ray.chmod(0o755)
    (tmp_path / "calls").write_text("")
    [container] = document["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    path = f"{ray.parent}:{Path(sys.executable).parent}:/usr/bin:/bin"
    command = [word.replace("$$", "$") for word in container["command"]]  # As Kubernetes does.
    done = subprocess.run(command, env={"PATH": path, "JOB_NAME": job_name}, capture_output=True)
    return done.returncode, (tmp_path / "calls").read_text().splitlines()


def test_the_pod_submits_each_tick_once_and_tells_a_failed_job_from_a_failed_try(
    code: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write(code, tidy(arguments=["--note", "it's $HOME"]))
    [document] = rendered(capsys)
    tick = datetime(2026, 11, 22, 1, 30, tzinfo=UTC)
    name = f"nightly-{int(tick.timestamp()) // 60}"
    status, calls = submitted(document, tmp_path, name, "status) echo \"Job 'x' succeeded\";;")
    assert status == 0
    assert "--submission-id sched-nightly-20261122T013000Z" in calls[0]
    assert calls[0].endswith("-- python -m jobs.tidy --config tidy.yaml --note it's $HOME")
    assert tick_of("nightly", tick).submission_id in calls[-1]  # The scheduler's id for this tick.
    # A second try: Ray refuses the id, and knows the job.
    refused = "submit) exit 1;;"
    again = submitted(document, tmp_path, name, refused, "status) echo \"Job 'x' succeeded\";;")
    assert again[0] == 0
    assert submitted(document, tmp_path, name, "status) echo \"Job 'x' failed\";;")[0] == 42
    assert submitted(document, tmp_path, name, "status) echo \"Status for job 'x': RUNNING\";;")[0] == 1
    assert submitted(document, tmp_path, name, refused, "status) exit 1;;")[0] == 1
    status, calls = submitted(document, tmp_path, "nightly-by-hand", refused, "status) exit 1;;")
    assert "--submission-id sched-nightly-by-hand " in calls[0]


def test_kubernetes_has_no_seconds(code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(code, tidy(cron="*/10 * * * * *"))
    status, _, err = run(capsys, "schedule", "render", "--ray-cluster", "manta", "--image", "i")
    assert status == 2
    assert "Kubernetes has no seconds" in err
