"""`manta schedule` on the real cluster: killed schedulers, a batch to S3, a rendered CronJob's command."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from cluster.job import submit as jobs
from cluster.settings import Settings
from cluster.storage import ArtifactStore, object_store
from tests.integration.conftest import MANTA, ROOT, LocalCluster

if TYPE_CHECKING:
    from tests.integration.serving import Served

pytestmark = [pytest.mark.integration, pytest.mark.slow]


class Schedulers:
    """Processes that hold a file of schedules; a killed one is found by a lease of seconds."""

    def __init__(self, cluster: LocalCluster, file: Path, root: Path = ROOT) -> None:
        timing = {"MANTA_SCHEDULE__LEASE_S": "6", "MANTA_SCHEDULE__RETRY_S": "1", "PYTHONPATH": str(ROOT)}
        self._environment = {**cluster.environment, **os.environ, **timing}
        self.cluster, self.file, self.root = cluster, file, root
        self._started: list[subprocess.Popen[str]] = []

    def start(self) -> subprocess.Popen[str]:
        """`manta schedule start`."""
        return self._start(MANTA, "schedule", "start", *self._named)

    def start_killed(self, moment: str) -> subprocess.Popen[str]:
        """One that is killed at its first submission, ``before`` it or ``after``."""
        module = "tests.integration.schedule_killed"
        return self._start(sys.executable, "-m", module, moment, str(self.file), str(self.root))

    def history(self, name: str) -> list[dict[str, Any]]:
        """A schedule's ticks, oldest first."""
        told = self.cluster.must("schedule", "history", name, "--limit", "1000", "--json", *self._named)
        return list(reversed(json.loads(told)))

    def end(self) -> None:
        """Kill what a test has left."""
        for process in self._started:
            process.kill()
            process.wait()

    @property
    def _named(self) -> list[str]:
        return ["--file", str(self.file), "--working-dir", str(self.root)]

    def _start(self, *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            words, env=self._environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._started.append(process)
        return process


@pytest.fixture
def hold(
    platform: Settings, platform_cluster: LocalCluster, tmp_path: Path
) -> Iterator[Callable[..., Schedulers]]:
    """Make schedulers of one schedule; whatever still runs at the end is killed."""
    made: list[Schedulers] = []

    def make(schedule: dict[str, Any], root: Path = ROOT) -> Schedulers:
        file = tmp_path / "schedules.yaml"
        file.write_text(yaml.safe_dump({"schedules": [schedule]}))
        made.append(Schedulers(platform_cluster, file, root))
        return made[-1]

    yield make
    for schedulers in made:
        schedulers.end()


def until_line(process: subprocess.Popen[str], text: str) -> str:
    """Read the process's lines until one has the text; the test's own timeout is the limit."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return line.strip()
    raise AssertionError(f"it ended without {text!r}: {''.join(lines)}")


@pytest.mark.timeout(1800)
def test_each_tick_fires_once_however_schedulers_are_killed(
    platform: Settings, hold: Callable[..., Schedulers]
) -> None:
    """Five schedulers, of which four die: as leader, beside a standby, before and after a submission."""
    job = {"job": "evaluate", "config": "jobs/configs/demo/evaluate.yaml", "arguments": ["--dry-run"]}
    beat = {"name": "beat", "cron": "*/10 * * * * *", "overlap": "queue", "misfire_grace_time": 3600, **job}
    schedulers = hold(beat)
    first = schedulers.start()
    until_line(first, "leading beat")
    standby = schedulers.start()
    until_line(standby, "standing by")
    until_line(first, "submitted")
    time.sleep(random.uniform(0, 8))
    first.kill()
    until_line(standby, "leading beat")
    until_line(standby, "submitted")
    standby.kill()
    broken = {}
    for moment in ("before", "after"):
        process = schedulers.start_killed(moment)
        broken[moment] = process.communicate()[0].strip()
        assert process.returncode == -signal.SIGKILL
        assert broken[moment].startswith("sched-beat-"), broken[moment]
    last = schedulers.start()
    until_line(last, f"{broken['after']} submitted")
    ticks = schedulers.history("beat")
    while any(tick["state"] == "pending" for tick in ticks):
        time.sleep(1)
        # What is due meanwhile is not waited for.
        known = {tick["tick"] for tick in ticks}
        ticks = [tick for tick in schedulers.history("beat") if tick["tick"] in known]
    last.terminate()
    last.communicate()
    assert last.returncode == 0

    assert {tick["state"] for tick in ticks} == {"submitted"}
    times = [datetime.fromisoformat(tick["tick"]) for tick in ticks]
    assert {later - tick for tick, later in pairwise(times)} == {timedelta(seconds=10)}
    ids = [tick["submission_id"] for tick in ticks]
    assert {broken["before"], broken["after"]} <= set(ids)
    for submission_id in ids:
        assert jobs.wait(submission_id).status == "SUCCEEDED"
        # It ran once: what it prints stands there once.
        assert jobs.logs(submission_id).count("checkpoint: latest:prompt-shield") == 1
    on_record = {tick["submission_id"] for tick in schedulers.history("beat") if tick["state"] == "submitted"}
    known = {str(job.submission_id) for job in jobs.connect().list_jobs()}
    assert {name for name in known if name.startswith("sched-beat-")} == on_record


@pytest.mark.timeout(900)
def test_a_scheduled_batch_writes_to_s3(
    platform: Settings, served: Served, hold: Callable[..., Schedulers], tmp_path: Path
) -> None:
    root = tmp_path / "code"
    for room in ("cluster", "validation", "jobs"):
        shutil.copytree(ROOT / room, root / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "runtime_env.yaml", root)
    store = object_store()
    store.put("raw/scheduled/prompts.csv", b"id,text\na,Hello there\nb,How do I boil an egg?\n")
    batch = {
        "name": "scheduled",
        "model": "tiny",
        "source": {
            "path": store.uri("raw/scheduled/prompts.csv"),
            "prompt_column": "text",
            "id_column": "id",
        },
        "sampling": {"max_tokens": 4},
    }
    (root / "batch.yaml").write_text(yaml.safe_dump(batch))
    label = {"name": "label", "cron": "*/5 * * * * *", "job": "batch_inference", "config": "batch.yaml"}
    schedulers = hold(label, root)
    process = schedulers.start()
    submission_id = until_line(process, "submitted").split()[1]
    process.terminate()
    process.communicate()
    assert process.returncode == 0

    ended = jobs.wait(submission_id)
    assert ended.status == "SUCCEEDED", ended.message
    artifacts = ArtifactStore(store)
    manifest = artifacts.latest(platform.team, "batch-output", "scheduled")
    assert manifest is not None
    assert manifest.counts["output"] == 2
    artifacts.verify(manifest)
    assert schedulers.history("label")[0]["state"] == "submitted"


@pytest.mark.timeout(900)
def test_a_rendered_cronjobs_command_submits_once(
    platform: Settings, platform_cluster: LocalCluster, hold: Callable[..., Schedulers]
) -> None:
    nightly = {
        "name": "nightly",
        "cron": "0 2 * * *",
        "job": "evaluate",
        "arguments": ["--dry-run", "--json"],
    }
    config = {"config": "jobs/configs/demo/evaluate.yaml"}
    schedulers = hold(nightly | config)
    words = ["--ray-cluster", "manta", "--image", "manta", "--file", str(schedulers.file)]
    document = yaml.safe_load(platform_cluster.must("schedule", "render", *words))
    [container] = document["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    tick = datetime.now(UTC).replace(second=0, microsecond=0)
    # Kubernetes' part: the job's name, and an address and a token that are this cluster's.
    environment = {**os.environ, "JOB_NAME": f"nightly-{int(tick.timestamp()) // 60}"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    for _ in range(2):  # A pod that is tried again.
        done = subprocess.run(container["command"], env=environment, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    submission_id = f"sched-nightly-{tick:%Y%m%dT%H%M%SZ}"
    assert jobs.status(submission_id) == "SUCCEEDED"
    assert jobs.logs(submission_id).count("checkpoint: latest:prompt-shield") == 1
