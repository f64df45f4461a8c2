"""The sink of records: a bounded queue beside the requests, and one thread that spools and ships.

A request puts a line and goes on: nothing it does waits for a disk or for storage. The thread appends what
was put to the spool on disk at once, closes a table's segment at so many rows or seconds, and starts the
shipper (:mod:`cluster.records.ship`, a process of its own, so that making and sending files costs this one
neither memory nor time) for what is closed. What follows:

- the process is killed: lost is what was put and not yet appended, 20 ms and one write to disk; the next
  replica on this machine ships the rest (of a machine that stops, what the kernel had not written);
- storage is away: segments wait on disk and are shipped afterwards, up to ``spool_max_bytes`` a table;
- the disk is full or the bound is reached: what comes is dropped, counted and told in the log.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster.records import TABLES, Spool, TableName
from deployments.gateway.args import RecordArgs

logger = logging.getLogger("ray.serve")
_ROOT = Path(__file__).parents[2]
#: Seconds between looks at what waits in the spool, and between log lines about what was dropped.
_LOOK_S, _TELL_S = 5.0, 60.0
#: Seconds for which lines are gathered, and so of those that a killed process loses at most.
_GATHER_S = 0.02
#: Seconds after which the thread looks around though nothing was put.
_TICK_S = 0.5
_LONGEST_RETRY_S = 60.0


class RecordSink:
    """One replica's sink. :meth:`put` is for the event loop, the rest for whoever starts and stops it.

    :param root: folder of the machine's spool.
    """

    def __init__(self, args: RecordArgs, root: Path) -> None:
        self._args, self._root = args, root
        self._queue: deque[tuple[TableName, bytes]] = deque()
        # Each counts in one thread alone, so that neither needs a lock.
        self._put_bytes = self._taken_bytes = 0
        self._dropped: Counter[TableName] = Counter()
        self._told: Counter[TableName] = Counter()
        self._look_at = self._tell_at = 0.0
        self._full: frozenset[TableName] = frozenset()
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def dropped(self) -> dict[TableName, int]:
        """Lines of each table that were dropped so far."""
        return dict(self._dropped)

    @property
    def waiting_bytes(self) -> int:
        """Bytes in memory that are not on disk yet."""
        return self._put_bytes - self._taken_bytes

    def put(self, table: TableName, line: bytes) -> bool:
        """Take one line over; False if it had to be dropped. Never waits."""
        if table in self._full or self.waiting_bytes + len(line) > self._args.queue_max_bytes:
            self._dropped[table] += 1
            return False
        self._put_bytes += len(line)
        self._queue.append((table, line))
        if not self._wake.is_set():
            self._wake.set()
        return True

    def start(self) -> None:
        """Begin. Raises UnavailableError if the spool's folder cannot be written."""
        spool = Spool(self._root)
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, args=(spool,), name="records", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Spool what was put, and ship it if that takes at most ``stop_timeout_s``. Waits that long."""
        if self._thread is None:
            return
        self._stopping.set()
        self._wake.set()
        self._thread.join(self._args.stop_timeout_s + 1)
        self._thread = None

    # The thread

    def _run(self, spool: Spool) -> None:
        writer = _Writer(self._args, spool)
        shipper = Shipper(self._root, self._args.retry_s)
        while not self._stopping.is_set():
            self._wake.wait(_TICK_S)
            self._wake.clear()
            try:
                self._turn(spool, writer, shipper)
            except Exception:  # A thread that ends would drop whatever comes.
                logger.exception("Records wait")
                writer.failing = True
            # Under load lines are gathered: each waking of this thread costs the requests' one a little.
            self._stopping.wait(_TICK_S if writer.failing else _GATHER_S)
        self._drain(writer)
        with writer.told():
            spool.end()
            if spool.closed():
                shipper.finish(self._args.stop_timeout_s)
        self._tell()

    def _turn(self, spool: Spool, writer: _Writer, shipper: Shipper) -> None:
        self._drain(writer)
        now = time.monotonic()
        if writer.close_due() or now >= self._look_at:
            self._look_at = now + _LOOK_S
            limit = self._args.spool_max_bytes
            self._full = frozenset(name for name in TABLES if spool.waiting_bytes(name) >= limit)
            shipper.due = shipper.due or spool.closed()
        shipper.turn()
        if now >= self._tell_at and self._dropped != self._told:
            self._tell_at = now + _TELL_S
            self._tell()

    def _drain(self, writer: _Writer) -> None:
        """Append what was put; what the disk does not take stays, as long as memory's bound allows."""
        by_table: dict[TableName, list[bytes]] = {}
        for _ in range(len(self._queue)):
            table, line = self._queue.popleft()
            by_table.setdefault(table, []).append(line)
        for table, lines in by_table.items():
            if writer.write(table, lines):
                self._taken_bytes += sum(map(len, lines))
            else:
                self._queue.extend((table, line) for line in lines)

    def _tell(self) -> None:
        dropped = self._dropped.copy()
        for table, count in (dropped - self._told).items():
            logger.error("%d records of %s were dropped: the spool at %s is full.", count, table, self._root)
        self._told = dropped


