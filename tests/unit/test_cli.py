"""The frame of `manta`: fast, lazy, one sentence for a mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.cli import cli, main

MANTA = str(Path(sys.executable).with_name("manta"))


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of `manta` in this process."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture
def empty_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    from tests.conftest import forget_settings

    monkeypatch.setenv("MANTA_HOME", str(tmp_path / "home"))
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "MANTA_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MANTA_PORTS__DASHBOARD", "9")
    forget_settings()
    yield tmp_path / "home"
    forget_settings()


def test_help_is_fast_and_loads_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from cluster.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'ray', 'boto3', 'torch', 'vllm', 'mlflow', 'sqlalchemy', 'pydantic', 'httpx'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Start the local cluster" in done.stdout


def test_commands_of_other_rooms_come_through_entry_points() -> None:
    names = cli().list_commands(None)  # type: ignore[arg-type]
    assert names[:6] == ["up", "down", "status", "env", "submit", "logs"]
    assert {"deploy", "demo"} <= set(names)


def test_an_unknown_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "fly")
    assert (status, out) == (2, "")
    assert err == "error: No such command 'fly': see `manta --help`.\n"


@pytest.mark.parametrize(
    "moment", ["0001-01-01", "0001-01-01T00:00+14:00", "9999-12-31T23:59-12:00", "1969-12-31", "soon"]
)
def test_a_time_that_no_record_can_have_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], empty_home: Path, moment: str
) -> None:
    status, _, said = run(capsys, "usage", "--since", moment)
    assert status == 2
    assert moment in said
    assert said.count("\n") == 1


def test_an_unknown_option_is_wrong_usage(capsys: pytest.CaptureFixture[str], empty_home: Path) -> None:
    status, out, err = run(capsys, "status", "--color", "--json")
    assert status == 2
    assert "--color" in err
    assert json.loads(out)["error"]["type"] == "UsageError"


def test_a_wrong_setting_is_one_sentence(
    capsys: pytest.CaptureFixture[str], empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MANTA_PORTS__GCS", "many")
    status, _, err = run(capsys, "up")
    assert status == 2
    assert err.startswith("error: settings: ports.gcs: ")
    assert not empty_home.exists()


def test_status_of_nothing_exits_1(capsys: pytest.CaptureFixture[str], empty_home: Path) -> None:
    status, out, _ = run(capsys, "status", "--json")
    found = json.loads(out)
    assert status == 1
    assert found["up"] is False
    assert {part["health"] for part in found["parts"]} == {"down", "absent"}
    assert not empty_home.exists()


def test_status_of_a_named_cluster_is_that_clusters(
    capsys: pytest.CaptureFixture[str], empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.2:9/")
    status, out, _ = run(capsys, "status", "--json")
    found = json.loads(out)
    assert (status, found["up"], found["home"]) == (1, False, None)
    assert [(part["name"], part["address"]) for part in found["parts"]] == [("ray", "http://127.0.0.2:9")]
    assert "does not answer" in found["parts"][0]["message"]


def test_env_of_nothing_is_one_sentence(capsys: pytest.CaptureFixture[str], empty_home: Path) -> None:
    status, out, err = run(capsys, "env")
    assert (status, out) == (1, "")
    assert err.endswith("start it with `manta up`.\n")


def test_down_of_nothing_succeeds(capsys: pytest.CaptureFixture[str], empty_home: Path) -> None:
    assert run(capsys, "down")[0] == 0


def test_an_unknown_verb_lists_the_known(
    capsys: pytest.CaptureFixture[str], empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "code"
    (code / "jobs").mkdir(parents=True)
    (code / "jobs" / "tidy.py").write_text("if __name__ == '__main__':\n    pass\n")
    (code / "jobs" / "rows.py").write_text("")
    (code / "runtime_env.yaml").write_text("{}")
    monkeypatch.chdir(code)
    status, _, err = run(capsys, "submit", "fly")
    assert status == 2
    assert "choose one of tidy." in err
    outside = tmp_path / "outside.yaml"
    outside.write_text("{}")
    status, _, err = run(capsys, "submit", "tidy", "--config", str(outside))
    assert status == 2
    assert "move it there" in err
    status, _, err = run(capsys, "submit", "tidy", "--config", "missing.yaml")
    assert (status, err) == (2, "error: The configuration file missing.yaml does not exist.\n")
    for fields in ((), ("--name", "my-data", "--lora.r=16")):  # Those are the job's, not ours.
        status, _, err = run(capsys, "submit", "tidy", *fields)
        assert status == 1
        assert err.endswith("does not answer: start it with `manta up`.\n")


def test_help_of_a_verb_lists_its_fields(
    capfd: pytest.CaptureFixture[str], empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    status, out, _ = run(capfd, "submit", "preprocess", "--help")
    assert status == 0
    assert "--split.test_fraction" in out
    status, _, err = run(capfd, "submit", "prepare", "--help")
    assert status == 2
    assert "There is no job 'prepare'" in err


def test_help_of_submit_is_its_own(capsys: pytest.CaptureFixture[str], empty_home: Path) -> None:
    status, out, _ = run(capsys, "submit", "--help")
    assert status == 0
    assert "--submission-id" in out
    status, _, err = run(capsys, "submit")
    assert (status, err) == (2, "error: Missing argument 'VERB': see `manta submit --help`.\n")


# With a cluster that others started


@pytest.fixture
def elsewhere(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MANTA_PROFILE=cluster with nothing named that the profile wants."""
    from tests.conftest import forget_settings

    for name in ("MANTA_DATABASE__URL", "MLFLOW_TRACKING_URI", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MANTA_PROFILE", "cluster")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nowhere")
    forget_settings()
    return empty_home


@pytest.mark.parametrize("command", [["up"], ["down"], ["env"], ["demo", "--fresh"]])
def test_what_is_for_the_local_cluster_leaves_another_alone(
    capsys: pytest.CaptureFixture[str], elsewhere: Path, command: list[str]
) -> None:
    status, out, err = run(capsys, *command)
    assert (status, out) == (2, "")
    assert "local" in err
    assert len(err.splitlines()) == 1
    assert not elsewhere.exists()


def test_status_says_what_the_environment_does_not_name(
    capsys: pytest.CaptureFixture[str], elsewhere: Path
) -> None:
    status, out, _ = run(capsys, "status", "--json")
    parts = {part["name"]: part for part in json.loads(out)["parts"]}
    assert status == 1
    assert {name: part["health"] for name, part in parts.items()} == {
        "storage": "down",
        "ray": "down",
        "registry": "down",
        "gateway": "absent",
    }
    for name, variable in (
        ("storage", "AWS_ENDPOINT_URL"),
        ("registry", "MANTA_DATABASE__URL"),
        ("gateway", "OPENAI_BASE_URL"),
    ):
        assert variable in parts[name]["message"]
    assert not elsewhere.exists()


def test_a_cluster_keeps_no_records_on_a_machines_own_disk(elsewhere: Path) -> None:
    from cluster.errors import UsageError
    from cluster.settings import load_settings

    with pytest.raises(UsageError, match="MANTA_DATABASE__URL is not set"):
        _ = load_settings().database_url
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_URI is not set"):
        _ = load_settings().tracking_uri
