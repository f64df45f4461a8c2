"""The cluster's jobs, submitted as ``manta submit`` does."""

from __future__ import annotations

import logging
from pathlib import Path

from cluster.errors import NotFoundError, RefusedError
from cluster.job.submit import ENDED, status, submit
from cluster.schedule.config import Schedule

#: They tell at every submission what of the working directory is left out; their levels are set when Ray is
#: imported, filters stay.
_CHATTY = (
    "ray._private.runtime_env.packaging",
    "ray._private.runtime_env.working_dir",
    "ray.dashboard.modules.dashboard_sdk",
)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


class RayJobs:
    """Jobs of the cluster that the environment leads to.

    :param root: the working directory that they get.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        for name in _CHATTY:
            logging.getLogger(name).addFilter(_is_error)

    def submit(self, schedule: Schedule, submission_id: str) -> None:
        """Submit the schedule's job; a job of that id that is there already is this one.

        Raises UnavailableError, AccessError, UsageError or RefusedError.
        """
        try:
            submit(
                schedule.job,
                config=None if schedule.config is None else self._root / schedule.config,
                overrides=schedule.arguments,
                working_dir=self._root,
                submission_id=submission_id,
            )
        except RefusedError:
            if not self.known(submission_id):
                raise

    def running(self, submission_id: str) -> bool:
        """Whether the job has not ended. Raises UnavailableError or AccessError."""
        try:
            return status(submission_id) not in ENDED
        except NotFoundError:  # Ray remembers jobs for the cluster's life only.
            return False

    def known(self, submission_id: str) -> bool:
        """Whether the cluster has the job, ended or not. Raises UnavailableError or AccessError."""
        try:
            status(submission_id)
        except NotFoundError:
            return False
        return True
