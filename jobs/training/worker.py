"""What every training worker does, on whichever node it runs.

A plain loop and not ``transformers.Trainer``: logits are computed for completion tokens only (a vocabulary of
262,144 makes them the larger part of a step otherwise), the loss is the mean over the completion tokens of
*all* workers, and each row is seen exactly once an epoch even if the last batch is uneven.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.contracts import Manifest
from cluster.errors import RefusedError
from cluster.models import local_copy
from cluster.storage import ArtifactStore, object_store
from jobs.rows import Row, read_rows
from jobs.training.arguments import LoraArguments, TrainingArguments
from jobs.training.order import batches_from, shares
from jobs.training.tokens import IGNORED, collate, encode

if TYPE_CHECKING:
    import torch
    from ray.train import Checkpoint

#: In a checkpoint: PEFT's files, AdamW's state, and the loop's own.
ADAPTER, OPTIMIZER, STATE = "adapter", "optimizer.pt", "state.json"


@dataclass(frozen=True)
class WorkerPlan:
    """All that a worker needs to know; it crosses process borders."""

    base: Manifest
    dataset: Manifest
    split: str
    #: Measured at the end; None: nothing is.
    validation_split: str | None
    arguments: TrainingArguments
    lora: LoraArguments
    #: Of an earlier, killed attempt.
    resume: Checkpoint | None
    #: ``ray.util.queue.Queue`` to the driver.
    progress: Any


@dataclass
class State:
    """Where training stands; written into each checkpoint."""

    step: int = 0
    samples_seen: int = 0
    tokens_seen: int = 0
    too_long: int = 0
    elapsed_s: float = 0.0
    valid_loss: float | None = None
    #: One entry for each step, as in training.jsonl.
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass
class Trained:
    """The things that change while training."""

    model: Any
    optimizer: Any
    scheduler: Any
    state: State

    @property
    def weights(self) -> list[torch.nn.Parameter]:
        """The adapter's weights, in the same order on every worker."""
        return [weight for weight in self.model.parameters() if weight.requires_grad]


def train(config: dict[str, Any]) -> None:
    """Ray Train's ``train_loop_per_worker``; ``config["plan"]`` is a :class:`WorkerPlan`."""
    import ray.train
    import torch

    plan: WorkerPlan = config["plan"]
    context = ray.train.get_context()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    rows = read_rows(ArtifactStore(object_store()), plan.dataset, plan.split, reader="fine-tuning")
    tokenizer = load_tokenizer(local_copy(plan.base))
    total = plan.arguments.total_steps(len(rows), context.get_world_size())
    trained = _start(plan, total, ray.train.get_checkpoint() or plan.resume)
    _loop(plan, trained, rows, tokenizer, total)


def load_tokenizer(directory: Path) -> Any:
    """The model's tokenizer, sure to have a padding token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _start(plan: WorkerPlan, total: int, checkpoint: Checkpoint | None) -> Trained:
    """Base model, adapter, optimiser; from a checkpoint's state if there is one."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from ray.train.torch import get_device
    from transformers import AutoModelForCausalLM, get_scheduler

    arguments = plan.arguments
    base = AutoModelForCausalLM.from_pretrained(
        local_copy(plan.base), dtype=torch.bfloat16 if arguments.bf16 else torch.float32
    ).to(get_device())
    torch.manual_seed(arguments.seed)
    state, saved = State(), None
    if checkpoint is None:
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **plan.lora.model_dump()))
    else:
        with checkpoint.as_directory() as directory:
            model = PeftModel.from_pretrained(base, Path(directory, ADAPTER), is_trainable=True)
            state = State(**json.loads(Path(directory, STATE).read_text()))
            saved = torch.load(Path(directory, OPTIMIZER), map_location=get_device(), weights_only=True)
    model.peft_config["default"].base_model_name_or_path = str(plan.base.ref)
    model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=arguments.learning_rate, weight_decay=arguments.weight_decay)
    scheduler = get_scheduler(arguments.lr_scheduler_type, optimizer, arguments.warmup_steps, total)
    if saved is not None:
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
    trained = Trained(model, optimizer, scheduler, state)
    _same_everywhere(trained.weights)
    return trained


