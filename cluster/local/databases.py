"""The databases of runs and registry: made once, then left alone."""

from __future__ import annotations

import hashlib
from importlib.metadata import version

from cluster.local.home import Home
from cluster.local.s3server import write_private
from cluster.settings import Settings


def initialise(settings: Settings, home: Home) -> bool:
    """Make both databases unless an earlier call has.

    Returns False when there was nothing to make: MLflow, which takes seconds to import, is not loaded then.
    Raises UnavailableError when a database does not answer.
    """
    from cluster.runs import RunRepository

    RunRepository(settings.database_url)
    stamp = home.registry / "initialised"
    wanted = _digest(settings)
    if stamp.exists() and stamp.read_text() == wanted and _files_exist(settings):
        return False
    from cluster.registry import Registry

    Registry(settings).initialise()
    write_private(stamp, wanted)
    return True


def check(settings: Settings) -> None:
    """Raise UnavailableError unless the runs' database answers."""
    from cluster.runs import RunRepository

    RunRepository(settings.database_url).list(limit=1)


def _digest(settings: Settings) -> str:
    """Changes with the addresses, and with MLflow's version, which may bring a migration."""
    words = (settings.database_url, settings.tracking_uri, version("mlflow-skinny"))
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def _files_exist(settings: Settings) -> bool:
    from sqlalchemy import make_url

    urls = (make_url(url) for url in (settings.database_url, settings.tracking_uri) if "sqlite" in url)
    return all((settings.state_dir / str(url.database)).exists() for url in urls)
