"""The locks against pyproject.toml, and against each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(kind: str) -> dict[str, str]:
    """Version by normalised name."""
    lines = (ROOT / "requirements" / f"{kind}.txt").read_text().split()
    return dict(line.split("==") for line in lines if "==" in line)


def named(extra: str | None) -> set[str]:
    """Normalised names of what an extra, or the project itself, requires."""
    wanted = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    names = {re.match(r"[A-Za-z0-9._-]+", line).group().lower().replace("_", "-") for line in wanted}  # type: ignore[union-attr]
    return names - {PROJECT["name"]}


@pytest.mark.parametrize(
    ("kind", "extras"),
    [
        ("cpu", ("cpu", "platform", "local", "dev", "client")),
        ("gpu", ("gpu", "platform", "local", "dev", "client")),
        ("client", ("client",)),
    ],
)
def test_a_lock_holds_all_that_its_extras_name(kind: str, extras: tuple[str, ...]) -> None:
    for extra in (None, *extras):
        assert named(extra) <= set(pins(kind)), extra


def test_a_client_has_the_platforms_own_versions() -> None:
    assert pins("client").items() <= pins("cpu").items()
    assert pins("client")["ray"] == pins("gpu")["ray"]
