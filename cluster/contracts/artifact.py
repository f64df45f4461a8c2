"""Artifacts: an address, and the manifest that makes one visible."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import Field

from cluster.contracts.base import Contract, Slug
from cluster.contracts.principal import Principal


class ArtifactRef(Contract):
    """The address ``<team>/<kind>/<name>/<fingerprint>`` of one immutable artifact."""

    team: Slug = Field(description="The owning team.")
    kind: Slug = Field(description="What it is: dataset, checkpoint, evaluation, batch-output, model, ...")
    name: Slug = Field(description="The user's name for the line of artifacts.")
    fingerprint: str = Field(
        pattern=r"^[0-9a-f]{16}$",
        description="First 16 hex digits of SHA-256 over kind, configuration, input digests and code epoch.",
    )

    def __str__(self) -> str:
        return f"{self.team}/{self.kind}/{self.name}/{self.fingerprint}"

    @classmethod
    def parse(cls, address: str) -> Self:
        """Read ``team/kind/name/fingerprint``, with or without ``s3://bucket/`` before it.

        Raises ValueError when the address has another form.
        """
        path = address.partition("://")[2].partition("/")[2] if "://" in address else address
        parts = path.strip("/").split("/")
        if len(parts) != 4:
            raise ValueError(
                f"{address!r} is no artifact address: expected <team>/<kind>/<name>/<fingerprint>"
            )
        team, kind, name, fingerprint = parts
        return cls(team=team, kind=kind, name=name, fingerprint=fingerprint)


class FileEntry(Contract):
    """One file of an artifact."""

    path: str = Field(description="Path below the winning attempt's folder.")
    bytes: int = Field(ge=0, description="Size in bytes.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Checksum of the file's content.")


class ArtifactInput(Contract):
    """What an artifact was made from."""

    address: str = Field(description="Artifact address, or the URI of an outside source.")
    digest: str = Field(description="Data digest of that artifact, or SHA-256 of the source's bytes.")


class CodeRevision(Contract):
    """The code that made an artifact; recorded, not part of the fingerprint."""

    git_revision: str | None = Field(None, description="Commit, with '-dirty' appended for a changed tree.")
    package: str | None = Field(None, description="Address of the working-dir package that Ray delivered.")
    epoch: int = Field(description="The verb's declared code_epoch; part of the fingerprint.")


class Manifest(Contract):
    """Written last and conditionally: an artifact is visible if, and only if, this exists."""

    schema_version: Literal[1] = Field(1, description="Version of this schema.")
    state: Literal["complete"] = Field("complete", description="Tells a manifest from a tombstone.")
    ref: ArtifactRef = Field(description="The artifact's own address.")
    owner: Principal = Field(description="Who made it.")
    run_id: str = Field(description="Winning attempt: files stand under attempts/<run_id>/.")
    data_digest: str = Field(
        description="SHA-256 over canonical rows in row-id order, else over the sorted file checksums."
    )
    files: list[FileEntry] = Field(description="All files of the winning attempt.")
    counts: dict[str, int] = Field(default_factory=dict, description="Row and item counts by name.")
    inputs: list[ArtifactInput] = Field(default_factory=list, description="Where it came from.")
    configuration: dict[str, Any] = Field(description="The job's whole configuration.")
    summary: dict[str, Any] = Field(default_factory=dict, description="The job's own result, small and JSON.")
    code: CodeRevision = Field(description="The code that made it.")
    versions: dict[str, str] = Field(
        default_factory=dict, description="Versions of the packages that matter."
    )
    started_at: datetime = Field(description="UTC time at which the winning attempt started.")
    ended_at: datetime = Field(description="UTC time of the commit.")


class Tombstone(Contract):
    """What stands in the manifest's place after an erasure."""

    schema_version: Literal[1] = Field(1, description="Version of this schema.")
    state: Literal["erased"] = Field("erased", description="Tells a tombstone from a manifest.")
    ref: ArtifactRef = Field(description="The erased artifact's address.")
    erased_by: Principal = Field(description="Who erased it.")
    erased_at: datetime = Field(description="UTC time of the erasure.")
    reason: str = Field(description="Why.")
