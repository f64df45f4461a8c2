"""The parts of the local cluster that need no Ray: ports, processes, secrets, environment, preflight."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.errors import AccessError, RefusedError, UnavailableError, UsageError
from cluster.job.preflight import preflight
from cluster.local import process
from cluster.local.credentials import Credentials
from cluster.local.environment import (
    client_environment,
    cluster_environment,
    export_environment,
    shell_lines,
)
from cluster.local.home import Home, ProcessRef, State
from cluster.local.ports import check_ports
from cluster.settings import Ports, Settings
from tests.ports import free_ports


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Home:
    from tests.conftest import forget_settings

    found = Home(tmp_path_factory.mktemp("h"))
    for name in list(os.environ):
        if name.startswith(("AWS_", "MANTA_", "MLFLOW_", "OPENAI_", "RAY_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MANTA_HOME", str(found.root))
    forget_settings()
    yield found
    forget_settings()


def free_plan(**changes: int) -> Ports:
    first = free_ports(61, also_at=(7 + 10_007,))
    names = ("gcs", "dashboard", "dashboard_agent", "dashboard_grpc", "client", "serve_http", "s3")
    plan = {name: first + number for number, name in enumerate(names)}
    plan |= {"s3_internal": first + 7, "ray_internal": first + 15}
    return Ports(**plan | {"worker_min": first + 21, "worker_max": first + 60} | changes)


# Ports


def test_free_ports_pass() -> None:
    check_ports(free_plan())


@pytest.mark.parametrize("name", ["gcs", "s3", "serve_http", "ray_internal", "s3_internal"])
def test_a_port_in_use_names_holder_and_setting(name: str) -> None:
    plan = free_plan()
    inside = {"ray_internal": 3, "s3_internal": 2}
    with socket.socket() as other:
        other.bind(("127.0.0.1", getattr(plan, name) + inside.get(name, 0)))
        other.listen()
        with pytest.raises(UnavailableError) as told:
            check_ports(plan)
    assert f"Port {other_port(plan, name, inside)} is in use by " in str(told.value)
    assert f"(pid {os.getpid()})" in str(told.value)
    assert f"MANTA_PORTS__{name.upper()} to another." in str(told.value)


def other_port(plan: Ports, name: str, inside: dict[str, int]) -> int:
    return getattr(plan, name) + inside.get(name, 0)


def test_a_part_that_runs_may_hold_its_port() -> None:
    plan = free_plan()
    with socket.socket() as other:
        other.bind(("127.0.0.1", plan.s3))
        other.listen()
        check_ports(plan, s3=False)


def test_overlapping_settings_are_named() -> None:
    plan = free_plan()
    with pytest.raises(UsageError, match="MANTA_PORTS__SERVE_HTTP and MANTA_PORTS__S3 both take port"):
        check_ports(plan.model_copy(update={"serve_http": plan.s3}))
    with pytest.raises(UsageError, match="MANTA_PORTS__WORKER_MIN and MANTA_PORTS__GCS both take port"):
        check_ports(plan.model_copy(update={"gcs": plan.worker_min + 5}))


def test_a_number_that_is_no_port() -> None:
    with pytest.raises(UsageError, match="MANTA_PORTS__GCS leads to 70000, which is no port"):
        check_ports(free_plan().model_copy(update={"gcs": 70_000}))


def test_too_small_a_worker_range() -> None:
    plan = free_plan()
    with pytest.raises(UnavailableError, match="Ray's workers need 32"):
        check_ports(plan.model_copy(update={"worker_max": plan.worker_min + 3}))


# Processes


def test_a_stranger_with_the_same_pid_is_not_found() -> None:
    own = process.ref_of(os.getpid())
    assert process.find(own) is not None
    assert process.find(ProcessRef(pid=own.pid, created=own.created - 10)) is None
    assert process.find(None) is None


def test_the_mark_finds_orphans_and_spares_others() -> None:
    mark = "test-" + os.urandom(4).hex()
    # The middle process ends at once: its child is an orphan in a session of its own.
    program = "import subprocess; subprocess.Popen(['sleep', '600'], start_new_session=True)"
    subprocess.run([sys.executable, "-c", program], env={**os.environ, process.MARK: mark}, check=True)
    with subprocess.Popen(["sleep", "600"]) as bystander:
        found = process.marked(mark)
        assert [item.name() for item in found] == ["sleep"]
        assert not process.end_marked(mark, limit_s=300)
        assert not process.marked(mark)
        assert bystander.poll() is None
        bystander.kill()


def test_a_process_that_ignores_sigterm_is_killed() -> None:
    program = (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as stubborn:
        assert stubborn.stdout is not None
        stubborn.stdout.readline()
        ref = process.ref_of(stubborn.pid)
        process.end(process.family([ref]), grace_s=0.2)
        assert process.find(ref) is None


# Secrets and state


def test_credentials_are_made_once_and_private(home: Home) -> None:
    assert Credentials.load(home) is None
    made = Credentials.load_or_create(home)
    assert Credentials.load(home) == made
    for file in (home.credentials, home.ray_token, home.openai_key):
        assert file.stat().st_mode & 0o077 == 0
    assert made.openai_key not in repr(made)
    assert made.ray_token not in repr(made)


def test_a_secret_that_others_can_read_is_refused(home: Home) -> None:
    Credentials.load_or_create(home)
    home.ray_token.chmod(0o644)
    with pytest.raises(AccessError, match=r"ray-token holds a secret .* run chmod 600"):
        Credentials.load(home)


def test_a_damaged_state_is_one_sentence(home: Home) -> None:
    home.state.write_text("{")
    with pytest.raises(UsageError, match=r"state\.json cannot be read"):
        State.load(home)


# Environment


def test_a_process_beside_the_cluster_finds_it(home: Home) -> None:
    credentials = Credentials.load_or_create(home)
    found: dict[str, str] = {}
    export_environment(found)
    assert found == client_environment(Settings(), credentials)
    assert found["RAY_ADDRESS"] == "127.0.0.1:6379"
    assert found["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:8265"
    assert found["OPENAI_BASE_URL"] == "http://127.0.0.1:8000/v1"


def test_nothing_is_exported_without_a_cluster(home: Home) -> None:
    found: dict[str, str] = {}
    export_environment(found)
    assert found == {}


def test_cloud_keys_do_not_go_to_the_local_storage(home: Home) -> None:
    credentials = Credentials.load_or_create(home)
    found = {"AWS_ACCESS_KEY_ID": "cloud", "AWS_SECRET_ACCESS_KEY": "cloud", "AWS_SESSION_TOKEN": "cloud"}
    export_environment(found)
    assert found["AWS_ACCESS_KEY_ID"] == credentials.s3.access_key
    assert "AWS_SESSION_TOKEN" not in found


def test_an_endpoint_of_the_users_own_keeps_its_keys(home: Home) -> None:
    Credentials.load_or_create(home)
    found = {"AWS_ENDPOINT_URL": "https://s3.example.com", "AWS_ACCESS_KEY_ID": "theirs"}
    export_environment(found)
    assert found["AWS_ACCESS_KEY_ID"] == "theirs"
    assert "AWS_SECRET_ACCESS_KEY" not in found


def test_the_local_token_does_not_go_to_another_cluster(home: Home) -> None:
    Credentials.load_or_create(home)
    found = {"RAY_API_SERVER_ADDRESS": "https://ray.example.com"}
    export_environment(found)
    assert not {"RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"} & found.keys()


def test_what_the_user_set_for_our_addresses_wins(home: Home) -> None:
    Credentials.load_or_create(home)
    found = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:8333",
        "AWS_SECRET_ACCESS_KEY": "wrong",
        "RAY_AUTH_TOKEN_PATH": "/other",
    }
    export_environment(found)
    assert found["AWS_SECRET_ACCESS_KEY"] == "wrong"
    assert found["RAY_AUTH_TOKEN_PATH"] == "/other"


def test_the_ports_in_use_win_over_the_defaults(home: Home) -> None:
    from datetime import UTC, datetime

    Credentials.load_or_create(home)
    State(instance="x", started_at=datetime.now(UTC), ports=Ports(dashboard=9265)).save(home)
    found: dict[str, str] = {}
    export_environment(found)
    assert found["MANTA_PORTS__DASHBOARD"] == "9265"


def test_the_cluster_gets_storage_and_mark_but_no_foreign_keys(home: Home) -> None:
    credentials = Credentials.load_or_create(home)
    shell = {"PATH": "/usr/bin", "AWS_PROFILE": "cloud", "OPENAI_API_KEY": "theirs", "RAY_ADDRESS": "x"}
    found = cluster_environment(Settings(), credentials, "mark", shell)
    assert found[process.MARK] == "mark"
    assert found["PATH"].split(os.pathsep) == [str(Path(sys.prefix) / "bin"), "/usr/bin"]
    assert not {"AWS_PROFILE", "OPENAI_API_KEY", "RAY_ADDRESS"} & found.keys()
    assert found["AWS_ENDPOINT_URL"] == "http://127.0.0.1:8333"
    assert found["RAY_USAGE_STATS_ENABLED"] == "0"


def test_shell_lines_survive_a_shell(home: Home) -> None:
    credentials = Credentials.load_or_create(home)
    lines = shell_lines(Settings(team="a"), credentials)
    program = f'{lines}\nprintf %s "$OPENAI_API_KEY $AWS_ENDPOINT_URL"'
    done = subprocess.run(["bash", "-eu"], input=program, capture_output=True, text=True, check=True)
    assert done.stdout == f"{credentials.openai_key} http://127.0.0.1:8333"


# Preflight


def test_a_plan_that_fits_passes() -> None:
    preflight({"CPU": 4, "GPU": 0}, nodes=[{"CPU": 4}])
    preflight([{"CPU": 0.5}] * 8, nodes=[{"CPU": 2}, {"CPU": 2}])


def test_too_many_cpus_are_refused_with_figures() -> None:
    with pytest.raises(RefusedError) as told:
        preflight({"CPU": 64}, asker="finetune", remedy="lower num_workers", nodes=[{"CPU": 4}])
    assert str(told.value).startswith(
        "finetune asks for 64 CPUs but the cluster has 4: lower num_workers, or raise MANTA_RAY__NUM_CPUS"
    )


def test_gpus_where_there_are_none() -> None:
    with pytest.raises(RefusedError, match="asks for 1 GPU but the cluster has 0: lower what it asks for"):
        preflight([{"CPU": 1, "GPU": 1}], nodes=[{"CPU": 4}])


def test_a_bundle_that_fits_on_no_single_node() -> None:
    with pytest.raises(RefusedError, match="asks for 3 CPUs on one node and no node has that"):
        preflight([{"CPU": 3}], nodes=[{"CPU": 2}, {"CPU": 2}])


def test_a_cluster_that_may_scale_up_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.conftest import forget_settings

    monkeypatch.setenv("MANTA_PORTS__DASHBOARD", "9")
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "RAY_DASHBOARD_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    try:
        forget_settings()
        with pytest.raises(UnavailableError):
            preflight({"GPU": 8})
        monkeypatch.setenv("MANTA_PROFILE", "cluster")
        forget_settings()
        preflight({"GPU": 8})
    finally:
        forget_settings()
