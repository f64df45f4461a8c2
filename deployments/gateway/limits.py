"""How much a key may use: requests and tokens in any 60 seconds, and requests at once.

Replicas do not ask each other. Of k replicas each grants ``max(1, limit // k)``, from memory alone. Together:

- they never grant more than the limit, or than k if the limit is below k;
- they may grant less: a replica that gets more than its part of a key's requests refuses some early, at worst
  (all come to one) beyond ``limit // k``;
- a request with more tokens than a replica's part, though not more than the limit, is granted if the key used
  none there for a minute: k replicas then grant k such requests a minute at most;
- tokens are reserved by an estimate and corrected when the answer ends, so those at work may use more than
  the limit by what their estimates fell short of;
- a replica that starts has granted nothing yet, and what :class:`ReplicaCount` says is some seconds old: the
  minute in which j replicas become k may see k/j times the limit. Where no key had a limit before, j is 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.contracts import ApiKey, KeyLimits
from deployments.gateway.errors import ApiError

logger = logging.getLogger("ray.serve")
#: What was granted within one second of the clock is forgotten at once, when all of it is a minute old.
_KEPT_S = 61
#: Seconds that a start waits for the count of replicas.
_PATIENCE_S = 2.0


@dataclass
class Mark:
    """What was granted within one second."""

    second: int
    amount: int = 0


class Window:
    """What was granted in the last minute: 60 seconds, up to 61 by the rounding."""

    def __init__(self) -> None:
        self.used = 0
        self._marks: deque[Mark] = deque()

    def forget(self, now: float) -> None:
        """Let go of what is older than a minute at ``now``."""
        while self._marks and self._marks[0].second + _KEPT_S <= now:
            self.used -= self._marks.popleft().amount

    def grant(self, amount: int, now: float) -> Mark:
        """Count ``amount`` at ``now``."""
        if not self._marks or self._marks[-1].second != int(now):
            self._marks.append(Mark(int(now)))
        self._marks[-1].amount += amount
        self.used += amount
        return self._marks[-1]

    def correct(self, mark: Mark, granted: int, used: int, now: float) -> None:
        """Count ``used`` in place of what was granted at ``mark``: less than that then, more now."""
        self.forget(now)
        if used > granted:
            self.grant(used - granted, now)
        elif self._marks and mark.second >= self._marks[0].second:
            mark.amount -= granted - used
            self.used -= granted - used

    def wait_s(self, amount: int, limit: int, now: float) -> int:
        """Seconds until ``amount`` fits, or until all is forgotten if it never does."""
        left, until = self.used, now
        for mark in self._marks:
            if left + amount <= limit:
                break
            left, until = left - mark.amount, mark.second + _KEPT_S
        return max(1, math.ceil(until - now))

    def empty_in_s(self, now: float) -> int:
        """Seconds until all is forgotten."""
        return math.ceil(self._marks[-1].second + _KEPT_S - now) if self.used else 0


@dataclass
class _Use:
    """What one key uses here."""

    requests: Window = field(default_factory=Window)
    tokens: Window = field(default_factory=Window)
    at_work: int = 0


class Admission:
    """One request's part of its key's limits. Leaving the context ends it."""

    def __init__(self, limiter: Limiter, key: ApiKey, use: _Use) -> None:
        self._limiter, self._key, self._use = limiter, key, use
        self._reserved: tuple[Mark, int] | None = None
        #: Tokens that it used in the end.
        self.tokens = 0

    def __enter__(self) -> Admission:
        return self

    def __exit__(self, *_: object) -> None:
        self._use.at_work -= 1
        if self._reserved is not None:
            mark, granted = self._reserved
            self._use.tokens.correct(mark, granted, self.tokens, self._limiter.clock())

    def reserve_tokens(self, estimate: int) -> None:
        """Count ``estimate`` tokens until it is known how many there were. Raises ApiError 429."""
        limit = self._key.limits.tokens_per_minute
        if limit is None:
            return
        now, window = self._limiter.clock(), self._use.tokens
        window.forget(now)
        share = self._limiter.share(limit)
        if estimate > limit or (window.used and window.used + estimate > share):
            wait_s = window.wait_s(estimate, share, now)
            raise self._limiter.refusal(self._key, "tokens", limit, estimate, wait_s)
        self._reserved = window.grant(estimate, now), estimate

    def headers(self) -> dict[str, str]:
        """OpenAI's ``x-ratelimit-*`` headers, for the limits that the key has."""
        return self._limiter.headers(self._key.limits, self._use)


