"""A job's run in MLflow. When the tracking server is away the job goes on, and says so once."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

from cluster.settings import Settings


class Tracking:
    """Parameters, metrics and outcome of one run, in the MLflow experiment ``<team>/<verb>``."""

    def __init__(self, opening: Callable[[], tuple[Any, str]]) -> None:
        self._opening: Callable[[], tuple[Any, str]] | None = opening
        self._client: Any = None
        self._run_id = ""

    @classmethod
    def start(
        cls, settings: Settings, verb: str, name: str, parameters: Mapping[str, Any], *, late: bool = False
    ) -> Self:
        """Open an MLflow run called ``name``.

        :param late: open it with the first figures, or at the end, for it costs seconds. Until then MLflow
            does not show it.
        """
        tracking = cls(partial(_open, settings, verb, name, parameters, int(time.time() * 1000)))
        if not late:
            tracking._is_open()
        return tracking

    def metrics(self, values: Mapping[str, float], step: int | None) -> None:
        """Log figures at a step."""
        if not self._is_open():
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        with self._tolerant():
            batch = [Metric(key, float(value), now, step or 0) for key, value in values.items()]
            self._client.log_batch(self._run_id, metrics=batch)

    def end(self, *, succeeded: bool, artifact: str | None) -> None:
        """Close the run."""
        if not self._is_open():
            return
        with self._tolerant():
            if artifact:
                self._client.set_tag(self._run_id, "manta.artifact", artifact)
            self._client.set_terminated(self._run_id, "FINISHED" if succeeded else "FAILED")

    def _is_open(self) -> bool:
        """Whether MLflow records this run; opens it once."""
        opening, self._opening = self._opening, None
        if opening is not None:
            with self._tolerant():
                self._client, self._run_id = opening()
        return self._client is not None

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._client = None
            text = str(error).splitlines()[0][:200] if str(error) else ""
            print(
                f"warning: MLflow does not record this run ({type(error).__name__}: {text}); it goes on.",
                file=sys.stderr,
                flush=True,
            )


def _open(
    settings: Settings, verb: str, name: str, parameters: Mapping[str, Any], started_ms: int
) -> tuple[Any, str]:
    # Imported here: MLflow costs seconds and 165 MB, which a finished artifact need not pay.
    from mlflow.exceptions import MlflowException

    from cluster.mlflow_store import mlflow_client

    client = mlflow_client(settings)
    title = f"{settings.team}/{verb}"
    experiment = client.get_experiment_by_name(title)
    try:
        number = experiment.experiment_id if experiment else client.create_experiment(title)
    except MlflowException:  # Another job made it in between.
        number = client.get_experiment_by_name(title).experiment_id
    tags = {"manta.run_id": name}
    run = client.create_run(number, start_time=started_ms, run_name=name, tags=tags)
    for key, value in parameters.items():
        client.log_param(run.info.run_id, key, str(value)[:500])
    return client, run.info.run_id
