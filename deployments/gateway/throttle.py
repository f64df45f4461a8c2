"""Clients that fail to authenticate again and again are told to wait.

Only failures are refused: a good key is let in whatever came from its address before, so nobody can lock
others out, be it from behind the same proxy. Against guessing this adds nothing to the 256 bits of a secret:
it tells broken clients to come less often, and shows who tries.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable

from deployments.gateway.errors import ApiError

logger = logging.getLogger("ray.serve")
_WINDOW_S = 60.0
#: The oldest are forgotten, so that many addresses cannot fill the memory.
_MOST_CLIENTS = 10_000


class FailedAuthentications:
    """Failures of each client in one replica.

    :param per_minute: failures within a minute from one address (of IPv6: from one /64) that get a 401.
    :param clock: seconds, monotonic.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        #: Start of the minute, and failures in it.
        self._clients: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def note(self, address: str) -> None:
        """Count one failure. Raises ApiError 429 with ``Retry-After`` if there were too many."""
        client, now = _client(address), self._clock()
        began, failures = self._clients.get(client, (now, 0))
        if now - began >= _WINDOW_S:
            began, failures = now, 0
            self._clients.pop(client, None)
        self._clients[client] = (began, failures + 1)
        while len(self._clients) > _MOST_CLIENTS:
            self._clients.popitem(last=False)
        if failures < self._per_minute:
            return
        if failures == self._per_minute:
            logger.warning("Authentication failed %d times within a minute from %s.", failures, client)
        raise ApiError(
            429,
            "Too many requests without a valid API key: please check the key.",
            kind="requests",
            code="rate_limit_exceeded",
            retry_after_s=max(1, math.ceil(began + _WINDOW_S - now)),
        )


def _client(address: str) -> str:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped:  # How a socket for both kinds shows clients that came over IPv4.
            return str(ip.ipv4_mapped)
        # Whoever has one address has 2**64 of them.
        return str(ipaddress.ip_network((int(ip) >> 64 << 64, 64)))
    return str(ip)