def _loop(plan: WorkerPlan, trained: Trained, rows: list[Row], tokenizer: Any, total: int) -> None:
    import ray.train
    import torch

    arguments, state, context = plan.arguments, trained.state, ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    lengths = [row.length for row in rows]
    batches = batches_from(
        state.step,
        lengths,
        arguments.rows_per_step(workers),
        seed=arguments.seed,
        group_by_length=arguments.train_sampling_strategy == "group_by_length",
    )
    before, clock, saved = state.elapsed_s, time.monotonic(), False
    _tell(plan, rank, {"begins_at": state.step, "steps": total, "rows": len(rows)})
    while state.step < total:
        parts = shares(
            next(batches),
            lengths,
            rank=rank,
            workers=workers,
            micro_batch=arguments.per_device_train_batch_size,
        )
        # Seeded by step, so that a resumed run drops out what the killed one would have.
        torch.manual_seed((arguments.seed * total + state.step) * workers + rank)
        loss = _step(arguments, trained, [[rows[index] for index in part] for part in parts], tokenizer)
        state.step += 1
        state.elapsed_s = before + time.monotonic() - clock
        record = {
            "step": state.step,
            "loss": loss,
            "samples_seen": state.samples_seen,
            "elapsed_s": round(state.elapsed_s, 2),
        }
        state.history.append(record)
        if state.step % arguments.logging_steps == 0 or state.step in (1, total):
            _tell(plan, rank, record)
        if state.step == total:
            _measure(plan, trained, tokenizer)
        saved = state.step % arguments.save_steps == 0 or state.step == total
        if saved:
            _save(trained, rank)
    if not saved:  # The resumed attempt had done all steps.
        _save(trained, rank)


def _measure(plan: WorkerPlan, trained: Trained, tokenizer: Any) -> None:
    """Mean loss over the completion tokens of the validation split, with what was learned."""
    import ray.train
    import torch
    from ray.train.torch import get_device

    if plan.validation_split is None:
        return
    context, arguments, device = ray.train.get_context(), plan.arguments, get_device()
    rows = read_rows(ArtifactStore(object_store()), plan.dataset, plan.validation_split, "fine-tuning")
    mine = [encode(row, tokenizer) for row in rows[context.get_world_rank() :: context.get_world_size()]]
    short = [e for e in mine if len(e.prompt) + len(e.completion) <= arguments.max_length]
    size, sums = arguments.per_device_train_batch_size, [0.0, 0.0]
    trained.model.eval()
    with torch.no_grad():
        for start in range(0, len(short), size):
            batch = collate(short[start : start + size], tokenizer.pad_token_id)
            there = {key: value.to(device) for key, value in batch.items()}
            sums[0] += completion_loss(trained.model, there).item()
            sums[1] += int((there["labels"] != IGNORED).sum())
    trained.model.train()
    loss, tokens = _sum_over_workers([], torch.tensor(sums, device=device, dtype=torch.float64))
    trained.state.valid_loss = round(loss / tokens, 6) if tokens else None


