"""Naming an artifact as the input of a job: by address, or ``latest:<name>``."""

from __future__ import annotations

from cluster.contracts import Manifest
from cluster.errors import NotFoundError, UsageError
from cluster.storage import ArtifactStore


def find_artifact(artifacts: ArtifactStore, team: str, kind: str, wanted: str) -> Manifest:
    """The manifest at an address, or the newest of the team's with a name (``latest:<name>``).

    Raises NotFoundError if there is none, UsageError for another form or an artifact of another kind.
    """
    if wanted.startswith("latest:"):
        name = wanted.removeprefix("latest:")
        newest = artifacts.latest(team, kind, name)
        if newest is None:
            raise NotFoundError(f"Team {team} has no {kind} named {name!r}: run the job that makes it first.")
        return newest
    try:
        manifest = artifacts.open(wanted)
    except UsageError as error:
        raise UsageError(f"{str(error).rstrip('.')}, or latest:<name>.") from None
    if manifest.ref.kind != kind:
        raise UsageError(f"{manifest.ref} is of kind {manifest.ref.kind}: name one of kind {kind} here.")
    return manifest
