"""One run of a job on the real S3 server: what is recorded, and what stands when recording fails."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import create_engine, make_url, text

from cluster.contracts import RunState
from cluster.errors import RefusedError, UnavailableError
from cluster.job import JobConfig, JobResult, start_run
from cluster.job.run import LEASE_S
from cluster.reconcile import reconcile
from cluster.runs import RunRepository
from cluster.settings import load_settings
from cluster.storage import ArtifactStore
from tests.conftest import forget_settings

pytestmark = pytest.mark.integration


@pytest.fixture
def runs(s3) -> RunRepository:
    return RunRepository(load_settings().database_url)


@pytest.fixture
def config() -> JobConfig:
    return JobConfig(name=f"job-{uuid.uuid4().hex[:8]}")


def make(config: JobConfig, meanwhile=lambda run_id: None) -> tuple[JobResult, str | None]:
    with start_run("make", "thing", config, inputs=[], code_epoch=1) as job:
        if job.done:
            return job.result(job.done), None
        job.attempt.write("thing.txt", b"made")
        meanwhile(job.run_id)
        return job.result(job.commit(counts={"things": 1}, summary={"things": 1})), job.run_id


def test_a_run_is_recorded_with_its_log_and_found_the_second_time(runs, config, monkeypatch) -> None:
    told = {
        "runtime_env": {"working_dir": "gcs://_ray_pkg_0.zip"},
        "metadata": {"job_submission_id": "job-7"},
    }
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(told))
    result, run_id = make(config)
    record = runs.get(run_id)
    assert (record.state, record.artifact, record.log_address) == (
        RunState.SUCCEEDED,
        result.artifact,
        "job-7",
    )
    again, _ = make(config)
    assert again.reused
    assert again.artifact == result.artifact


def test_a_failed_run_says_why_and_leaves_nothing_visible(runs, config, artifacts: ArtifactStore) -> None:
    ids = []

    def fail(run_id: str) -> None:
        ids.append(run_id)
        raise RefusedError("the gate said no.")

    with pytest.raises(RefusedError, match="the gate said no"):
        make(config, fail)
    record = runs.get(ids[0])
    assert (record.state, record.message) == (RunState.FAILED, "the gate said no.")
    assert artifacts.latest("default", "thing", config.name) is None


def test_what_is_committed_stands_though_the_run_was_taken_for_lost(
    runs, config, artifacts: ArtifactStore, capsys
) -> None:
    result, run_id = make(config, lambda _: runs.reconcile(datetime.now(UTC) + timedelta(hours=1)))
    assert "is not recorded" not in capsys.readouterr().err
    assert runs.get(run_id).state is RunState.SUCCEEDED
    assert str(artifacts.open(result.artifact).ref) == result.artifact


@pytest.mark.parametrize("silent_for_long", [False, True])
def test_without_the_database_a_commit_stands_unless_the_run_was_silent_for_long(
    s3, config, artifacts: ArtifactStore, postgres, postgres_url, monkeypatch, silent_for_long
) -> None:
    """Then `manta gc` may have taken a part of its files, and nobody is there to say so."""
    monkeypatch.setenv("MANTA_DATABASE__URL", postgres_url)
    forget_settings()
    if silent_for_long:
        monkeypatch.setattr("cluster.job.run.COLLECTED_AFTER_S", 0.0)

    def away(_: str) -> None:
        engine = create_engine(postgres.format(database="postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"DROP DATABASE {make_url(postgres_url).database} WITH (FORCE)"))
        engine.dispose()

    try:
        if silent_for_long:
            with pytest.raises(UnavailableError, match="does not answer"):
                make(config, away)
            assert artifacts.latest("default", "thing", config.name) is None
        else:
            assert artifacts.open(make(config, away)[0].artifact).counts == {"things": 1}
    finally:
        monkeypatch.undo()
        forget_settings()


_KILLED = """
import os, signal, sys
from cluster.job import JobConfig, start_run
with start_run("make", "thing", JobConfig(name=sys.argv[1]), inputs=[], code_epoch=1) as job:
    job.attempt.write("thing.txt", b"made")
    if sys.argv[2] == "after":
        job.commit(counts={"things": 1}, summary={"things": 1})
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(config: JobConfig, when: str) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, config.name, when], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_run_killed_after_its_commit_is_found_to_have_succeeded(runs, config) -> None:
    killed(config, "after")
    mine = [run for run in runs.list(verb="make") if f"/{config.name}/" in str(run.artifact)]
    (record,) = [run for run in mine if run.state is RunState.RUNNING]
    result, run_id = make(config)
    assert (result.reused, run_id) == (True, None)
    found = runs.get(record.id)
    assert (found.state, found.artifact, found.lease) == (RunState.SUCCEEDED, result.artifact, None)


def test_whoever_starts_next_finds_killed_runs(runs, config, artifacts: ArtifactStore, capsys) -> None:
    other = config.model_copy(update={"name": f"{config.name}-b"})
    killed(config, "before")
    killed(other, "after")
    later = datetime.now(UTC) + timedelta(seconds=LEASE_S + 1)
    found = reconcile(runs, artifacts, later)
    mine = {run.artifact.split("/")[2]: run.state for run in [*found.lost, *found.settled]}
    assert mine[config.name] is RunState.LOST
    assert mine[other.name] is RunState.SUCCEEDED
    result, run_id = make(config)
    assert not result.reused
    assert run_id.endswith("-2")
