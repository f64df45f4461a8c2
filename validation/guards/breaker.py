"""A circuit breaker: a guard that fails again and again is left alone for a while; nobody waits for it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

#: Requests in a row on which a guard has failed, after which it is not asked.
FAILURES = 5
#: Seconds for which it is not asked; then one question tries it.
RESET_S = 5.0


class GuardUnavailableError(Exception):
    """A guard is not asked: it failed too often of late, or has too much to do. Its texts are refused."""


class Breaker:
    """Of one guard. Safe to share between requests of one event loop."""

    def __init__(
        self,
        failures: int = FAILURES,
        reset_s: float = RESET_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = failures
        self._reset_s = reset_s
        self._clock = clock
        self._failed = set[str]()
        self._open_until = 0.0

    def check(self) -> None:
        """Before the guard is asked. Raises GuardUnavailableError while it is not to be."""
        if len(self._failed) < self._most:
            return
        if self._clock() < self._open_until:
            raise GuardUnavailableError
        # Who comes now tries it; all others go on being refused until that is known.
        self._open_until = self._clock() + self._reset_s

    def failed(self, request_id: str) -> None:
        """It failed on a part of that request: however many parts one has, it alone shuts nobody out."""
        self._failed.add(request_id or uuid.uuid4().hex)
        if len(self._failed) >= self._most:
            self._open_until = self._clock() + self._reset_s

    def succeeded(self) -> None:
        """It is well."""
        self._failed.clear()
