"""How MLflow is opened here: quickly refused when it is away, quiet, and migrated by one process at a time.

MLflow is imported at first use: it costs seconds and 165 MB.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import httpx
from sqlalchemy import text

from cluster.database import Database
from cluster.errors import MantaError, UnavailableError, UsageError
from cluster.settings import Settings

#: Seconds that a tracking server has to say that it is there.
_HEALTH_TIMEOUT_S = 5.0
#: Error codes with which MLflow tells that what stands behind it is away.
_AWAY = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")


def mlflow_client(settings: Settings) -> Any:
    """An ``MlflowClient`` of ``settings.tracking_uri``; a new database gets its tables (4 to 9 s).

    Raises UnavailableError if it does not answer, UsageError for a database that is not MLflow's alone.
    """
    uri = settings.tracking_uri
    if uri == settings.database_url:
        raise UsageError(
            "MLFLOW_TRACKING_URI and MANTA_DATABASE__URL name one database, and each keeps a table 'runs' in"
            " it: give each a database of its own."
        )
    with told(), Database(settings.database_url).exclusive("mlflow"):
        _check(uri)
        with _quiet():
            from mlflow import MlflowClient

            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            # MLflow opens its stores, and migrates them, with the first call: two at once would collide.
            client.search_registered_models(max_results=1)
            client.search_experiments(max_results=1)
        return client


def pages(search: Any, **arguments: Any) -> Iterator[Any]:
    """All items of one of MLflow's paged searches."""
    token = None
    while True:
        page = search(**arguments, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


@contextmanager
def told() -> Iterator[None]:
    """Tell in one sentence that MLflow is away, or refuses its arguments; bugs keep their traceback."""
    try:
        yield
    except MantaError:
        raise
    except Exception as error:
        _tell(error)


def _tell(error: Exception) -> NoReturn:
    names = {kind.__name__ for kind in type(error).__mro__}
    first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
    code = getattr(error, "error_code", "")
    if names & {"OperationalError", "ConnectionError"} or code in _AWAY:
        raise UnavailableError(f"MLflow does not answer: {first}.") from error
    if code == "INVALID_PARAMETER_VALUE":
        raise UsageError(f"MLflow refuses this: {first}.") from error
    raise error


def _check(uri: str) -> None:
    """Ask once: MLflow itself would try for many minutes before it gives up."""
    if uri.startswith(("http://", "https://")):
        try:
            httpx.get(f"{uri.rstrip('/')}/health", timeout=_HEALTH_TIMEOUT_S)
        except httpx.HTTPError as error:
            raise UnavailableError(
                f"MLflow does not answer at {httpx.URL(uri).copy_with(userinfo=b'')} ({error}):"
                " check MLFLOW_TRACKING_URI."
            ) from None
        return
    if "sql" not in uri.partition("://")[0]:
        raise UsageError(
            "MLFLOW_TRACKING_URI: a registry needs a server (http) or a database (sqlite, postgresql)."
        )
    database = Database(uri)
    with database.read() as connection:
        connection.execute(text("SELECT 1"))
    database.engine.dispose()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the migration's many log lines from users; warnings and errors still show."""
    import mlflow  # noqa: F401 - it sets up its own logging when it is imported.

    names = ("alembic", "alembic.runtime.migration", "mlflow", "mlflow.store.db.utils")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
