"""Secure by default: what listens and for whom, and where secrets are not.

Against the session's cluster with everything on it, after a real job.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import psutil
import pytest

from cluster.local.credentials import Credentials
from cluster.local.home import Home
from cluster.settings import Settings
from tests.integration.conftest import ROOT, LocalCluster
from tests.integration.laptop import Submitted
from tests.integration.listeners import QUESTIONS, Listener, answers, listeners
from tests.integration.places import (
    Place,
    command_lines,
    credential_files,
    databases,
    files,
    objects,
    ray_answers,
)
from tests.integration.serving import Served

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module")
def credentials(platform: Settings) -> Credentials:
    found = Credentials.load(Home(platform.state_dir))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def secrets(credentials: Credentials, platform_cluster: LocalCluster) -> dict[str, bytes]:
    """Every secret of the cluster by name, and the token of a hub that stood in the starter's environment."""
    found = credentials.s3.model_dump()
    found |= {"ray_token": credentials.ray_token, "openai_key": credentials.openai_key}
    found["HF_TOKEN"] = platform_cluster.environment["HF_TOKEN"]
    return {name: value.encode() for name, value in found.items()}


@pytest.fixture(scope="module")
def found(served: Served, submitted: Submitted, platform: Settings) -> list[Listener]:
    """Everything that listens while models are served and after a job has run."""
    return listeners(served.cluster, platform.ports)


# Who may talk to it


def test_everything_listens_on_loopback(found: list[Listener]) -> None:
    assert {"gateway", "s3.port", "dashboard", "gcs", "worker", "replica"} <= {each.part for each in found}
    assert not [each for each in found if not each.ip.startswith("127.") and each.ip != "::1"]


def test_everything_that_listens_is_known(found: list[Listener]) -> None:
    assert not [each for each in found if each.part not in QUESTIONS]


def test_strangers_get_an_answer_only_where_the_readme_says_so(
    found: list[Listener], platform: Settings
) -> None:
    open_to_strangers = {}
    for each in found:
        given = answers(each, platform.storage.bucket)
        if given and each.is_there():
            open_to_strangers[each.part] = given
    assert set(open_to_strangers) == set(readme_open()), open_to_strangers


def readme_open() -> Iterator[str]:
    """The parts that README's table names as open."""
    section = (ROOT / "README.md").read_text().partition("## What listens where")[2].partition("\n## ")[0]
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[2].startswith("nothing"):
            yield from re.findall(r"`([a-z0-9._]+)`", cells[0])


# Where secrets are not


def leaks(places: Iterable[Place], secrets: dict[str, bytes]) -> list[str]:
    """Every place that holds a secret."""
    return [
        f"{name} in {place}"
        for place, content in places
        for name, value in secrets.items()
        if content.find(value) >= 0
    ]


def test_secrets_stand_in_private_files_alone(
    served: Served,
    submitted: Submitted,
    platform: Settings,
    credentials: Credentials,
    secrets: dict[str, bytes],
) -> None:
    home = Home(platform.state_dir)
    places = chain(
        files(home),
        objects(),
        databases(home),
        ray_answers(platform, credentials),
        command_lines(served.cluster),
        (("process list while a job ran", words) for words in submitted.seen),
        [("output of ray job submit", submitted.output.encode())],
    )
    assert leaks(places, secrets) == []


def test_the_search_finds_what_is_there(platform: Settings, secrets: dict[str, bytes]) -> None:
    """The same search over the private files, which hold every secret but the hub's."""
    private = ((str(path), path.read_bytes()) for path in credential_files(Home(platform.state_dir)))
    assert {leak.partition(" in ")[0] for leak in leaks(private, secrets)} == set(secrets) - {"HF_TOKEN"}


def test_private_files_and_their_directories_are_closed(platform: Settings) -> None:
    home = Home(platform.state_dir)
    for path in (*credential_files(home), home.state):
        assert mode(path) == 0o600, path
        assert mode(path.parent) == 0o700, path.parent


def test_jobs_have_their_credentials_from_the_environment(
    platform_cluster: LocalCluster, secrets: dict[str, bytes]
) -> None:
    """So that they need not stand in metadata: the process that starts Ray's workers has them."""
    raylet = next(process for process in platform_cluster.processes() if process.name() == "raylet")
    environment = psutil.Process(raylet.pid).environ()
    assert environment["AWS_SECRET_ACCESS_KEY"].encode() == secrets["secret_key"]
    assert environment["HF_TOKEN"].encode() == secrets["HF_TOKEN"]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)
