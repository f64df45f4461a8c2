"""Training arguments under the names that transformers, TRL and PEFT give them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainingArguments(BaseModel):
    """A part of ``transformers.TrainingArguments`` (``max_length`` is TRL's), with the same meaning."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float = Field(2e-4, gt=0, description="Highest learning rate of AdamW.")
    lr_scheduler_type: Literal["linear", "cosine", "constant_with_warmup"] = Field(
        "linear", description="How the learning rate falls after the warm-up."
    )
    warmup_steps: int = Field(0, ge=0, description="Steps until the highest learning rate.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    per_device_train_batch_size: int = Field(8, ge=1, description="Rows of one forward pass of one worker.")
    gradient_accumulation_steps: int = Field(1, ge=1, description="Forward passes of a worker for one step.")
    num_train_epochs: float = Field(1.0, gt=0, description="Passes over the rows, if max_steps is not given.")
    max_steps: int = Field(-1, ge=-1, description="Steps in all; -1: as num_train_epochs says.")
    train_sampling_strategy: Literal["random", "group_by_length"] = Field(
        "group_by_length", description="group_by_length puts rows of like length together: less padding."
    )
    max_length: int = Field(1024, ge=8, description="Rows of more tokens are left out, and counted.")
    bf16: bool = Field(False, description="Base weights in bfloat16; on CPUs float32 is faster.")
    seed: int = Field(42, ge=0, description="Of the adapter's first weights and the order of the rows.")
    logging_steps: int = Field(5, ge=1, description="Steps between two progress lines.")
    save_steps: int = Field(20, ge=1, description="Steps between two checkpoints.")
    save_total_limit: int = Field(2, ge=1, description="Checkpoints kept while training.")

    def total_steps(self, rows: int, workers: int) -> int:
        """Optimiser steps over ``rows`` rows with ``workers`` workers."""
        if self.max_steps > 0:
            return self.max_steps
        per_epoch = -(-rows // self.rows_per_step(workers))
        return max(1, round(per_epoch * self.num_train_epochs))

    def rows_per_step(self, workers: int) -> int:
        """Rows that all workers see together in one step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * workers


#: What changes how training runs or reports, but not the weights that come of it.
RUNTIME_ARGUMENTS = frozenset({"logging_steps", "save_steps", "save_total_limit"})


class DpoArguments(BaseModel):
    """A part of ``trl.DPOConfig``, with the same meaning; the loss is its usual one, ``sigmoid``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    beta: float = Field(
        0.1, gt=0, description="Of the implicit rewards: more of it keeps the model nearer to its base."
    )


class LoraArguments(BaseModel):
    """A part of ``peft.LoraConfig``, with the same meaning."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int = Field(8, ge=1, description="Rank of the update; the engine's max_lora_rank must allow it.")
    lora_alpha: int = Field(16, ge=1, description="The update is scaled by lora_alpha / r.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the update.")
    target_modules: str | list[str] = Field(
        "all-linear", description="Modules to adapt: names, or all-linear for every projection."
    )
