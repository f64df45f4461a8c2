"""What every training worker does, on whichever node it runs.

A plain loop and not ``transformers.Trainer``: logits are computed for completion tokens only (a vocabulary of
262,144 makes them the larger part of a step otherwise), the loss is the mean over the completion tokens of
*all* workers (or over their preferences), and each row is seen exactly once an epoch even if the last batch
is uneven. What is learned is the plan's objective.
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
from jobs.training.arguments import LoraArguments, TrainingArguments
from jobs.training.objective import Objective
from jobs.training.order import batches_from, shares
from jobs.training.tokens import Example, collate

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
    objective: Objective[Any]
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
    rows = plan.objective.read(ArtifactStore(object_store()), plan.dataset, plan.split)
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
    model.train(plan.objective.dropout)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=arguments.learning_rate, weight_decay=arguments.weight_decay)
    scheduler = get_scheduler(arguments.lr_scheduler_type, optimizer, arguments.warmup_steps, total)
    if saved is not None:
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
    trained = Trained(model, optimizer, scheduler, state)
    _same_everywhere(trained.weights)
    return trained


def _loop(plan: WorkerPlan, trained: Trained, rows: list[Any], tokenizer: Any, total: int) -> None:
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
        learned = [[rows[index] for index in part] for part in parts]
        loss, figures = _step(arguments, plan.objective, trained, learned, tokenizer)
        state.step += 1
        state.elapsed_s = before + time.monotonic() - clock
        record = {
            "step": state.step,
            "loss": loss,
            **figures,
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
    """Mean loss over the validation split, with what was learned."""
    import ray.train
    import torch
    from ray.train.torch import get_device

    if plan.validation_split is None:
        return
    context, arguments, device = ray.train.get_context(), plan.arguments, get_device()
    rows = plan.objective.read(ArtifactStore(object_store()), plan.dataset, plan.validation_split)
    mine = rows[context.get_world_rank() :: context.get_world_size()]
    short = _short([plan.objective.encode(row, tokenizer) for row in mine], arguments)
    size, sums = arguments.per_device_train_batch_size, [0.0, 0.0]
    trained.model.eval()
    with torch.no_grad():
        for start in range(0, len(short), size):
            there = _batch(short[start : start + size], tokenizer, device)
            measured = plan.objective.loss(trained.model, there)
            sums[0] += measured.loss.item()
            sums[1] += measured.of
    trained.model.train(plan.objective.dropout)
    loss, of = _sum_over_workers([], torch.tensor(sums, device=device, dtype=torch.float64))
    trained.state.valid_loss = round(loss / of, 6) if of else None


def _short(rows: list[list[Example]], arguments: TrainingArguments) -> list[list[Example]]:
    """Rows of which no example is too long."""
    return [
        examples
        for examples in rows
        if all(len(e.prompt) + len(e.completion) <= arguments.max_length for e in examples)
    ]


def _batch(rows: list[list[Example]], tokenizer: Any, device: torch.device) -> dict[str, torch.Tensor]:
    """One forward pass over the examples of some rows, row by row."""
    batch = collate([example for examples in rows for example in examples], tokenizer.pad_token_id)
    return {key: value.to(device) for key, value in batch.items()}


def _step(
    arguments: TrainingArguments,
    objective: Objective[Any],
    trained: Trained,
    parts: list[list[Any]],
    tokenizer: Any,
) -> tuple[float, dict[str, float]]:
    """One optimiser step over all workers' rows; the mean loss, and the means of the objective's figures."""
    import torch
    from ray.train.torch import get_device

    device, weights, state = get_device(), trained.weights, trained.state
    trained.optimizer.zero_grad(set_to_none=True)
    loss = torch.zeros((), device=device)
    of, seen, too_long, read = 0, 0, 0, 0
    figures = [0.0] * len(objective.figures)
    for part in parts:
        rows = [objective.encode(row, tokenizer) for row in part]
        short = _short(rows, arguments)
        too_long += len(rows) - len(short)
        if not short:
            continue
        batch = _batch(short, tokenizer, device)
        measured = objective.loss(trained.model, batch)
        measured.loss.backward()
        loss += measured.loss.detach()
        of += measured.of
        seen += len(short)
        read += int(batch["attention_mask"].sum())
        figures = [one + more for one, more in zip(figures, measured.figures, strict=True)]
    counted = [loss.item(), of, seen, too_long, read, *figures]
    sums = torch.tensor(counted, device=device, dtype=torch.float64)
    loss_sum, of_sum, seen_sum, too_long_sum, read_sum, *figure_sums = _sum_over_workers(weights, sums)
    if not math.isfinite(loss_sum):
        raise RefusedError(
            f"Training diverged: the loss of step {state.step + 1} is no number; lower the learning rate."
        )
    state.samples_seen += int(seen_sum)
    state.tokens_seen += int(read_sum)
    state.too_long += int(too_long_sum)
    if of_sum:
        for weight in weights:
            assert weight.grad is not None
            weight.grad /= of_sum
        torch.nn.utils.clip_grad_norm_(weights, arguments.max_grad_norm)
        trained.optimizer.step()
    trained.scheduler.step()
    mean = {
        name: round(total / of_sum, 6) if of_sum else 0.0
        for name, total in zip(objective.figures, figure_sums, strict=True)
    }
    return round(loss_sum / of_sum, 6) if of_sum else 0.0, mean


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
