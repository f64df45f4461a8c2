"""`manta up`, `status`, `env`, `submit`, `logs`, `down`, as a user runs them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.contracts import Principal, RunState
from cluster.local.home import State
from cluster.runs import RunRepository
from tests.integration.conftest import MANTA, LocalCluster, local_cluster

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.ray]

RAY = str(Path(sys.executable).with_name("ray"))

_JOBS = {
    "hello": 'import sys\nprint("hello from the cluster")\nprint(\'{"artifact": "a", "n": 3}\')\n',
    "broken": 'import sys\nprint("error: The file x.csv is empty.", file=sys.stderr)\nsys.exit(1)\n',
    "bug": 'raise KeyError("lost")\n',
    "where": (
        "import json, os, shutil, sys\n"
        'names = [n for n in os.environ if n.startswith(("AWS_", "MANTA_", "MLFLOW_", "OPENAI_"))]\n'
        'print(json.dumps({"python": shutil.which("python"), "names": names, "args": sys.argv[1:]}))\n'
    ),
    "sleeper": (
        "import subprocess, time\n"
        'subprocess.Popen(["sleep", "600"], start_new_session=True)\n'
        'print("sleeping")\n'
        "time.sleep(600)\n"
    ),
    "store": (
        "from cluster.storage import object_store\n"
        'object_store().put("made/by-job", b"kept")\n'
        "print('{\"stored\": true}')\n"
    ),
}


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small working directory with jobs of its own."""
    root = tmp_path_factory.mktemp("code")
    (root / "jobs").mkdir()
    (root / "jobs" / "__init__.py").write_text("")
    for name, text in _JOBS.items():
        (root / "jobs" / f"{name}.py").write_text(text)
    (root / "runtime_env.yaml").write_text("excludes: [tests/]\nenv_vars: {PYTHONUNBUFFERED: '1'}\n")
    return root


@pytest.fixture
def home() -> Iterator[LocalCluster]:
    """A home of the test's own, with nothing started."""
    cluster = local_cluster()
    try:
        yield cluster
    finally:
        cluster.remove()


# What `up` makes


