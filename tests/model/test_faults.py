"""The kill matrix: each verb, killed at each point and run again, makes what an undisturbed run makes.

Some cells run always. All of them, with any seeds, by one command (about 20 minutes a seed)::

    python -m pytest tests/model/test_faults.py --kill-matrix --kill-seeds 1,2
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from cluster.alias_history import MoveState
from cluster.contracts import Manifest, RunState
from cluster.gc import Collector
from cluster.job.run import LEASE_S
from cluster.reconcile import reconcile
from cluster.registry import Registry
from cluster.runs import RunRepository
from cluster.settings import load_settings
from cluster.storage import ArtifactStore, ObjectStore, object_store
from tests.fault_proxy import FaultProxy, Trap
from tests.model.kills import POINTS, Verb, as_team, run_and_kill, started, trap_at
from tests.model.verbs import STEPS
from tests.ports import free_ports

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]

VERBS = ("preprocess", "finetune", "promote", "batch_inference", "evaluate")
#: What runs always: every point, and the verbs that start neither training nor an engine. test_finetune.py
#: kills a training in every run.
ALWAYS = {
    ("preprocess", "mid-write"),
    ("promote", "mid-write"),
    ("promote", "after"),
    ("batch_inference", "before"),
    ("batch_inference", "between"),
}
#: How storage fails under a running job; the second only with the whole matrix.
FAULTS = (("preprocess", "away"), ("finetune", "busy"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    whole = metafunc.config.getoption("--kill-matrix")
    if "fault" in metafunc.fixturenames:
        metafunc.parametrize(("verb", "fault"), FAULTS if whole else FAULTS[:1], indirect=["verb"])
    if "point" not in metafunc.fixturenames:
        return
    seeds = [int(seed) for seed in metafunc.config.getoption("--kill-seeds").split(",")]
    cells = [
        (verb, point, seed)
        for verb in VERBS
        for seed in seeds
        for point in POINTS
        if whole or (verb, point) in ALWAYS
    ]
    metafunc.parametrize(("verb", "point", "seed"), cells, indirect=["verb"])


def test_a_killed_job_run_again_makes_the_same(
    verb: Verb,
    point: str,
    seed: int,
    undisturbed: Callable[[Verb], Manifest],
    proxy: FaultProxy,
    team: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    name, done_once = "cell" + team[5:], point == "after"
    run_and_kill(verb, name, team, proxy, trap_at(point, verb, team, seed), tmp_path)

    artifacts = ArtifactStore(object_store())
    visible = list(artifacts.list(team))
    assert len(visible) == int(done_once), "of a killed job all is visible, or nothing"
    capfd.readouterr()
    with as_team(team):
        again = verb.run(name)
    assert again.reused is done_once
    manifest = artifacts.open(again.artifact)
    assert manifest.data_digest == undisturbed(verb).data_digest
    assert manifest.counts == undisturbed(verb).counts
    artifacts.verify(manifest)
    assert list(artifacts.list(team)) == [manifest]
    if verb.module == "finetune":
        went_on(artifacts, manifest, capfd.readouterr().out, killed_at=point)
    if verb.module == "promote":
        registered_once(name, manifest)
    recorded(manifest, done_once)
    nothing_else_stays(artifacts, manifest, team)


def went_on(artifacts: ArtifactStore, manifest: Manifest, said: str, killed_at: str) -> None:
    """Each step once, each row once an epoch (64 rows, 8 a step); what was trained is not trained again."""
    steps = [json.loads(line)["step"] for line in artifacts.read(manifest, "training.jsonl").splitlines()]
    assert steps == list(range(1, STEPS + 1))
    assert manifest.counts["samples_seen"] == STEPS * 8
    if killed_at == "mid-write":
        assert re.search(r"left a checkpoint at step \d+: going on from there", said)
    if killed_at == "between":
        assert f"left a checkpoint at step {STEPS}: going on from there" in said


def registered_once(name: str, manifest: Manifest) -> None:
    """One version, one move of the alias that is settled as confirmed, and the adapter whole."""
    registry, store = Registry(load_settings()), object_store()
    assert [model.ref.version for model in registry.versions(name)] == [1]
    assert registry.aliases(name) == {"champion": 1}
    confirmed = [move for move in registry.history(name) if move.state is MoveState.CONFIRMED]
    assert [move.to_version for move in confirmed] == [1]
    checkpoint = ArtifactStore(store).open(manifest.summary["checkpoint"])
    for file in checkpoint.files:
        if file.path.startswith("adapter/"):
            key = manifest.summary["adapter"] + file.path.removeprefix("adapter/")
            assert store.sha256(key) == (file.sha256, file.bytes)


def recorded(manifest: Manifest, done_once: bool) -> None:
    """The killed run is lost, or succeeded if its manifest stood; who made the artifact succeeded."""
    runs, store = RunRepository(load_settings().database_url), object_store()
    reconcile(runs, ArtifactStore(store), datetime.now(UTC) + timedelta(seconds=LEASE_S + 1))
    mine = [run for run in runs.list(limit=None) if run.artifact == str(manifest.ref)]
    assert [run.state for run in mine] == (
        [RunState.SUCCEEDED] if done_once else [RunState.SUCCEEDED, RunState.LOST]
    )
    assert mine[0].id == manifest.run_id


def nothing_else_stays(artifacts: ArtifactStore, manifest: Manifest, team: str) -> None:
    """After `manta gc` there is what the manifest names, and no more."""
    runs = RunRepository(load_settings().database_url)
    later = datetime.now(UTC) + timedelta(days=8)
    list(Collector(artifacts, runs, timedelta(days=7), now=later).collect(team))
    keys = {item.key for item in artifacts.store.list(f"{team}/") if "/adapters/" not in item.key}
    prefix = artifacts.prefix(manifest)
    assert keys == {f"{manifest.ref}/manifest.json", *(prefix + file.path for file in manifest.files)}
    assert list(artifacts.store.uploads(f"{team}/")) == []
    artifacts.verify(manifest)


# Parts that are lost while a job runs


def test_a_running_job_outlasts_storage_that_fails_for_a_while(
    verb: Verb,
    fault: str,
    undisturbed: Callable[[Verb], Manifest],
    proxy: FaultProxy,
    team: str,
    tmp_path: Path,
) -> None:
    """In mid-write: away for 30 s, or 503 for as long."""
    trap = trap_at("mid-write", verb, team, seed=1)
    trap.act = lambda: proxy.go_away(30) if fault == "away" else proxy.be_busy(30)
    proxy.trap(trap)
    # The default outlasts it, as tests/unit/test_storage_patience.py shows, where no machine stands still.
    with started(verb, "cell" + team[5:], team, proxy, tmp_path, MANTA_STORAGE__MAX_ATTEMPTS="40") as job:
        ended = job.wait(timeout=1200)
    log = (tmp_path / "job.log").read_text(errors="replace")
    assert ended == 0, log[-3000:]
    assert trap.sprung is not None
    assert fault == "away" or proxy.slowed > 0
    made_as_if_undisturbed(verb, undisturbed, team)


def test_a_job_whose_storage_stays_away_says_so_in_one_sentence_and_loses_nothing(
    make_verb: Callable[[str], Verb],
    undisturbed: Callable[[Verb], Manifest],
    proxy: FaultProxy,
    team: str,
    tmp_path: Path,
) -> None:
    verb = make_verb("batch_inference")
    trap = trap_at("mid-write", verb, team, seed=2)
    trap.act = lambda: proxy.go_away(3600)
    proxy.trap(trap)
    with started(verb, "cell" + team[5:], team, proxy, tmp_path, MANTA_STORAGE__MAX_ATTEMPTS="4") as job:
        assert job.wait(timeout=1200) == 1
    log = (tmp_path / "job.log").read_text(errors="replace")
    assert log.splitlines()[-1].startswith(f"error: {proxy.endpoint} does not answer for "), log[-3000:]
    assert "Traceback" not in log
    assert list(ArtifactStore(object_store()).list(team)) == []
    with as_team(team):
        verb.run("cell" + team[5:])
    made_as_if_undisturbed(verb, undisturbed, team)


def test_a_node_lost_in_the_middle_of_reading_costs_no_row(
    make_verb: Callable[[str], Verb], proxy: FaultProxy, team: str, tmp_path: Path, store: ObjectStore
) -> None:
    """A second raylet is killed with SIGKILL, its workers with it, while both nodes read the files."""
    count = 24
    for number in range(count):
        rows = "".join(f"text {number}-{row},{row % 2}\n" for row in range(50))
        store.put(f"{team}-raw/{number:02d}.csv", f"text,label\n{rows}".encode())
    plain = make_verb("preprocess")
    verb = replace(plain, fields={**plain.fields, "train": [store.uri(f"{team}-raw/*.csv")], "num_cpus": 1})
    with second_node(tmp_path / "node.log") as node:
        workers: list[psutil.Process] = []

        def kill_node() -> None:
            workers.extend(job_workers(node, proxy.endpoint))
            node.kill()

        # Fingerprinting reads each file once; the job's tasks read it again.
        gets = [0]

        def halfway(request) -> bool:
            gets[0] += request.method == "GET" and request.key.startswith(f"{team}-raw/")
            return gets[0] > count * 3 // 2

        trap = proxy.trap(Trap(halfway, "before", kill_node))
        with started(verb, "cell" + team[5:], team, proxy, tmp_path) as job:
            ended = job.wait(timeout=1200)
        log = (tmp_path / "job.log").read_text(errors="replace")
        assert ended == 0, log[-3000:]
        assert trap.sprung is not None
        assert workers, "none of the job's workers ran on the node that was lost"
    made = list(ArtifactStore(object_store()).list(team))
    calm = f"{team}-b"
    with as_team(calm):
        assert made[0].data_digest == object_digest(verb, "cell" + team[5:])


def test_a_key_that_is_denied_in_mid_read_is_told_in_one_sentence(
    make_verb: Callable[[str], Verb], proxy: FaultProxy, team: str, tmp_path: Path, store: ObjectStore
) -> None:
    for number in range(3):
        rows = "".join(f"text {number}-{row},{row % 2}\n" for row in range(50))
        store.put(f"{team}-raw/{number}.csv", f"text,label\n{rows}".encode())
    plain = make_verb("preprocess")
    verb = replace(plain, fields={**plain.fields, "train": [store.uri(f"{team}-raw/*.csv")]})
    gets = [0]

    def taken_back(request) -> bool:
        # Fingerprinting reads it once; the job's task reads it again.
        gets[0] += request.method == "GET" and request.key == f"{team}-raw/1.csv"
        return request.key == f"{team}-raw/1.csv" and gets[0] > 1

    proxy.deny(taken_back)
    with started(verb, "cell" + team[5:], team, proxy, tmp_path) as job:
        assert job.wait(timeout=1200) == 1
    log = (tmp_path / "job.log").read_text(errors="replace")
    assert f"{team}-raw/1.csv cannot be read" in log.splitlines()[-1], log[-3000:]
    assert "Traceback" not in log
    assert list(ArtifactStore(object_store()).list(team)) == []


def object_digest(verb: Verb, name: str) -> str:
    """Of what an undisturbed run makes of the same."""
    return ArtifactStore(object_store()).open(verb.run(name).artifact).data_digest


def made_as_if_undisturbed(verb: Verb, undisturbed: Callable[[Verb], Manifest], team: str) -> None:
    """One artifact, whole, and equal to what was made without a fault."""
    artifacts = ArtifactStore(object_store())
    (manifest,) = artifacts.list(team)
    assert manifest.data_digest == undisturbed(verb).data_digest
    artifacts.verify(manifest)
    nothing_else_stays(artifacts, manifest, team)


@contextmanager
def second_node(log: Path) -> Iterator[psutil.Process]:
    """A second raylet in the session's Ray; gives its process."""
    import ray
    from ray._common.utils import get_ray_address_file

    address = ray.get_runtime_context().gcs_address
    before = sum(node["Alive"] for node in ray.nodes())
    started = _join(address, log)
    try:
        deadline = time.monotonic() + 600
        while sum(node["Alive"] for node in ray.nodes()) <= before:
            if started.poll() is not None:
                # On a starved machine a raylet gives up when its agent is slow.
                started = _join(address, log)
            assert time.monotonic() < deadline, f"the second node did not start: {log.read_text()[-2000:]}"
            time.sleep(0.2)
        children = psutil.Process(started.pid).children(recursive=True)
        yield next(process for process in children if process.name() == "raylet")
    finally:
        for process in psutil.Process(started.pid).children(recursive=True) if started.poll() is None else ():
            process.kill()
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()
        # Killed, it leaves word of a cluster that the next `ray.init` would look for.
        Path(get_ray_address_file(None)).unlink(missing_ok=True)


def _join(address: str, log: Path) -> subprocess.Popen[bytes]:
    port = free_ports(2)
    with log.open("ab") as output:
        return subprocess.Popen(
            [
                *(str(Path(sys.executable).with_name("ray")), "start", "--block", f"--address={address}"),
                *(f"--dashboard-agent-listen-port={port}", f"--dashboard-agent-grpc-port={port + 1}"),
                *("--num-cpus=4", f"--object-store-memory={100 * 2**20}"),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def job_workers(raylet: psutil.Process, endpoint: str) -> list[psutil.Process]:
    """The raylet's workers that run for the job behind the proxy."""
    return [
        process
        for process in raylet.children(recursive=True)
        if process.environ().get("AWS_ENDPOINT_URL") == endpoint
    ]
