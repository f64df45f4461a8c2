"""Which worker sees which row when."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.training.arguments import TrainingArguments
from jobs.training.order import batches_from, epoch_batches, shares

LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=300)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 40), st.integers(0, 5), st.booleans())
def test_an_epoch_has_each_row_once(lengths: list[int], size: int, epoch: int, grouped: bool) -> None:
    batches = epoch_batches(lengths, size, seed=1, epoch=epoch, group_by_length=grouped)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(batch) == size for batch in batches[:-1])


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 5), st.integers(1, 4))
def test_workers_share_a_batch_without_overlap(lengths: list[int], workers: int, micro: int) -> None:
    batch = list(range(len(lengths)))
    parts = [shares(batch, lengths, rank=r, workers=workers, micro_batch=micro) for r in range(workers)]
    assert sorted(row for part in parts for rows in part for row in rows) == batch
    assert all(len(rows) <= micro for part in parts for rows in part)
    sizes = [sum(len(rows) for rows in part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("grouped", [True, False])
def test_a_resumed_run_sees_what_the_whole_run_would(grouped: bool) -> None:
    lengths = [(7 * number) % 90 + 1 for number in range(50)]
    whole = list(islice(batches_from(0, lengths, 8, seed=3, group_by_length=grouped), 30))
    for step in (1, 6, 7, 8, 20):
        rest = list(islice(batches_from(step, lengths, 8, seed=3, group_by_length=grouped), 30 - step))
        assert rest == whole[step:]


def test_epochs_and_seeds_differ_and_equal_seeds_agree() -> None:
    lengths = list(range(1, 65))

    def order(seed: int, epoch: int) -> list[list[int]]:
        return epoch_batches(lengths, 8, seed=seed, epoch=epoch, group_by_length=True)

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_rows_of_like_length_stand_together() -> None:
    lengths = [(37 * number) % 200 + 1 for number in range(640)]

    def padding(grouped: bool) -> int:
        batches = epoch_batches(lengths, 16, seed=1, epoch=0, group_by_length=grouped)
        return sum(max(lengths[r] for r in b) * len(b) - sum(lengths[r] for r in b) for b in batches)

    assert padding(True) < padding(False) / 4


def test_total_steps() -> None:
    arguments = TrainingArguments(per_device_train_batch_size=8, gradient_accumulation_steps=2)
    assert arguments.rows_per_step(workers=2) == 32
    assert arguments.total_steps(rows=65, workers=2) == 3
    assert arguments.model_copy(update={"num_train_epochs": 2.0}).total_steps(65, 2) == 6
    assert arguments.model_copy(update={"max_steps": 5}).total_steps(65, 2) == 5
