"""Free ports for what tests start. Below Linux's ephemeral range, so that no client connection takes one."""

from __future__ import annotations

import random
import socket
from contextlib import closing

#: Above those that a node's workers get from `ray start`.
_FIRST, _LAST = 20_000, 31_000


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
        if all(is_free(first + distance) for distance in wanted):
            return first
    raise RuntimeError(f"no {count} free ports in a row between {_FIRST} and {_LAST}")
