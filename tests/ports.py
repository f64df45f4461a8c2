"""Free ports for what tests start. Below Linux's ephemeral range, so that no client connection takes one.

Between the look at a port and its use by a server that is starting are seconds. So each port that is given is
locked, as the byte of that number of a common file, until this process ends: no other test process gets it.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import IO

#: Above those that a node's workers get from `ray start`.
_FIRST, _LAST = 20_000, 32_700
#: Given to this process.
_MINE = set[int]()


def is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_ports(count: int = 1, *, also_at: tuple[int, ...] = ()) -> int:
    """The first of ``count`` free ports in a row.

    :param also_at: distances from the first at which a port must be free too.
    """
    wanted = (*range(count), *also_at)
    for _ in range(1000):
        first = random.randint(_FIRST, _LAST - max(wanted))
        ports = [first + distance for distance in wanted]
        if all(map(is_free, ports)) and _lock(ports):
            return first
    raise RuntimeError(f"no {count} free ports in a row between {_FIRST} and {_LAST}")


def _lock(ports: list[int]) -> bool:
    """Whether all of them are this process's now, or were before. If not, none is taken from others."""
    new = set[int]()
    for port in set(ports) - _MINE:
        try:
            fcntl.lockf(_locks(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except OSError:
            for taken in new:
                fcntl.lockf(_locks(), fcntl.LOCK_UN, 1, taken)
            return False
        new.add(port)
    _MINE.update(new)
    return True


@cache
def _locks() -> IO[str]:
    """Opened once: the kernel frees a process's locks when it closes any opening of the file."""
    return (Path(tempfile.gettempdir()) / f"test-ports-{os.getuid()}").open("a")
