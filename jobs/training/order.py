"""Which rows each worker sees in each step: pure functions of seed, lengths and world size.

Every worker computes the same plan and takes its own part, so that nothing has to be sent, each row is seen
once an epoch, and a resumed run goes on with the very row at which the killed one stopped.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

#: Rows are grouped by length within so many steps' rows: less padding, and the order still varies.
_GROUPED_STEPS = 8


def epoch_batches(
    lengths: Sequence[int], rows_per_step: int, *, seed: int, epoch: int, group_by_length: bool
) -> list[list[int]]:
    """One epoch: each row's index once, in batches of ``rows_per_step``; only the last may be smaller."""
    order = list(range(len(lengths)))
    # A string seeds the same on every platform and Python build; a tuple would not.
    rng = random.Random(f"{seed}:{epoch}")  # noqa: S311 - not for secrets
    rng.shuffle(order)
    if not group_by_length:
        return _cut(order, rows_per_step)
    batches, rest = [], list[int]()
    for window in _cut(order, rows_per_step * _GROUPED_STEPS):
        window.sort(key=lambda row: lengths[row])
        whole = len(window) - len(window) % rows_per_step
        batches += _cut(window[:whole], rows_per_step)
        rest += window[whole:]
    rng.shuffle(batches)
    return [*batches, *([rest] if rest else [])]


def batches_from(
    first_step: int, lengths: Sequence[int], rows_per_step: int, *, seed: int, group_by_length: bool
) -> Iterator[list[int]]:
    """The batches of all workers together, epoch after epoch without end; ``first_step`` counts from 0."""
    per_epoch = -(-len(lengths) // rows_per_step)
    epoch, skipped = divmod(first_step, per_epoch)
    while True:
        batches = epoch_batches(
            lengths, rows_per_step, seed=seed, epoch=epoch, group_by_length=group_by_length
        )
        yield from batches[skipped:]
        epoch, skipped = epoch + 1, 0


def shares(
    batch: Sequence[int], lengths: Sequence[int], *, rank: int, workers: int, micro_batch: int
) -> list[list[int]]:
    """A worker's part of a batch, in forward passes of at most ``micro_batch`` rows.

    Rows are dealt in the order of their length, so that all workers have equal work; a worker may get nothing
    of a last, small batch.
    """
    dealt = sorted(batch, key=lambda row: (lengths[row], row))[rank::workers]
    return _cut(dealt, micro_batch)


def _cut(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
