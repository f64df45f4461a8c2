"""What a gateway knows: the newest published snapshot, ready for use, and the poller that keeps it so."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from cluster.contracts import ApiKey, KeyLimits, PromptTemplate, Route, Snapshot
from cluster.errors import MantaError
from deployments.gateway.errors import ApiError
from validation.guards import GuardEngine, default_policy, parse_policy
from validation.guards.policy import DEFAULT

logger = logging.getLogger("ray.serve")

#: Makes the engine of a policy; the deployment puts in where packaged guards run.
EngineFactory = Callable[..., GuardEngine]


_PREFIX = 16


@dataclass(frozen=True)
class Secret:
    """A secret by its hash, the key's own or the one before."""

    sha256: str
    key: ApiKey
    valid_until: datetime | None = None


@dataclass(frozen=True)
class View:
    """A snapshot, indexed. Immutable: a request keeps the one it began with."""

    number: int
    secrets: Mapping[str, tuple[Secret, ...]]
    keys: Mapping[str, ApiKey]
    routes: Mapping[str, Route]
    engines: Mapping[str, GuardEngine]
    #: Templates by name@version.
    prompts: Mapping[str, PromptTemplate]
    #: Whether any key has limits.
    limited: bool

    @classmethod
    def of(cls, snapshot: Snapshot, make_engine: EngineFactory, old: View | None = None) -> View:
        """Index ``snapshot``; engines of policies that stayed the same are taken over from ``old``.

        Raises UsageError for a policy that cannot be understood: the whole snapshot is then refused.
        """
        known = {engine.policy.digest: engine for engine in old.engines.values()} if old else {}
        policies = {
            document.name: parse_policy(document.body, f"guard policy {document.name}")
            for document in snapshot.policies
        }
        policies.setdefault(DEFAULT, default_policy())
        return cls(
            number=snapshot.number,
            secrets=_by_prefix(snapshot.keys),
            keys={key.id: key for key in snapshot.keys},
            limited=any(key.limits != KeyLimits() for key in snapshot.keys),
            prompts=snapshot.prompts,
            routes={route.model: route for route in snapshot.routes},
            engines={
                name: known.get(policy.digest) or make_engine(policy) for name, policy in policies.items()
            },
        )

    def key(self, secret: str) -> ApiKey | None:
        """The key with that secret, unless it was revoked or the secret's time is over.

        Hashes are compared, in constant time. Which of them are looked at follows from the hash of what was
        sent: nobody can steer that towards a key's, so how long it takes tells nothing of a secret.
        """
        digest = hashlib.sha256(secret.encode()).hexdigest()
        found = None
        for known in self.secrets.get(digest[:_PREFIX], ()):
            if hmac.compare_digest(known.sha256, digest):
                found = known
        if found is None or found.key.revoked or _is_over(found.valid_until):
            return None
        return found.key

    def key_of(self, key_id: str) -> ApiKey:
        """The key of that id. Raises ApiError 401 if it is gone, revoked or over."""
        key = self.keys.get(key_id)
        if key is None or key.revoked or _is_over(key.expires_at):
            raise ApiError(401, f"Key {key_id} is no longer valid.", code="invalid_api_key")
        return key

    def engine(self, key: ApiKey, route: Route) -> GuardEngine:
        """The guards for this key on this route. Raises ApiError 503: without its policy nothing passes."""
        return self.guards(key, route.policy)

    def guards(self, key: ApiKey, otherwise: str = DEFAULT) -> GuardEngine:
        """The guards for this key, or those of the policy ``otherwise``. Raises ApiError 503, as above."""
        name = key.policy or otherwise
        engine = self.engines.get(name)
        if engine is None:
            raise ApiError(
                503, f"The guard policy '{name}' is not published, so nothing may pass.", kind="server_error"
            )
        return engine


def _by_prefix(keys: Iterable[ApiKey]) -> dict[str, tuple[Secret, ...]]:
    """Every secret that may still be good, under the first characters of its hash."""
    found: dict[str, tuple[Secret, ...]] = {}
    for key in keys:
        secrets = [Secret(key.sha256, key)]
        if key.former is not None:
            secrets.append(Secret(key.former.sha256, key, key.former.valid_until))
        for secret in secrets:
            prefix = secret.sha256[:_PREFIX]
            found[prefix] = (*found.get(prefix, ()), secret)
    return found


def _is_over(moment: datetime | None) -> bool:
    return moment is not None and moment <= datetime.now(UTC)


class Poller:
    """Looks for a newer snapshot every ``interval_s`` seconds and keeps the last good one."""

    def __init__(
        self, read: Callable[[int], Snapshot | None], make_engine: EngineFactory, interval_s: float
    ) -> None:
        self._read = read
        self._make_engine = make_engine
        self._interval_s = interval_s
        self._view: View | None = None
        self._failing = False
        self._task: asyncio.Task[None] | None = None

    @property
    def limited(self) -> bool:
        """Whether any key has limits, as far as is known."""
        return self._view is not None and self._view.limited

    @property
    def view(self) -> View:
        """The newest view. Raises ApiError 503 before the first snapshot was seen."""
        if self._view is None:
            raise ApiError(
                503, "The gateway has no published routes or keys yet.", kind="server_error", retry_after_s=2
            )
        return self._view

    async def start(self) -> None:
        """Look once, then go on in the background."""
        await self.look()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End the background task."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def look(self) -> None:
        """Take the newest snapshot if there is one and it is good."""
        number = self._view.number if self._view else 0
        try:
            snapshot = await asyncio.to_thread(self._read, number)
            if snapshot is not None:
                view = await asyncio.to_thread(View.of, snapshot, self._make_engine, self._view)
                # Who administers keys looks, too: what takes longer to come must not bring revoked ones back.
                if self._view is None or self._view.number < view.number:
                    self._view = view
                    logger.info("Snapshot %d is in use.", snapshot.number)
            self._failing = False
        except MantaError as error:
            self._complain(str(error))
        except Exception as error:  # A poller that dies would freeze revocations.
            self._complain(f"{type(error).__name__}: {error}")

    def _complain(self, message: str) -> None:
        if not self._failing:
            logger.warning(
                "Snapshot %s stays in use: %s", self._view.number if self._view else "(none)", message
            )
        self._failing = True

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self.look()
