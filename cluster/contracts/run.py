"""The record of one run of a job: the truth about it, in SQL and not in Ray's memory."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from cluster.contracts.base import Contract, Slug
from cluster.contracts.principal import Principal


class RunState(StrEnum):
    """Where a run stands."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    LOST = "lost"
    #: Lost, and its files have been deleted since.
    COLLECTED = "collected"


class Lease(Contract):
    """The right to act for a run, until it expires."""

    holder: str = Field(description="Host and process that hold it.")
    token: int = Field(ge=1, description="Fencing token: rises by one with every holder.")
    expires_at: datetime = Field(description="UTC time after which another may take it.")


class RunRecord(Contract):
    """One attempt of one verb at one fingerprint."""

    id: str = Field(description="Ray's submission id: <verb>-<fingerprint>-<attempt>.")
    verb: Slug = Field(description="The job's verb.")
    fingerprint: str = Field(description="Fingerprint of the artifact that it makes.")
    attempt: int = Field(ge=1, description="Number of this attempt at the fingerprint.")
    owner: Principal = Field(description="Who submitted it.")
    state: RunState = Field(description="Where it stands.")
    lease: Lease | None = Field(None, description="Who may act for it; none once it has ended.")
    artifact: str | None = Field(
        None, description="Address of what it makes; there is something only once it has succeeded."
    )
    message: str | None = Field(None, description="One sentence: why it failed or was lost.")
    started_at: datetime = Field(description="UTC start.")
    ended_at: datetime | None = Field(None, description="UTC end.")
    cost: float = Field(0.0, ge=0, description="Cost so far, in CPU-seconds of the driver.")
    log_address: str | None = Field(None, description="Where its log is found.")
