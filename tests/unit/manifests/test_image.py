"""The image's recipe: hadolint finds nothing, and what it copies is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCKERFILE = ROOT / "cluster" / "Dockerfile"


def hadolint(text: str) -> str:
    """What the linter says, nothing if all is well."""
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [linter, "--no-color", "-"], input=text, capture_output=True, text=True, timeout=600
    )
    return done.stdout


def stages() -> list[str]:
    return re.split(r"^FROM ", DOCKERFILE.read_text(), flags=re.MULTILINE)[1:]


def test_the_linter_finds_nothing() -> None:
    assert hadolint(DOCKERFILE.read_text()) == ""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("USER 1000", "USER root", "DL3002"),
        ("WORKDIR /opt/manta", "WORKDIR opt/manta", "DL3000"),
        ("COPY . .", "ADD . .", "DL3020"),
        ("--no-install-recommends ", "", "DL3015"),
        ("ENV TOKENIZERS", "RUN cd /tmp && make\nENV TOKENIZERS", "DL3003"),
        ('CMD ["manta", "--help"]', "CMD manta --help", "DL3025"),
        ("FROM ${PYTHON} AS environment", "FORM ${PYTHON}", "unexpected"),
    ],
)
def test_a_planted_mistake_is_named(old: str, new: str, said: str) -> None:
    text = DOCKERFILE.read_text()
    assert old in text
    assert said in hadolint(text.replace(old, new))


def test_the_lock_is_what_is_installed_and_nothing_else() -> None:
    environment, final = stages()
    assert 'python cluster/setup_environment.py "${EXTRA}"' in environment
    assert not re.search(r"\bpip3? install|\buv ", environment + final)
    # An editable install finds only packages that are there when it is made.
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    for pattern in packages["include"]:
        assert f"COPY {pattern.removesuffix('*')}/__init__.py" in environment


def test_what_is_copied_is_there_and_not_ignored() -> None:
    ignored = (ROOT / "cluster" / "Dockerfile.dockerignore").read_text().splitlines()
    kept = {line.removeprefix("!").rstrip("/") for line in ignored if line.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    for words in re.findall(r"^COPY (?!--from)(.+)$", stages()[0], flags=re.MULTILINE):
        for source in words.split()[:-1]:
            assert (ROOT / source).exists()
            assert source.split("/")[0] in kept


def test_it_does_not_run_as_root() -> None:
    users = re.findall(r"^USER (.+)$", stages()[-1], flags=re.MULTILINE)
    assert users == ["1000"]  # As the pods' securityContext has it.


def test_a_run_records_the_revision_that_the_image_was_built_from(tmp_path: Path) -> None:
    assert 'RUN echo "${REVISION}" > REVISION' in stages()[-1]
    shutil.copytree(ROOT / "cluster", tmp_path / "cluster", ignore=shutil.ignore_patterns("__pycache__"))
    asked = "from cluster.job.provenance import code_revision; print(code_revision(1).git_revision)"

    def recorded() -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-c", asked]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        return done.stdout.strip() or done.stderr

    assert recorded() == "None"
    (tmp_path / "REVISION").write_text("0123abcd\n")
    assert recorded() == "0123abcd"