def _step(arguments: TrainingArguments, trained: Trained, parts: list[list[Row]], tokenizer: Any) -> float:
    """One optimiser step over all workers' rows; the mean loss of their completion tokens."""
    import torch
    from ray.train.torch import get_device

    device, weights, state = get_device(), trained.weights, trained.state
    trained.optimizer.zero_grad(set_to_none=True)
    loss = torch.zeros((), device=device)
    tokens, seen, too_long, read = 0, 0, 0, 0
    for part in parts:
        examples = [encode(row, tokenizer) for row in part]
        short = [e for e in examples if len(e.prompt) + len(e.completion) <= arguments.max_length]
        too_long += len(examples) - len(short)
        if not short:
            continue
        batch = {key: value.to(device) for key, value in collate(short, tokenizer.pad_token_id).items()}
        part_loss = completion_loss(trained.model, batch)
        part_loss.backward()
        loss += part_loss.detach()
        tokens += int((batch["labels"] != IGNORED).sum())
        seen += len(short)
        read += int(batch["attention_mask"].sum())
    sums = torch.tensor([loss.item(), tokens, seen, too_long, read], device=device, dtype=torch.float64)
    loss_sum, tokens_sum, seen_sum, too_long_sum, read_sum = _sum_over_workers(weights, sums)
    if not math.isfinite(loss_sum):
        raise RefusedError(
            f"Training diverged: the loss of step {state.step + 1} is no number; lower the learning rate."
        )
    state.samples_seen += int(seen_sum)
    state.tokens_seen += int(read_sum)
    state.too_long += int(too_long_sum)
    if tokens_sum:
        for weight in weights:
            assert weight.grad is not None
            weight.grad /= tokens_sum
        torch.nn.utils.clip_grad_norm_(weights, arguments.max_grad_norm)
        trained.optimizer.step()
    trained.scheduler.step()
    return round(loss_sum / tokens_sum, 6) if tokens_sum else 0.0


def completion_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum of the cross-entropy over completion tokens, with logits of no other tokens.

    Indices and not a number for ``logits_to_keep``: they make a contiguous copy. A slice would be multiplied
    row by row, against an output layer copied for each (37 % of a step's CPU time instead of 10 %).
    """
    import torch

    labels = batch["labels"]
    last, ends = batch["input_ids"].shape[1], labels.shape[1]
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    # The token before predicts: one place to the left of the labels.
    kept = torch.arange(last - ends - 1, last - 1, device=labels.device)
    logits = model(**inputs, logits_to_keep=kept, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(),
        labels.reshape(-1),
        ignore_index=IGNORED,
        reduction="sum",
    )


def _sum_over_workers(weights: list[torch.nn.Parameter], sums: torch.Tensor) -> list[float]:
    """Add up gradients in place, and ``sums``; a worker without rows adds nothing, but takes part."""
    import torch
    from torch import distributed

    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.all_reduce(sums)
        if not weights:
            return [float(value) for value in sums.tolist()]
        flat = torch.cat([weight.grad.reshape(-1) for weight in weights if weight.grad is not None])
        distributed.all_reduce(flat)
        start = 0
        for weight in weights:
            assert weight.grad is not None
            weight.grad.copy_(flat[start : start + weight.numel()].view_as(weight))
            start += weight.numel()
    return [float(value) for value in sums.tolist()]


def _same_everywhere(weights: list[torch.nn.Parameter]) -> None:
    """All workers begin with the first one's weights: equal seeds need not mean equal devices."""
    from torch import distributed

    if distributed.is_initialized() and distributed.get_world_size() > 1:
        for weight in weights:
            distributed.broadcast(weight.data, src=0)


def _save(trained: Trained, rank: int) -> None:
    """Report a checkpoint to Ray Train, which uploads it; every worker must come here."""
    import ray.train
    import torch

    state = trained.state
    metrics = {"step": state.step, "samples_seen": state.samples_seen}
    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as scratch:
        directory = Path(scratch)
        trained.model.save_pretrained(directory / ADAPTER)
        (directory / ADAPTER / "README.md").unlink(missing_ok=True)  # PEFT's empty model card.
        torch.save(
            {"optimizer": trained.optimizer.state_dict(), "scheduler": trained.scheduler.state_dict()},
            directory / OPTIMIZER,
        )
        (directory / STATE).write_text(json.dumps(vars(state)))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(directory))


def _tell(plan: WorkerPlan, rank: int, record: dict[str, Any]) -> None:
    if rank == 0 and plan.progress is not None:
        plan.progress.put(record)
