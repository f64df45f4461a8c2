"""A job's run in MLflow. When the tracking server is away the job goes on, and says so once."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

from cluster.settings import Settings


class Tracking:
    """Parameters, metrics and outcome of one run, in the MLflow experiment ``<team>/<verb>``."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self._run_id = client, run_id

    @classmethod
    def start(cls, settings: Settings, verb: str, name: str, parameters: Mapping[str, Any]) -> Self:
        """Open an MLflow run called ``name``."""
        tracking = cls(None, "")
        with tracking._tolerant():
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
            run = client.create_run(number, run_name=name, tags={"manta.run_id": name})
            for key, value in parameters.items():
                client.log_param(run.info.run_id, key, str(value)[:500])
            tracking._client, tracking._run_id = client, run.info.run_id
        return tracking

    def metrics(self, values: Mapping[str, float], step: int | None) -> None:
        """Log figures at a step."""
        if self._client is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        with self._tolerant():
            batch = [Metric(key, float(value), now, step or 0) for key, value in values.items()]
            self._client.log_batch(self._run_id, metrics=batch)

    def end(self, *, succeeded: bool, artifact: str | None) -> None:
        """Close the run."""
        if self._client is None:
            return
        with self._tolerant():
            if artifact:
                self._client.set_tag(self._run_id, "manta.artifact", artifact)
            self._client.set_terminated(self._run_id, "FINISHED" if succeeded else "FAILED")

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
