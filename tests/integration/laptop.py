"""A laptop: an environment with the client alone, a copy of the code, and the cluster's address and token."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.local.credentials import Credentials
from cluster.local.home import Home
from tests.integration.conftest import ROOT, LocalCluster
from tests.integration.places import command_lines

_CODE = ("cluster", "validation", "jobs", "deployments")
_FILES = ("pyproject.toml", "README.md", "runtime_env.yaml")


@dataclass(frozen=True)
class Laptop:
    """Programs of the client's environment, run in the copy of the code."""

    bin: Path
    code: Path
    environment: Mapping[str, str]

    def run(self, *words: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a program, with more variables if wanted."""
        return subprocess.run(
            [str(self.bin / words[0]), *words[1:]],
            cwd=self.code,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
        )


@dataclass(frozen=True)
class Submitted:
    """README's line for a job from a laptop, run to its end."""

    output: str
    #: The process list of the cluster's machine, as it was from submission to end.
    seen: frozenset[bytes]


def readme_line() -> str:
    """The `ray job submit` line under 'Jobs from a laptop', as it stands there."""
    found = re.search(
        r"^ray job submit .*?[^\\]$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert found
    return found.group(0)


def make_laptop(cluster: LocalCluster, folder: Path) -> Laptop:
    """Install the extra `client` with pip, from the index that pip is configured with."""
    code = folder / "code"
    for room in _CODE:
        shutil.copytree(ROOT / room, code / room, ignore=shutil.ignore_patterns("__pycache__"))
    for file in _FILES:
        shutil.copy(ROOT / file, code)
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    # Nothing but a few modules of Ray is imported: to compile all of it would take longer than the rest.
    install = [str(venv / "bin" / "pip"), "install", "--quiet", "--no-compile", ".[client]"]
    done = subprocess.run(install, cwd=code, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    credentials = Credentials.load(Home(cluster.home))
    assert credentials is not None
    (folder / "home").mkdir()
    clean = {
        name: value
        for name, value in cluster.environment.items()
        if not name.startswith(("MANTA_", "PYTHON"))
    }
    own = {
        "HOME": str(folder / "home"),
        "PATH": f"{venv / 'bin'}:{clean['PATH']}",
        "VIRTUAL_ENV": str(venv),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{cluster.environment['MANTA_PORTS__DASHBOARD']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": credentials.ray_token,
    }
    return Laptop(venv / "bin", code, clean | own)


def submit_as_readme_says(laptop: Laptop, cluster: LocalCluster) -> Submitted:
    """Run README's line, and watch the process list meanwhile."""
    line = readme_line().replace("http://127.0.0.1:8265", laptop.environment["RAY_API_SERVER_ADDRESS"])
    seen: set[bytes] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            seen.update(bytes(words) for _, words in command_lines(cluster))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=laptop.code,
            env=dict(laptop.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
    finally:
        ended.set()
        watcher.join()
    assert done.returncode == 0, done.stdout
    return Submitted(done.stdout, frozenset(seen))