class _Writer:
    """Appends to the spool, and closes a table's segment when it is due."""

    def __init__(self, args: RecordArgs, spool: Spool) -> None:
        self._args, self._spool = args, spool
        self._rows: Counter[TableName] = Counter()
        self._since: dict[TableName, float] = {}
        #: Whether the disk refused what came last.
        self.failing = False

    def write(self, table: TableName, lines: Sequence[bytes]) -> bool:
        """Append; False if the disk does not take it."""
        with self.told():
            self._spool.append(table, b"".join(lines))
        if not self.failing:
            self._rows[table] += len(lines)
            self._since.setdefault(table, time.monotonic())
        return not self.failing

    def close_due(self) -> bool:
        """Close the segments that hold enough rows, or are old enough; whether there were any."""
        now, closed = time.monotonic(), False
        for table, since in list(self._since.items()):
            if self._rows[table] >= self._args.file_rows or now - since >= self._args.file_s:
                with self.told():
                    self._spool.close(table)
                    del self._since[table], self._rows[table]
                    closed = True
        return closed

    @contextmanager
    def told(self) -> Iterator[None]:
        """Tell in the log when the disk begins to fail, and do not raise."""
        try:
            yield
            self.failing = False
        except OSError as error:
            if not self.failing:
                logger.error("The spool of records at %s fails: %s.", self._spool.root, error.strerror)
            self.failing = True


class Shipper:
    """Starts the shipping process when there is something to ship, one at a time; waits after a failure."""

    def __init__(self, root: Path, retry_s: float) -> None:
        self._root, self._retry_s = root, retry_s
        self._process: subprocess.Popen[str] | None = None
        self._failures, self._not_before = 0, 0.0
        #: Whether there is something to ship.
        self.due = False

    def turn(self) -> None:
        """Look after the process, and start one if it is time."""
        self._look()
        if self.due and self._process is None and time.monotonic() >= self._not_before:
            self._start()

    def finish(self, timeout_s: float) -> None:
        """Ship all that there is, within the time; a process that needs longer ends by itself."""
        until = time.monotonic() + timeout_s
        self.due = True
        while (self._process is not None or self.due) and time.monotonic() < until:
            if self._process is None:
                self._start()
            assert self._process is not None
            try:
                self._process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                return
            self._look()
            if self._failures:
                return

    def _start(self) -> None:
        self.due = False
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cluster.records.ship", str(self._root)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path},
            text=True,
        )

    def _look(self) -> None:
        if self._process is None or self._process.poll() is None:
            return
        assert self._process.stderr is not None
        said = self._process.stderr.read().strip()
        self._process.stderr.close()
        if self._process.returncode == 0:
            if said:
                logger.warning("Records: %s", said)
            self._failures = 0
        else:
            if not self._failures:
                logger.warning("Records wait on disk: %s", said.rpartition("\n")[2])
            self._failures += 1
            wait_s = min(self._retry_s * 2 ** (self._failures - 1), _LONGEST_RETRY_S)
            self._not_before, self.due = time.monotonic() + wait_s, True
        self._process = None
