"""What a user did wrong, as it is told when a Ray task meets it; the tasks themselves are in tests/data."""

from __future__ import annotations

import pytest
from ray.exceptions import RayTaskError

from cluster.errors import MantaError, NotFoundError, RefusedError
from cluster.job.causes import mistake_in

SENTENCE = "hook mine:lower: there is none; write package.module:function."
RETRIES = (
    "\nFailed to apply UDF transform after 1/1 attempts (total backoff 0.0s)."
    "\nTo change retry attempts, backoff, or which errors are retried, configure it."
)


def of_a_task(error: Exception) -> RayTaskError:
    """As ``ray.get`` raises it."""
    return RayTaskError("task", "Traceback", error, "task", 1, "127.0.0.1").as_instanceof_cause()


@pytest.mark.parametrize("behind", ["", RETRIES])
@pytest.mark.parametrize("kind", [MantaError, RefusedError])
def test_a_sentence_is_told_as_it_was_raised(kind: type[MantaError], behind: str) -> None:
    error = of_a_task(kind(SENTENCE + behind))
    assert str(error) != SENTENCE
    told = mistake_in(error)
    assert type(told) is kind
    assert str(told) == SENTENCE


def test_a_cause_behind_a_cause_is_found() -> None:
    outer = RuntimeError("the task failed")
    outer.__cause__ = of_a_task(of_a_task(NotFoundError(SENTENCE)))
    assert str(mistake_in(outer)) == SENTENCE


def test_a_bug_stays_one() -> None:
    assert mistake_in(of_a_task(ZeroDivisionError("division by zero"))) is None
    own = NotFoundError(SENTENCE)
    assert mistake_in(own) is own
