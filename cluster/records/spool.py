"""The spool: lines on this machine's disk, until they are shipped.

::

    <spool>/<writer>/owner.lock          locked as long as the writer lives
    <spool>/<writer>/audit.open          lines of the table, one JSON object each; written to
    <spool>/<writer>/000001.audit.jsonl  closed: to be shipped, then deleted

A line that was appended survives the end of its process, kill -9 included, for the kernel has it then; not
that of the machine, until the segment is closed and synced. Names are never used twice: a writer is new with
each start, and its sequence only rises. Importing this module loads nothing heavy.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cluster.errors import UnavailableError
from cluster.locks import file_lock
from cluster.records.schema import TABLES, TableName

_OWNER = "owner.lock"
_OPEN = ".open"
_CLOSED = ".jsonl"


@dataclass(frozen=True)
class Segment:
    """A closed segment."""

    path: Path
    table: TableName

    @property
    def name(self) -> str:
        """Unique among all writers, ever: ``<writer>-<sequence>``."""
        return f"{self.path.parent.name}-{self.path.name.partition('.')[0]}"


class Spool:
    """One writer's part of the spool at ``root``. For one thread.

    Raises UnavailableError if the folder cannot be written: records would be lost in silence.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / uuid.uuid4().hex[:12]
        self._sequence = 0
        self._open: dict[TableName, int] = {}
        try:
            # Whoever looks for dead writers holds the same lock, so that none is judged before it is born.
            with file_lock(root / "spool.lock"):
                self.folder.mkdir(mode=0o700)
                self._owner: IO[str] = (self.folder / _OWNER).open("w")
                fcntl.flock(self._owner, fcntl.LOCK_EX)
        except OSError as error:
            raise UnavailableError(
                f"The spool of records at {root} cannot be written ({error.strerror}): free it, or name "
                "another folder in the gateway's records.spool."
            ) from None

    def append(self, table: TableName, lines: bytes) -> None:
        """Add whole lines. All of them or none: raises OSError when the disk is full, say."""
        if table not in self._open:
            path = self.folder / f"{table}{_OPEN}"
            self._open[table] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        file = self._open[table]
        before = os.fstat(file).st_size
        view = memoryview(lines)
        try:
            while view:
                view = view[os.write(file, view) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(file, before)
            raise

    def close(self, table: TableName) -> None:
        """Close the table's segment, if there is one, so that it can be shipped."""
        file = self._open.get(table)
        if file is None:
            return
        os.fsync(file)
        os.close(file)
        del self._open[table]
        self._sequence += 1
        _rename(self.folder, table, f"{self._sequence:06d}")

    def waiting_bytes(self, table: TableName) -> int:
        """Bytes of the table that wait in the whole spool, other writers' included."""
        return sum(_size(path) for path in self.root.glob(f"*/*{table}*"))

    def closed(self) -> bool:
        """Whether anything waits to be shipped, a dead writer's segments included."""
        return any(self.root.glob(f"*/*{_CLOSED}")) or any(True for _ in _dead(self.root))

    def end(self) -> None:
        """Close everything. What is not shipped stays for whoever ships next."""
        for table in list(self._open):
            self.close(table)
        self._owner.close()
        sweep(self.root)


def segments(root: Path) -> Iterator[Segment]:
    """All closed segments, oldest first; those that dead writers left open are closed first."""
    for folder in _dead(root):
        _bury(folder)
    for path in sorted(root.glob(f"*/*{_CLOSED}"), key=lambda path: (_modified(path), path.name)):
        table = path.name.split(".")[1]
        if table in TABLES:
            yield Segment(path, table)


def sweep(root: Path) -> None:
    """Remove folders of dead writers that hold nothing more."""
    for folder in _dead(root, empty=True):
        with contextlib.suppress(OSError):
            (folder / _OWNER).unlink(missing_ok=True)
            folder.rmdir()  # Refuses if there is something in it still.


def _dead(root: Path, *, empty: bool = False) -> list[Path]:
    """Folders whose writer is gone and which hold open segments; with ``empty``, nothing at all."""
    found = []
    with file_lock(root / "spool.lock"):
        for lock in root.glob(f"*/{_OWNER}"):
            names = {path.name for path in lock.parent.iterdir()} - {_OWNER}
            wanted = not names if empty else any(name.endswith(_OPEN) for name in names)
            if wanted and not _alive(lock):
                found.append(lock.parent)
    return found


def _alive(lock: Path) -> bool:
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _bury(folder: Path) -> None:
    """Close what a dead writer left open: one segment a table, so that its name is not used twice either."""
    for path in folder.glob(f"*{_OPEN}"):
        _rename(folder, path.name.removesuffix(_OPEN), "last")


def _rename(folder: Path, table: str, sequence: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # Another buries the same dead.
        (folder / f"{table}{_OPEN}").rename(folder / f"{sequence}.{table}{_CLOSED}")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
