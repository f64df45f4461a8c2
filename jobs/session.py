"""The Ray cluster that a job's driver uses."""

from __future__ import annotations

from cluster.errors import UnavailableError


def connect() -> None:
    """Join the cluster that this process belongs to, or that RAY_ADDRESS names.

    Raises UnavailableError if there is none: a job never starts a cluster of its own.
    """
    import ray

    if ray.is_initialized():
        return
    try:
        # Jobs have progress lines of their own; workers' output is in Ray's logs and dashboard.
        ray.init(address="auto", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UnavailableError(
            f"The Ray cluster cannot be reached ({reason}): start it with `manta up`, or set RAY_ADDRESS."
        ) from None
