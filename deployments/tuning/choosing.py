"""Hyperparameters that a client leaves to the platform, and how they become a training's arguments."""

from __future__ import annotations

import math

from cluster.contracts.tuning import TuningHyperparameters
from deployments.gateway.args import TuningArgs

#: What OpenAI documents of its own choice: three epochs, more of few examples and fewer of very many.
_EPOCHS, _MOST_EPOCHS, _FEWEST_SEEN, _MOST_SEEN = 3, 25, 100, 25_000
#: A step learns from 0.2 % of the examples, within these.
_SHARE, _SMALLEST_BATCH, _LARGEST_BATCH = 0.002, 8, 256

#: What the DPO paper mostly took, and TRL takes.
_BETA = 0.1


def choose(asked: TuningHyperparameters, examples: int) -> TuningHyperparameters:
    """``asked`` without any auto, for so many examples."""
    epochs, batch, rate = asked.n_epochs, asked.batch_size, asked.learning_rate_multiplier
    if epochs == "auto":
        epochs = _EPOCHS
        if examples * epochs < _FEWEST_SEEN:
            epochs = min(_MOST_EPOCHS, _FEWEST_SEEN // examples)
        elif examples * epochs > _MOST_SEEN:
            epochs = max(1, _MOST_SEEN // examples)
    if batch == "auto":
        wanted = min(_LARGEST_BATCH, max(_SMALLEST_BATCH, round(_SHARE * examples)))
        batch = min(wanted, examples)
    return TuningHyperparameters(
        n_epochs=epochs,
        batch_size=batch,
        learning_rate_multiplier=1.0 if rate == "auto" else rate,
        beta=_BETA if asked.beta == "auto" else asked.beta,
    )


def batches(chosen: TuningHyperparameters, args: TuningArgs) -> tuple[int, int, int]:
    """Workers, rows of one forward pass, and passes of a step: their product is the batch size.

    A preference is two conversations, so half as many of them make one pass: memory is for so much.
    """
    assert isinstance(chosen.batch_size, int)
    workers = math.gcd(chosen.batch_size, args.num_workers)
    share = chosen.batch_size // workers
    most = args.rows_per_pass if chosen.beta is None else max(1, args.rows_per_pass // 2)
    rows = next(rows for rows in range(min(share, most), 0, -1) if share % rows == 0)
    return workers, rows, share // rows