def test_every_part_is_healthy(platform_cluster: LocalCluster) -> None:
    done = platform_cluster.manta("status", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert found["up"] is True
    health = {part["name"]: part["health"] for part in found["parts"]}
    assert health | {"gateway": ""} == {
        "storage": "healthy",
        "ray": "healthy",
        "registry": "healthy",
        "gateway": "",
    }


def test_a_second_up_finds_everything(platform_cluster: LocalCluster) -> None:
    before = State.model_validate_json((platform_cluster.home / "state.json").read_bytes())
    lines = platform_cluster.must("up").splitlines()
    assert sum("running already" in line for line in lines) == 2
    assert State.model_validate_json((platform_cluster.home / "state.json").read_bytes()) == before


def test_whoever_asks_or_starts_finds_the_runs_of_a_lost_head(platform_cluster: LocalCluster) -> None:
    """Their leases have expired and nobody said how they ended."""
    runs = RunRepository(f"sqlite:///{platform_cluster.home / 'registry' / 'manta.db'}")
    owner = Principal(key_id="tester", team="default")
    lost = [runs.start("finetune", f"{number:016x}", owner, "head:1", lease_s=0).id for number in range(2)]
    platform_cluster.must("status")
    assert runs.get(lost[0]).state is RunState.LOST
    late = runs.start("finetune", "2" * 16, owner, "head:1", lease_s=0).id
    assert "runs      1 found lost, 0 found finished: see `manta runs`" in platform_cluster.must("up")
    told = platform_cluster.must("runs", "--state", "lost")
    assert all(run in told for run in (*lost, late))


def test_running_on_other_ports_than_asked_for_is_refused(platform_cluster: LocalCluster) -> None:
    done = platform_cluster.manta("up", MANTA_PORTS__CLIENT="9")
    assert done.returncode == 1
    assert "MANTA_PORTS__CLIENT says 9: run `manta down` first." in done.stderr


def test_env_gives_a_shell_all_it_needs(platform_cluster: LocalCluster, code: Path) -> None:
    line = (
        f'eval "$({MANTA} env)" && '
        '"$0" job submit --runtime-env runtime_env.yaml --working-dir . -- python -m jobs.where'
    )
    # A new shell knows MANTA_HOME and nothing else.
    environment = {
        name: value
        for name, value in platform_cluster.environment.items()
        if not name.startswith("MANTA_PORTS__")
    }
    done = subprocess.run(
        ["bash", "-c", line, RAY],
        env=environment,
        cwd=code,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert answer["python"] == str(Path(sys.executable).with_name("python"))
    assert {"AWS_ENDPOINT_URL", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "MANTA_HOME"} <= set(
        answer["names"]
    )
    assert "OPENAI_API_KEY" not in answer["names"]


# Jobs


def test_submit_follows_the_job_to_its_end(platform_cluster: LocalCluster, code: Path) -> None:
    done = platform_cluster.manta("submit", "hello", cwd=code)
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first.startswith("submitted ")
    assert "hello from the cluster" in done.stdout
    assert last.endswith("succeeded")
    again = platform_cluster.manta("logs", first.split()[1])
    assert "hello from the cluster" in again.stdout
    # A run's own id leads to the log of the job that it was.
    runs = RunRepository(f"sqlite:///{platform_cluster.home / 'registry' / 'manta.db'}")
    owner = Principal(key_id="tester", team="default")
    run = runs.start("hello", "3" * 16, owner, "head:1", lease_s=60, log_address=first.split()[1])
    runs.finish(run.id, 1, RunState.SUCCEEDED)
    assert platform_cluster.must("logs", run.id) == again.stdout


def test_submit_json_holds_the_result_and_passes_overrides(
    platform_cluster: LocalCluster, code: Path
) -> None:
    done = platform_cluster.manta("submit", "where", "--json", "--", "--rows", "a b", cwd=code)
    answer = json.loads(done.stdout)
    assert answer["status"] == "SUCCEEDED"
    assert answer["result"]["args"] == ["--rows", "a b", "--json"]


def test_a_failed_job_says_its_last_sentence(platform_cluster: LocalCluster, code: Path) -> None:
    done = platform_cluster.manta("submit", "broken", "--no-follow", cwd=code)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("failed: The file x.csv is empty.")
    bug = platform_cluster.manta("submit", "bug", "--json", cwd=code)
    assert bug.returncode == 1
    assert json.loads(bug.stdout)["message"] == "KeyError: 'lost'"


def test_no_wait_prints_the_id_which_is_taken_once(platform_cluster: LocalCluster, code: Path) -> None:
    words = ("submit", "hello", "--no-wait", "--submission-id", "hello-0123456789abcdef-1")
    done = platform_cluster.manta(*words, cwd=code)
    assert done.stdout == "hello-0123456789abcdef-1\n"
    twice = platform_cluster.manta(*words, cwd=code)
    assert twice.returncode == 1
    assert "already" in twice.stderr
    followed = platform_cluster.manta("logs", "--follow", "hello-0123456789abcdef-1")
    assert followed.returncode == 0
    assert "hello from the cluster" in followed.stdout


def test_an_unknown_job_is_one_sentence(platform_cluster: LocalCluster) -> None:
    done = platform_cluster.manta("logs", "nobody")
    assert done.returncode == 1
    assert done.stderr.startswith("error: There is no job 'nobody' on the cluster at http://127.0.0.1:")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "variables", [{"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_TOKEN_PATH": "/nowhere"}], ids=["wrong", "no-file"]
)
def test_a_wrong_token_is_one_sentence(
    platform_cluster: LocalCluster, code: Path, variables: dict[str, str]
) -> None:
    done = platform_cluster.manta("submit", "hello", cwd=code, **variables)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "token" in done.stderr.lower()
    assert "Traceback" not in done.stderr


# A life of its own


def test_a_whole_life(home: LocalCluster, code: Path) -> None:
    """One test, since a start of Ray takes long: start, mend, down with all that runs, up with the data."""
    assert home.manta("status").returncode == 1
    _two_ups_at_once(home)
    made = home.manta("submit", "store", "--json", cwd=code)
    assert made.returncode == 0, made.stderr
    _what_died_is_mended(home)
    _down_takes_orphans_along(home, code)
    home.must("up")
    program = 'from cluster.storage import object_store; print(object_store().get("made/by-job"))'
    read = subprocess.run(
        ["bash", "-c", f"eval \"$({MANTA} env)\" && '{sys.executable}' -c '{program}'"],
        env=dict(home.environment),
        capture_output=True,
        text=True,
    )
    assert read.stdout.strip() == "b'kept'", read.stderr


def _two_ups_at_once(home: LocalCluster) -> None:
    """The second is told about the first, which starts one cluster."""
    with subprocess.Popen(
        [MANTA, "up"], env=dict(home.environment), stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        first.stdout.readline()
        first.send_signal(signal.SIGSTOP)  # However long the second takes, this one is at work.
        try:
            second = home.manta("up")
        finally:
            first.send_signal(signal.SIGCONT)
        first.communicate(timeout=600)
    assert first.returncode == 0
    assert second.returncode == 1
    assert "is at work" in second.stderr


def _what_died_is_mended(home: LocalCluster) -> None:
    """Storage alone, then Ray alone; the other part stays as it is."""
    for program, dead, mended, stayed in (
        ("weed", "storage", "storage   healthy", "ray       running already"),
        ("raylet", "ray", "ray       healthy", "storage   running already"),
    ):
        next(process for process in home.processes() if process.name() == program).kill()
        assert {p["name"]: p["health"] for p in home.status()["parts"]}[dead] == "down"
        lines = home.must("up")
        assert mended in lines
        assert stayed in lines


def _down_takes_orphans_along(home: LocalCluster, code: Path) -> None:
    """A running job and what it left behind end too; a shell after `eval "$(manta env)"` does not."""
    with subprocess.Popen(["sleep", "600"], env={**home.environment, "RAY_AUTH_MODE": "token"}) as bystander:
        try:
            job = home.manta("submit", "sleeper", "--no-wait", cwd=code).stdout.strip()
            for _ in range(100):
                if "sleeping" in home.manta("logs", job).stdout:
                    break
            assert [running["id"] for running in home.status()["jobs"]] == [job]
            home.must("down")
            assert bystander.poll() is None
            assert {process.pid for process in home.processes()} == {bystander.pid}
        finally:
            bystander.kill()


# Refusals before anything starts


@pytest.mark.parametrize("name", ["DASHBOARD", "DASHBOARD_AGENT", "S3", "SERVE_HTTP"])
def test_a_port_in_use_is_named_before_anything_starts(home: LocalCluster, name: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", int(home.environment[f"MANTA_PORTS__{name}"])))
        other.listen()
        done = home.manta("up")
        port = other.getsockname()[1]
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: Port {port} is in use by ")
    assert f"(pid {os.getpid()})" in done.stderr
    assert f"MANTA_PORTS__{name}" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not home.processes()


def test_a_cluster_that_is_not_up_is_one_sentence(home: LocalCluster, code: Path) -> None:
    port = home.environment["MANTA_PORTS__DASHBOARD"]
    done = home.manta("submit", "hello", "--json", cwd=code)
    sentence = f"The cluster at http://127.0.0.1:{port} does not answer: start it with `manta up`."
    assert done.returncode == 1
    assert done.stderr == f"error: {sentence}\n"
    assert json.loads(done.stdout) == {"error": {"type": "UnavailableError", "message": sentence}}


def test_a_home_too_long_for_sockets_is_one_sentence(home: LocalCluster) -> None:
    long = Path(tempfile.mkdtemp(prefix="m", dir="/tmp")) / ("x" * 60)
    try:
        done = home.manta("up", MANTA_HOME=str(long))
        assert done.returncode == 2
        assert "set MANTA_HOME to a shorter path" in done.stderr
        assert not long.exists()
    finally:
        shutil.rmtree(long.parent)
