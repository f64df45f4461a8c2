"""pyarrow's S3 file system, as patient in another process as in the one that made it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pyarrow import fs


class PatientS3FileSystem(fs.S3FileSystem):
    """``pyarrow.fs.S3FileSystem`` whose tries outlive pickling.

    pyarrow's own leaves its retry strategy out of what it pickles (26.0.1), so that Ray's workers, and the
    controller of a training, would give up at the third try.

    :param tries: most tries of a request.
    """

    def __init__(self, tries: int, **options: Any) -> None:
        super().__init__(retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=tries), **options)
        self._tries = tries

    def __reduce__(self) -> tuple[Any, ...]:
        _, (options,) = super().__reduce__()
        return self._restore, (self._tries, options)

    @classmethod
    def _restore(cls, tries: int, options: Mapping[str, Any]) -> Self:
        return cls(tries, **options)
