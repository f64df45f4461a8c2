"""What a Ray task raised for the user, found in what Ray makes of it."""

from __future__ import annotations

import re

from cluster.errors import MantaError

#: What Ray Data writes behind the message of whatever its tasks raise.
_RETRIES = re.compile(r"\nFailed to .* after \d+/\d+ attempts \(total backoff .*", re.DOTALL)


def mistake_in(error: BaseException) -> MantaError | None:
    """The MantaError that ``error`` is or that a Ray task raised, with its own sentence; None for a bug.

    Ray's error is of the cause's type too, but its text is an account of the task.
    """
    found: BaseException | None = error
    while found is not None:
        cause = getattr(found, "cause", None)
        if isinstance(cause, BaseException):
            found = cause
        elif isinstance(found, MantaError):
            found.args = tuple(_RETRIES.sub("", a) if isinstance(a, str) else a for a in found.args)
            return found
        else:
            found = found.__cause__
    return None
