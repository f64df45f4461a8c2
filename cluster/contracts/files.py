"""Files as the OpenAI API's users know them: uploads, and what jobs made for them."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, get_args

from pydantic import Field

from cluster.contracts.base import Contract, Slug

UploadPurpose = Literal["batch", "fine-tune"]
FilePurpose = Literal["batch", "fine-tune", "batch_output", "fine-tune-results"]
#: What clients may upload; the others are made here.
UPLOAD_PURPOSES: tuple[UploadPurpose, ...] = get_args(UploadPurpose)


class FileRecord(Contract):
    """One file. Its bytes never change."""

    id: str = Field(pattern=r"^file-[0-9a-f]{24}$", description="Public id.")
    team: Slug = Field(description="The team that owns it; no other sees it.")
    tenant: Slug = Field("default", description="That team's tenant.")
    key_id: str = Field(description="The key that it came with.")
    purpose: FilePurpose = Field(description="What it is for.")
    filename: str = Field(max_length=255, description="Its name, as the client said.")
    bytes: int = Field(ge=0, description="Size.")
    lines: int = Field(ge=0, description="Lines of JSON.")
    endpoint: str | None = Field(None, description="For a batch: the endpoint of all lines.")
    model: str | None = Field(None, description="For a batch: the model of all lines.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Of its bytes.")
    created_at: datetime = Field(description="UTC time at which it was there whole.")
    expires_at: datetime | None = Field(None, description="UTC time from which on it is gone.")

    @property
    def key(self) -> str:
        """Its place in the bucket."""
        return f"{self.team}/files/{self.id}"
