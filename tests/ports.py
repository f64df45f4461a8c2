"""Free ports for what tests start, below Linux's ephemeral range, so that no client connection takes one.

Each of pytest-xdist's processes has a range of its own: between the search for a port and its use another
process would find it free too.
"""

from __future__ import annotations

import os
import random
import socket
from contextlib import closing

#: Above those that a node's workers get from `ray start`. The S3 server's parts listen 10,000 above theirs.
_FIRST, _LAST = 20_000, 22_500


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
    low, high = _range()
    wanted = (*range(count), *also_at)
    for _ in range(1000):
        first = random.randint(low, high - count)
        if all(is_free(first + distance) for distance in wanted):
            return first
    raise RuntimeError(f"no {count} free ports in a row between {low} and {high}")


def _range() -> tuple[int, int]:
    """The first port of this process, and the one after its last."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    size = (_LAST - _FIRST) // processes
    return _FIRST + number * size, _FIRST + (number + 1) * size
