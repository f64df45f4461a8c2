"""Why a fine-tuning job ends before its model is there."""

from __future__ import annotations

from cluster.contracts.tuning import TuningError


class JobFailedError(Exception):
    """The job ends here, and that is why."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.error = TuningError(code=code, message=message, param=param)


class JobCancelledError(Exception):
    """A client has ended it."""
