"""The demo's own parts: what it runs, what it shows of it, and how a failure is told."""

import sys
from pathlib import Path

import pytest

from cluster.demo import process
from cluster.demo.chats import masked, planned
from cluster.demo.record import StepRecord
from cluster.demo.settings import DemoSettings, load_demo_settings
from cluster.demo.steps import STEPS, Demo, Step, run_steps
from cluster.errors import MantaError, UnavailableError, UsageError
from cluster.settings import load_settings

JOB = """
import sys
print("(pid=12, ip=10.0.0.1) noise of a library")
print("[    1.0 s] step 1 of 2")
print("\\x1b[36m[    2.0 s] step 2 of 2\\x1b[0m")
print('{"artifact": "default/dataset/x/0123456789abcdef", "reused": false, "summary": {"rows": 3}}')
print("Job 'raysubmit_x' succeeded")
"""
FAILING = """
import sys
print("[    1.0 s] begun")
print("error: The file in.csv does not exist.", file=sys.stderr)
print("Job 'raysubmit_x' failed")
sys.exit(1)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MANTA_HOME", str(tmp_path))
    load_settings.cache_clear()
    yield tmp_path
    load_settings.cache_clear()


def test_a_jobs_own_lines_are_shown_its_result_read_and_everything_kept(tmp_path: Path) -> None:
    log, said = tmp_path / "logs" / "x.log", list[str]()
    done = process.run([sys.executable, "-c", JOB], log, said.append, cwd=tmp_path)
    assert said == ["[    1.0 s] step 1 of 2", "[    2.0 s] step 2 of 2"]
    assert done.result is not None
    assert done.result["artifact"] == "default/dataset/x/0123456789abcdef"
    assert "noise of a library" in log.read_text()


def test_a_failed_command_is_told_by_its_own_last_sentence(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    done = process.run([sys.executable, "-c", FAILING], log, lambda _: None, cwd=tmp_path)
    with pytest.raises(MantaError) as raised:
        process.check(done, "The job preprocess", log)
    assert str(raised.value) == (
        f"The job preprocess failed: The file in.csv does not exist; its whole log is {log}."
    )


def test_a_command_that_dies_without_a_word_is_told_by_its_last_line(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "print('last words'); raise SystemExit(3)"]
    assert process.run(words, tmp_path / "x", lambda _: None, cwd=tmp_path).last == "last words"


def test_steps_run_in_order_and_stop_at_the_first_failure(home: Path) -> None:
    ran: list[str] = []

    def fine(demo: Demo) -> StepRecord:
        ran.append("fine")
        return StepRecord(name="fine", title="", seconds=0, state="found", artifact="a/b/c/0123456789abcdef")

    def broken(demo: Demo) -> str:
        raise UnavailableError("The cluster is gone.")

    def never(demo: Demo) -> str:
        ran.append("never")
        return ""

    said: list[str] = []
    demo = Demo(DemoSettings(), home, said.append, verbose=False)
    failure = run_steps(
        demo, (Step("fine", "F", fine), Step("broken", "B", broken), Step("never", "N", never))
    )
    assert str(failure) == "The cluster is gone."
    assert ran == ["fine"]
    assert [(s.name, s.state) for s in demo.record.steps] == [("fine", "found"), ("broken", "failed")]
    assert any("found, not run again" in line for line in said)
    assert (demo.folder / "demo.json").is_file()


def test_the_demo_is_a_models_life_in_order() -> None:
    names = [step.name for step in STEPS]
    assert names == [
        "up",
        "data",
        "preprocess",
        "finetune",
        "evaluate",
        "promote",
        "deploy",
        "chat",
        "batch_inference",
    ]


def test_overrides_become_the_words_of_a_command(tmp_path: Path) -> None:
    path = tmp_path / "demo.yaml"
    path.write_text(
        "base_model: tiny\noverrides:\n"
        "  finetune: {training.max_steps: 2, base_model: /models/tiny, lora: {r: 4}}\n"
    )
    settings = load_demo_settings(path)
    assert settings.arguments("finetune") == [
        "--training.max_steps",
        "2",
        "--base_model",
        "/models/tiny",
        "--lora",
        '{"r": 4}',
    ]
    assert settings.config("finetune") == "jobs/configs/demo/finetune.yaml"
    assert {chat.model for chat in planned(settings)} == {"tiny", "prompt-shield"}


@pytest.mark.parametrize(
    ("text", "why"), [("rows: 3", "rows is no known key"), ("overrides: {train: {}}", "no verb 'train'")]
)
def test_a_wrong_choice_is_named(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "demo.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=why):
        load_demo_settings(path)


def test_what_is_private_is_masked() -> None:
    text = masked("Mail jane.doe@example.org, card 4111 1111 1111 1111 or 4111111111111111.")
    assert text == "Mail j•••@example.org, card 4111 •••• •••• 1111 or 4111 •••• •••• 1111."
