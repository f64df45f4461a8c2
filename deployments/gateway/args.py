"""``args`` of the gateway application."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class BatchArgs(BaseModel):
    """Limits of one batch worker."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    concurrency: int = Field(32, ge=1, description="Rows asked at once, of all batches.")
    busy_concurrency: int = Field(
        1,
        ge=1,
        description="Rows asked at once while interactive requests are at work.",
    )
    batches_at_once: int = Field(4, ge=1, description="Batches at work at once.")
    rows_at_once: int = Field(
        1000, ge=1, description="Most rows of one batch that are asked or wait to be stored."
    )
    attempts: int = Field(3, ge=1, description="Tries of a row that fails in the model.")
    flush_s: float = Field(1.0, gt=0, description="Seconds between two parts of answered rows.")
    poll_s: float = Field(2.0, gt=0, description="Seconds between looks for new batches.")
    lease_s: float = Field(30.0, gt=0, description="Seconds until a silent worker's batch is another's.")


class GatewayArgs(BaseModel):
    """Limits of one gateway replica. Replicas and CPUs are Serve's: ``deployments: [{name: gateway}]``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    snapshot_interval_s: float = Field(
        2.0,
        gt=0,
        le=4,
        description="Seconds between looks for a newer snapshot; a revocation must be known within 5.",
    )
    max_concurrent_requests: int = Field(
        256, ge=1, description="Requests at work in one replica; more get 503 with Retry-After."
    )
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1, description="Longest request body in bytes.")
    max_choices: int = Field(
        16, ge=1, description="Most answers to one request: n times the number of prompts."
    )
    max_output_tokens: int | None = Field(
        None,
        ge=1,
        description="Most tokens a request may ask for; the model's context is the limit if absent.",
    )
    assumed_output_tokens: int = Field(
        256,
        ge=0,
        description="What an answer of unstated length counts as in its key's tokens until it has ended.",
    )
    max_failed_authentications: int = Field(
        30,
        ge=1,
        description="Failed authentications a minute from one address that get 401; more get 429, while "
        "good keys stay good.",
    )
    upstream_timeout_s: float = Field(
        300.0, gt=0, description="Longest silence of a model in seconds, a cold start included."
    )
    upstream_key_variables: dict[str, str] = Field(
        default_factory=dict,
        description="For targets with a base_url: that URL, and the environment variable with its API key.",
    )
    max_file_bytes: int = Field(200 * 1000 * 1000, ge=1, description="Largest upload in bytes.")
    max_file_lines: int = Field(50_000, ge=1, description="Most lines of an upload.")
    max_stored_bytes: int | None = Field(
        20 * 1000 * 1000 * 1000,
        ge=1,
        description="Most bytes of files that a team may have; any if absent.",
    )
    max_uploads: int = Field(8, ge=1, description="Uploads at once in one replica; more get 503.")
    file_expiry_s: int | None = Field(
        30 * 24 * 3600, ge=3600, description="Seconds after which files go that say nothing; never if absent."
    )
    batches: BatchArgs = Field(default_factory=BatchArgs, description="Of the worker of ``/v1/batches``.")
