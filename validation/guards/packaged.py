"""Guardrails AI validators from packages (policy kind ``guardrails``), called directly.

Only ``validator.validate(text, metadata)`` is used. Guardrails' own streaming and ``on_fail`` are not: they
drop or leak text, and a crash passes. An ``error_message`` holds the text, so it is never read.

This module imports nothing of guardrails until a validator is loaded. It belongs in the guards deployment
or in a job, never in the gateway's process: a validator may bring hundreds of megabytes, and hold the
interpreter for long.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cluster.contracts import Finding, Segment
from cluster.errors import RefusedError, UsageError
from validation.guards.normalise import View, normalise
from validation.guards.policy import GuardPolicy
from validation.guards.specs import PackagedSpec

_IMPORT_LOCK = threading.Lock()


class PackagedGuards:
    """The packaged validators of one policy, in this process.

    Each has a thread of its own: validators are seldom safe for several. One that hangs keeps its thread;
    the engine's time-out refuses the text, and those that follow it, rather than let them pass.
    """

    def __init__(self, policy: GuardPolicy) -> None:
        self._policy = policy
        self._specs = {spec.name: spec for spec in policy.guards if isinstance(spec, PackagedSpec)}
        self._threads = {
            name: ThreadPoolExecutor(1, thread_name_prefix=f"guard-{name}") for name in self._specs
        }
        self._validators: dict[str, Any] = {}
        #: Guards that are at work, and since when (of time.monotonic).
        self._since: dict[str, float] = {}

    def load(self) -> None:
        """Import and construct every validator now, so that no request waits for it.

        Raises UsageError for a package that is missing, or arguments that its validator refuses.
        """
        for spec in self._specs.values():
            self._validator(spec)

    async def check(self, guard: str, policy_digest: str, segment: Segment) -> list[Finding]:
        """See :class:`validation.guards.engine.RemoteGuards`.

        Raises RefusedError if the caller's policy is not this one; whatever the validator raises.
        """
        self.require(policy_digest)
        (found,) = await self.check_many(guard, [segment])
        if isinstance(found, Exception):
            raise found
        return found

    def require(self, policy_digest: str) -> None:
        """Raises RefusedError if the caller's policy is not this one."""
        if policy_digest != self._policy.digest:
            raise RefusedError(f"this process holds another version of policy {self._policy.name}.")

    async def check_many(self, guard: str, segments: Sequence[Segment]) -> list[list[Finding] | Exception]:
        """What that guard finds in each of several texts, or what its validator raised on it."""
        spec = self._specs[guard]
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads[guard], self._check_many, spec, segments)

    def stuck_s(self) -> float:
        """For how many seconds the slowest judgement at work has been at it."""
        now = time.monotonic()
        return max((now - since for since in list(self._since.values())), default=0.0)

    def close(self) -> None:
        """Let the threads end."""
        for thread in self._threads.values():
            thread.shutdown(wait=False, cancel_futures=True)

    def _check_many(self, spec: PackagedSpec, segments: Sequence[Segment]) -> list[list[Finding] | Exception]:
        found: list[list[Finding] | Exception] = []
        for segment in segments:
            self._since[spec.name] = time.monotonic()
            try:
                found.append(self._check(spec, segment))
            except Exception as error:
                found.append(error)
            finally:
                del self._since[spec.name]
        return found

    def _check(self, spec: PackagedSpec, segment: Segment) -> list[Finding]:
        view = normalise(segment.text, json_escapes=segment.role == "tool_call")
        result = self._validator(spec).validate(view.text, dict(spec.metadata))
        if result.outcome == "pass":
            return []
        label = spec.validator.partition(":")[2]
        return [
            Finding(
                guard=spec.name,
                label=label,
                score=1.0,
                start=start,
                end=end,
                action=spec.action,
                path=segment.path,
                shadow=spec.mode == "shadow",
            )
            for start, end in _spans(result, view)
        ]

    def _validator(self, spec: PackagedSpec) -> Any:
        if spec.name not in self._validators:
            self._validators[spec.name] = load_validator(spec)
        return self._validators[spec.name]


def load_validator(spec: PackagedSpec) -> Any:
    """Import and construct the validator that ``spec`` names, telemetry off.

    Raises UsageError for a package that is missing, or arguments that its validator refuses.
    """
    module_name, _, class_name = spec.validator.partition(":")
    with _IMPORT_LOCK:
        _silence_guardrails(spec)
        try:
            factory = getattr(importlib.import_module(module_name), class_name)
        except ModuleNotFoundError as error:
            package = module_name.replace("_", "-").replace(".", "-")
            raise UsageError(
                f"guard {spec.name}: there is no module {error.name}; install its package, perhaps {package}."
            ) from None
        except AttributeError:
            raise UsageError(f"guard {spec.name}: {module_name} has no {class_name}.") from None
        try:
            # on_fail is never consulted by validate(), and "noop" keeps a validator from raising of its own.
            return factory(**{"on_fail": "noop", **spec.arguments})
        except TypeError as error:
            raise UsageError(f"guard {spec.name}: {class_name} refuses its arguments: {error}.") from None


def _silence_guardrails(spec: PackagedSpec) -> None:
    """Switch telemetry and price downloads off before any validator is imported.

    ``~/.guardrailsrc`` does the same where it says ``enable_metrics=false``; this does it without a file,
    in every process. It must come before the first Validator is constructed, which is when guardrails
    would start its exporter.
    """
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    try:
        from guardrails.settings import settings
    except ModuleNotFoundError:
        raise UsageError(
            f"guard {spec.name}: guardrails-ai is not installed; install manta-llm[platform]."
        ) from None
    settings.rc.enable_metrics = False
    settings.disable_tracing = True


def _spans(result: Any, view: View) -> list[tuple[int, int]]:
    """Where a failed validation points, in code points of the original; all of the text if nowhere valid."""
    size = len(view.text)
    spans = [(span.start, span.end) for span in result.error_spans or ()]
    if not spans or not all(0 <= start < end <= size for start, end in spans):
        return [(0, view.size)]
    return [(view.starts[start], view.ends[end - 1]) for start, end in spans]
