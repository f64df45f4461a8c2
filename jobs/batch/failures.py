"""What a failure of a request tells: of the row, of the engine, or of the row that kills the engine."""

from __future__ import annotations

from cluster.contracts import UpstreamError

#: No token for too long; no whole answer in time; the engine died under the request; it was away or failed.
STALLED, TIMEOUT, REPLICA_FAILED, UNAVAILABLE = "stalled", "timeout", "replica_failed", "unavailable"
#: What a replica answers whose engine has died while it lives itself.
ENGINE_STOPPED = "engine_stopped"
#: The row under which the engine died time and again, at last with no other in flight.
POISON = "poison"

#: Error codes that tell of the engine and not of the row: another try, or another day, may go well.
INFRASTRUCTURE = frozenset({STALLED, TIMEOUT, REPLICA_FAILED, UNAVAILABLE, ENGINE_STOPPED})
DEATHS = frozenset({REPLICA_FAILED, ENGINE_STOPPED})


def is_retriable(error: UpstreamError) -> bool:
    """Overload and failures of the server; not what the request itself is wrong about."""
    return error.code != POISON and (error.status >= 500 or error.status in (408, 429))


def stored_code(error: UpstreamError) -> str:
    """The code of a failed row; one of :data:`INFRASTRUCTURE` if it is not the row's own fault."""
    if is_retriable(error):
        return error.code if error.code in INFRASTRUCTURE else UNAVAILABLE
    return error.code or error.type


def is_settled(status: str, code: str) -> bool:
    """Whether a stored row stays as it is; what failed of infrastructure is asked again by the next run."""
    return not (status == "failed" and code in INFRASTRUCTURE)