class Limiter:
    """One replica's part of all keys' limits.

    :param replicas: how many replicas there are now.
    :param clock: seconds, monotonic.
    """

    def __init__(self, replicas: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._replicas = replicas
        self._uses: dict[str, _Use] = {}

    def share(self, limit: int) -> int:
        """This replica's part of ``limit``."""
        return max(1, limit // self._replicas())

    def admit(self, key: ApiKey) -> Admission:
        """Count one request of ``key``. Raises ApiError 429 with ``Retry-After``."""
        if key.limits == KeyLimits():
            return Admission(self, key, _Use(at_work=1))
        use = self._uses.setdefault(key.id, _Use())
        now, limits = self.clock(), key.limits
        use.requests.forget(now)
        at_once = limits.concurrent_requests
        if at_once is not None and use.at_work >= self.share(at_once):
            raise self.refusal(key, "concurrent requests", at_once, 1, 1)
        minute = limits.requests_per_minute
        if minute is not None:
            share = self.share(minute)
            if use.requests.used >= share:
                wait_s = use.requests.wait_s(1, share, now)
                raise self.refusal(key, "requests", minute, 1, wait_s)
            use.requests.grant(1, now)
        use.at_work += 1
        return Admission(self, key, use)

    def refusal(self, key: ApiKey, what: str, limit: int, asked: int, wait_s: int) -> ApiError:
        """The answer to a request beyond ``limit``."""
        per = "" if what == "concurrent requests" else " per min"
        where = f"for key {key.id} on {what}{per}: Limit {limit}"
        headers = self.headers(key.limits, self._uses[key.id])
        fits = asked <= limit
        if fits:
            message = f"Rate limit reached {where}, Requested {asked}. Please try again in {wait_s}s."
        else:
            message = f"Request too large {where}, Requested {asked}."
            headers["x-should-retry"] = "false"  # OpenAI's clients try again after any other 429.
        return ApiError(
            429,
            message,
            kind="tokens" if what == "tokens" else "requests",
            code="rate_limit_exceeded",
            retry_after_s=wait_s if fits else None,
            headers=headers,
        )

    def headers(self, limits: KeyLimits, use: _Use) -> dict[str, str]:
        """``x-ratelimit-*``: the key's limits, and what this replica believes that all have left of them."""
        now, found = self.clock(), dict[str, str]()
        parts = (
            ("requests", limits.requests_per_minute, use.requests),
            ("tokens", limits.tokens_per_minute, use.tokens),
        )
        for name, limit, window in parts:
            if limit is None:
                continue
            window.forget(now)
            left = max(0, self.share(limit) - window.used) * self._replicas()
            found[f"x-ratelimit-limit-{name}"] = str(limit)
            # Before anything was used the division's remainder is left, too.
            found[f"x-ratelimit-remaining-{name}"] = str(min(limit, left) if window.used else limit)
            found[f"x-ratelimit-reset-{name}"] = _duration(window.empty_in_s(now))
        return found


def _duration(seconds: int) -> str:
    """As OpenAI writes it: 1m1s, 20s."""
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


class ReplicaCount:
    """How many replicas this deployment has: asked in the background, the last answer kept.

    :param ask: asks Serve; it may wait for long, or raise.
    :param needed: whether anybody wants to know; while not, nobody is asked.
    :param interval_s: seconds between questions.
    """

    def __init__(self, ask: Callable[[], int], needed: Callable[[], bool], interval_s: float) -> None:
        self.value = 1
        self._ask, self._needed, self._interval_s = ask, needed, interval_s
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Ask from now on; waits for the first answer, but not for long."""
        self._task = asyncio.create_task(self._run())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(self._interval_s, _PATIENCE_S)):
                await self._asked.wait()

    async def stop(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            if self._needed():
                try:
                    self.value = max(1, await asyncio.to_thread(self._ask))
                except Exception as error:  # Whatever it is, limits go on with what was known.
                    logger.warning("%d replicas share limits still: %s", self.value, type(error).__name__)
            self._asked.set()
            # The first limit may come at any time, and must not find a count of before.
            await asyncio.sleep(self._interval_s if self._needed() else min(self._interval_s, _PATIENCE_S))
