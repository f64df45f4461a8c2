"""The cluster's jobs, submitted as ``manta submit`` does."""

from __future__ import annotations

from pathlib import Path

from cluster.errors import NotFoundError, RefusedError
from cluster.job.submit import ENDED, status, submit
from cluster.schedule.config import Schedule


class RayJobs:
    """Jobs of the cluster that the environment leads to.

    :param root: the working directory that they get.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

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
            if not self._known(submission_id):
                raise

    def running(self, submission_id: str) -> bool:
        """Whether the job has not ended. Raises UnavailableError or AccessError."""
        try:
            return status(submission_id) not in ENDED
        except NotFoundError:  # Ray remembers jobs for the cluster's life only.
            return False

    def _known(self, submission_id: str) -> bool:
        try:
            status(submission_id)
        except NotFoundError:
            return False
        return True
