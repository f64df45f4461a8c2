"""Batches as the OpenAI API's users know them."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from cluster.contracts.base import Contract, Slug
from cluster.contracts.snapshot import PolicyDocument

BatchEndpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]


class BatchStatus(StrEnum):
    """OpenAI's states of a batch."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


#: States in which nothing happens any more.
ENDED = frozenset({BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED})


class BatchError(Contract):
    """Why a batch failed, or was ended early."""

    code: str = Field(description="For programs.")
    message: str = Field(description="One sentence.")
    line: int | None = Field(None, description="Line of the input file, from 1.")
    param: str | None = Field(None, description="The field at fault.")


class BatchUsage(Contract):
    """Tokens of all rows that were answered."""

    prompt_tokens: int = Field(0, ge=0, description="Of prompts.")
    completion_tokens: int = Field(0, ge=0, description="Of answers.")


class BatchLineResponse(Contract):
    """What a line's endpoint answered, be it an answer or a refusal."""

    status_code: int = Field(description="HTTP status.")
    request_id: str = Field(description="By which logs and records know the request.")
    body: dict[str, Any] = Field(description="JSON body.")


class BatchLineError(Contract):
    """Why a line has no answer of an endpoint."""

    code: str = Field(description="For programs.")
    message: str = Field(description="One sentence.")


class BatchLine(Contract):
    """One line of an output or error file, as OpenAI has them; one of ``response`` and ``error`` is null."""

    id: str = Field(description="Of the request within its batch.")
    custom_id: str = Field(description="The input line's.")
    response: BatchLineResponse | None = Field(None, description="What the endpoint answered.")
    error: BatchLineError | None = Field(None, description="Why it answered nothing.")


class BatchTerms(Contract):
    """What was asked for; it never changes."""

    id: str = Field(pattern=r"^batch_[0-9a-f]{24}$", description="Public id.")
    team: Slug = Field(description="The team that owns it; no other sees it.")
    tenant: Slug = Field("default", description="That team's tenant.")
    key_id: str = Field(description="The key that asked; its rows run as this key's.")
    endpoint: BatchEndpoint = Field(description="Of every line.")
    input_file_id: str = Field(description="The file with the lines.")
    model: str = Field(description="Public name of the model, the same on every line.")
    policy: PolicyDocument = Field(description="The guard policy as it was at submission.")
    metadata: dict[str, str] = Field(default_factory=dict, description="The client's own words.")
    created_at: datetime = Field(description="UTC time of submission.")
    expires_at: datetime = Field(description="UTC time after which no row is asked any more.")


class BatchProgress(Contract):
    """How far it is."""

    status: BatchStatus = Field(BatchStatus.VALIDATING, description="Its state.")
    total: int = Field(0, ge=0, description="Lines.")
    completed: int = Field(0, ge=0, description="Lines answered.")
    failed: int = Field(0, ge=0, description="Lines in the error file.")
    usage: BatchUsage = Field(default_factory=BatchUsage, description="Tokens so far.")
    errors: list[BatchError] = Field(default_factory=list, description="Why it failed or ended early.")
    output_file_id: str | None = Field(None, description="File with the answers.")
    error_file_id: str | None = Field(None, description="File with the lines that have none.")
    reached: dict[BatchStatus, datetime] = Field(
        default_factory=dict, description="UTC time at which each state was reached."
    )


class BatchRecord(BatchTerms, BatchProgress):
    """One batch."""

    @property
    def folder(self) -> str:
        """Where what was answered so far lies in the bucket."""
        return f"{self.team}/batches/{self.id}/"
