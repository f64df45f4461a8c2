"""A lock between processes of one machine, which the kernel frees when its holder dies."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def file_lock(path: Path, *, make_folder: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on ``path``, waiting for it as long as it takes.

    :param make_folder: make its folder if it is missing; else that raises FileNotFoundError.

    The file stays: to delete it while another waits for it would give the lock to both. Use a
    filesystem of this machine; not every network filesystem keeps such locks. Threads exclude each other
    too, since each call opens the file anew; a second call in the same thread waits for itself for ever.
    """
    if make_folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield  # Closing the file frees the lock.
