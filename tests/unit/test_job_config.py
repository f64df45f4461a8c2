"""A job's configuration, as a user meets it: through the command of a verb."""

import json

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import NotFoundError, UsageError
from cluster.job import JobConfig, JobResult, command
from cluster.job.config import parse_config, read_yaml


class Lora(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int = Field(8, description="Rank.")
    lora_alpha: int = Field(16, description="Scale.")


class Config(JobConfig):
    """A configuration with a nested part."""

    runtime_fields = frozenset({"num_workers"})

    learning_rate: float = Field(1e-3, description="Peak learning rate.")
    num_workers: int = Field(2, description="Workers.")
    lora: Lora = Field(default_factory=Lora, description="Adapter.")


def answer(config: Config) -> JobResult:
    return JobResult(artifact="default/x/y/0123456789abcdef", reused=False, summary=config.meaning())


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"name": "run", "lora": {"r": 4}}))
    return str(path)


def test_command_line_overrides_the_file_field_by_field(config_file, capsys):
    status = command(
        Config,
        answer,
        ["--config", config_file, "--lora.lora_alpha", "32", "--learning_rate", "0.5", "--json"],
    )
    assert status == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["summary"] == {
        "name": "run",
        "learning_rate": 0.5,
        "lora": {"r": 4, "lora_alpha": 32},
    }


def test_an_option_may_have_dashes_and_its_value_keeps_them():
    config = parse_config(
        Config, ["--name=my-run", "--learning-rate", "0.5", "--lora.lora-alpha=3"], {}, "job"
    )
    assert (config.name, config.learning_rate, config.lora.lora_alpha) == ("my-run", 0.5, 3)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--name", "x", "--bogus", "1"], "--bogus"),
        (["--name", "x", "--lora.r", "many"], "lora.r"),
        (["--name", "Not A Slug"], "name"),
        ([], "name"),
        (["--config", "does-not-exist.yaml"], "does-not-exist.yaml"),
    ],
)
def test_wrong_use_is_one_sentence_and_status_2(argv, named, capsys):
    assert command(Config, answer, argv) == 2
    error = capsys.readouterr().err
    assert named in error
    assert len(error.strip().splitlines()) == 1
    assert "Traceback" not in error


def test_unknown_key_in_the_file_is_named(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text("name: x\nlearnin_rate: 1\n")
    assert command(Config, answer, ["--config", str(path)]) == 2
    assert "learnin_rate is no known key (did you mean learning_rate?)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["--name", "x", "--lora.lora-aplha", "3"],
            "unrecognized arguments: --lora.lora_aplha 3 (did you mean --lora.lora_alpha?).",
        ),
        (
            ["--name", "x", "--learnin-rate=3"],
            "unrecognized arguments: --learnin_rate=3 (did you mean --learning_rate?).",
        ),
        (["--name", "x", "--zzz", "3"], "unrecognized arguments: --zzz 3."),
        ([], "configuration: name: field required (Name of the artifact that the job makes)."),
    ],
)
def test_a_mistake_is_told_with_what_was_meant(argv, said, capsys):
    assert command(Config, answer, argv) == 2
    assert capsys.readouterr().err.endswith(f"{said}\n")


def test_a_part_of_a_list_or_of_a_choice_names_its_own_keys():
    class Parts(JobConfig):
        """A configuration with parts that may be several, or none."""

        loras: list[Lora] = Field(min_length=1, description="Adapters.")
        best: Lora | None = Field(None, description="The best of them.")

    with pytest.raises(UsageError) as caught:
        parse_config(Parts, [], {"name": "x", "loras": [{"lora_alhpa": 3}], "best": {"rr": 3}}, "job")
    assert "loras.0.lora_alhpa is no known key (did you mean lora_alpha?)" in str(caught.value)
    assert "best.rr is no known key (did you mean r?)" in str(caught.value)
    with pytest.raises(UsageError, match=r"loras: list should have .*, not 0 \(Adapters\)\.$"):
        parse_config(Parts, [], {"name": "x", "loras": []}, "job")


@pytest.mark.parametrize("content", ["- a list", "{broken: [", "just text"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, content):
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"c\.yaml"):
        read_yaml(path)


def test_the_environment_has_no_say(monkeypatch):
    monkeypatch.setenv("NAME", "from-environment")
    monkeypatch.setenv("LEARNING_RATE", "9")
    config = parse_config(Config, ["--name", "mine"], {}, "job")
    assert (config.name, config.learning_rate) == ("mine", 1e-3)
    assert type(config) is Config


def test_runtime_fields_do_not_change_the_meaning():
    assert Config(name="a", num_workers=1).meaning() == Config(name="a", num_workers=64).meaning()
    assert Config(name="a").meaning() != Config(name="a", learning_rate=1).meaning()


def test_a_users_mistake_has_no_traceback_and_a_bug_keeps_its_own(capsys):
    def missing(_: Config) -> JobResult:
        raise NotFoundError("there is no dataset x; run preprocess first.")

    def bug(_: Config) -> JobResult:
        raise ZeroDivisionError

    assert command(Config, missing, ["--name", "x", "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "error: there is no dataset x; run preprocess first.\n"
    assert json.loads(captured.out) == {"error": "there is no dataset x; run preprocess first."}
    with pytest.raises(ZeroDivisionError):
        command(Config, bug, ["--name", "x"])


def test_dry_run_prints_the_whole_configuration(config_file, capsys):
    assert command(Config, answer, ["--config", config_file, "--dry-run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["lora"] == {"r": 4, "lora_alpha": 16}
