"""``args`` of the gateway application."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class RecordArgs(BaseModel):
    """What a gateway replica records of requests, and how it gets to storage (see deployments/gateway/sink).

    The bounds hold for each table (audit, traffic, feedback) of one replica; the spool's for one machine.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    audit: bool = Field(True, description="Record every request: who, when, what; no text, see record_text.")
    traffic_share: float = Field(
        0.0, ge=0, le=1, description="Share of requests whose traffic is recorded for monitoring, 0 to 1."
    )
    max_text_characters: int = Field(
        20_000,
        ge=1,
        description="Longest recorded text in code points, if a policy allows texts.",
    )
    file_rows: int = Field(10_000, ge=1, description="Rows after which a file goes to storage.")
    file_s: float = Field(
        300.0, gt=0, description="Seconds after which a file goes to storage, however few rows it has."
    )
    queue_max_bytes: int = Field(
        32 * 1024 * 1024, ge=1, description="Most bytes in memory that are not on disk yet; more is dropped."
    )
    spool: Path | None = Field(
        None, description="Folder of this machine's spool; records under MANTA_HOME if absent."
    )
    spool_max_bytes: int = Field(
        2 * 1024**3, ge=1, description="Most bytes of a table on disk that wait for storage; more is dropped."
    )
    retry_s: float = Field(
        5.0, gt=0, description="Seconds until storage that was away is tried again; doubled up to 60."
    )
    stop_timeout_s: float = Field(
        10.0, ge=0, description="Seconds that a replica that stops takes to ship; what remains waits on disk."
    )


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


class TuningArgs(BaseModel):
    """Limits of the worker of ``/v1/fine_tuning/jobs``, and how models are trained for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    jobs_at_once: int = Field(1, ge=1, description="Trainings of one worker at once; others are queued.")
    open_jobs_of_a_team: int = Field(
        16, ge=1, description="Jobs of one team that may be under way or queued; more are refused."
    )
    poll_s: float = Field(2.0, gt=0, description="Seconds between looks at jobs and at their trainings.")
    lease_s: float = Field(30.0, gt=0, description="Seconds until a silent worker's job is another's.")
    attempts: int = Field(3, ge=1, description="Trainings that may fail until their job does.")
    num_workers: int = Field(1, ge=1, description="Training workers, if they divide the batch size.")
    resources_per_worker: dict[str, float] = Field(
        default_factory=lambda: {"CPU": 0.5}, description="Ray resources of each worker, e.g. CPU, GPU."
    )
    learning_rate: float = Field(2e-4, gt=0, description="What learning_rate_multiplier multiplies.")
    dpo_learning_rate: float = Field(
        2e-5, gt=0, description="The same, of method dpo: usually a tenth of the other's."
    )
    rows_per_pass: int = Field(8, ge=1, description="Most conversations of one forward pass of one worker.")
    max_length: int = Field(1024, ge=8, description="Examples of more tokens are left out.")
    lora_rank: int = Field(8, ge=1, description="Rank of adapters, if the application allows so much.")
    save_steps: int = Field(20, ge=1, description="Steps between two checkpoints.")


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
    body_timeout_s: float = Field(
        30.0,
        gt=0,
        description="Seconds within which a request body must be there, and longest silence of an upload; "
        "later it is a 408.",
    )
    max_choices: int = Field(
        16, ge=1, description="Most answers to one request: n times the number of prompts."
    )
    max_output_tokens: int | None = Field(
        None,
        ge=1,
        description="Most tokens of one answer: a request that asks for more is refused, and one that names "
        "no number gets no more. A key may have a bound of its own, and the lower one holds. Without either "
        "the model's context bounds it.",
    )
    budgeted_output_tokens: int = Field(
        4096,
        ge=1,
        description="Most tokens of an answer to a request that names no number and has no other bound, if "
        "its key has a budget for the model: so much is reserved of that budget until the answer has ended. "
        "A server behind a base_url is asked for so many, and may refuse it if its context has no such room.",
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
    budget_lease_share: float = Field(
        0.01,
        gt=0,
        le=1,
        description="Part of a key's budget that a replica may spend before SQL has answered: together "
        "replicas overspend a budget by at most one such part each.",
    )
    budget_interval_s: float = Field(
        2.0, gt=0, description="Seconds between reports to SQL of what keys with a budget spent."
    )
    upstream_timeout_s: float = Field(
        300.0, gt=0, description="Longest silence of a model in seconds, a cold start included."
    )
    upstream_key_variables: dict[str, str] = Field(
        default_factory=dict,
        description="For targets with a base_url: that URL, and the environment variable with its API key.",
    )
    records: RecordArgs = Field(default_factory=RecordArgs, description="Audit, traffic record, feedback.")
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
    tuning: TuningArgs = Field(
        default_factory=TuningArgs, description="Of the worker of ``/v1/fine_tuning/jobs``."
    )
