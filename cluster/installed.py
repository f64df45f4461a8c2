"""Whether this environment holds the platform, or only a client of one."""

from __future__ import annotations

from importlib.util import find_spec

#: What no client has. Looking for them imports nothing.
_PLATFORM = ("boto3", "mlflow", "sqlalchemy")


def missing_platform() -> list[str]:
    """What the platform stands on and this environment lacks; empty where it is installed."""
    return [name for name in _PLATFORM if find_spec(name) is None]
