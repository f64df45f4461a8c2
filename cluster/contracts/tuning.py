"""Fine-tuning jobs as the OpenAI API's users know them."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from cluster.contracts.base import Contract, Slug
from cluster.contracts.snapshot import Money


class TuningStatus(StrEnum):
    """OpenAI's states of a fine-tuning job."""

    VALIDATING_FILES = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


#: How models are tuned: by answers to imitate, or by pairs of a better and a worse one.
TuningMethod = Literal["supervised", "dpo"]
#: States in which nothing happens any more.
TUNING_ENDED = frozenset({TuningStatus.SUCCEEDED, TuningStatus.FAILED, TuningStatus.CANCELLED})


class TuningHyperparameters(Contract):
    """How it learns; what is "auto" is chosen by the number of examples, before it is queued."""

    n_epochs: Literal["auto"] | int = Field("auto", description="Passes over the examples.")
    batch_size: Literal["auto"] | int = Field("auto", description="Examples of one step.")
    learning_rate_multiplier: Literal["auto"] | float = Field(
        "auto", description="Times the platform's usual learning rate."
    )
    beta: Literal["auto"] | float | None = Field(
        None,
        description="How much dpo keeps the model near its base; absent of other methods.",
        exclude_if=lambda beta: beta is None,
    )


class TuningError(Contract):
    """Why a job failed."""

    code: str = Field(description="For programs.")
    message: str = Field(description="One sentence.")
    param: str | None = Field(None, description="The parameter at fault.")


class TuningTerms(Contract):
    """What was asked for; it never changes."""

    id: str = Field(pattern=r"^ftjob-[0-9a-f]{24}$", description="Public id.")
    team: Slug = Field(description="The team that owns it and what comes of it; no other sees either.")
    tenant: Slug = Field("default", description="That team's tenant.")
    key_id: str = Field(description="The key that asked; if it ends, so does the job.")
    model: str = Field(description="Public name of the model to tune.")
    training_file: str = Field(description="The file with the examples.")
    validation_file: str | None = Field(None, description="The file with examples to measure by.")
    # Left out of what a release without it must read.
    method: TuningMethod = Field(
        "supervised",
        description="How it learns.",
        exclude_if=lambda method: method == "supervised",
    )
    hyperparameters: TuningHyperparameters = Field(
        default_factory=TuningHyperparameters, description="As they were asked for."
    )
    suffix: str | None = Field(None, description="The client's word in the tuned model's name.")
    seed: int = Field(ge=0, description="Of the adapter's first weights and the order of examples.")
    metadata: dict[str, str] = Field(default_factory=dict, description="The client's own words.")
    created_at: datetime = Field(description="UTC time of submission.")


class TuningProgress(Contract):
    """How far it is."""

    status: TuningStatus = Field(TuningStatus.VALIDATING_FILES, description="Its state.")
    chosen: TuningHyperparameters | None = Field(None, description="Hyperparameters without any auto.")
    application: str | None = Field(None, description="Serve application of the model that is tuned.")
    base: str | None = Field(None, description="Address of that application's model artifact.")
    attempt: int = Field(1, ge=1, description="How often it was begun; each is a Ray job.")
    steps: int | None = Field(None, description="Optimiser steps in all, once they are known.")
    error: TuningError | None = Field(None, description="Why it failed.")
    trained_tokens: int | None = Field(None, description="Tokens that were learned from, each epoch's.")
    model_version: str | None = Field(None, description="Registry's name@version of what came of it.")
    last_loss: float | None = Field(None, description="Training loss of the last step.")
    valid_loss: float | None = Field(None, description="Loss over the validation file, at the end.")
    result_files: list[str] = Field(default_factory=list, description="Ids of the files with its curve.")
    estimated_finish: datetime | None = Field(None, description="UTC time at which it may end.")
    finished_at: datetime | None = Field(None, description="UTC time at which it ended.")
    # Left out of what a release without them must read.
    digest: str | None = Field(
        None, description="Data digest of what came of it.", exclude_if=lambda digest: digest is None
    )
    training_price: Money | None = Field(
        None,
        description="Money for a million tokens, as it was when the job was queued; nothing if absent.",
        exclude_if=lambda price: price is None,
    )
    deleted_at: datetime | None = Field(
        None,
        description="UTC time at which its team deleted what came of it.",
        exclude_if=lambda moment: moment is None,
    )


class TuningRecord(TuningTerms, TuningProgress):
    """One fine-tuning job."""

    @property
    def tuned_name(self) -> str:
        """Public name of the model that comes of it."""
        return f"ft:{self.model}:{self.team}:{self.suffix or ''}:{self.id.removeprefix('ftjob-')[:12]}"

    def cost(self, tokens: int) -> Decimal:
        """Money for a training on so many tokens, exactly."""
        return tokens * (self.training_price or Decimal(0)).scaleb(-6)

    @property
    def submission_id(self) -> str:
        """Of the Ray job that does it: whoever follows it finds it, and Ray refuses a second one."""
        return f"tune-{self.id}-{self.attempt}"


class TuningEvent(Contract):
    """One line of a job's story."""

    id: str = Field(description="Public id; the same event has the same, whoever tells it again.")
    created_at: datetime = Field(description="UTC time.")
    level: Literal["info", "warn", "error"] = Field("info", description="How bad it is.")
    message: str = Field(description="One sentence.")
    type: Literal["message", "metrics"] = Field("message", description="Whether data holds figures.")
    data: dict[str, Any] = Field(default_factory=dict, description="step, total_steps, train_loss, ...")
