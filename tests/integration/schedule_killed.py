"""A scheduler that is killed at its first submission: arguments before|after, the file, the working dir."""

import os
import signal
import sys
import time
from pathlib import Path

from cluster.schedule.config import Schedule, load_schedules
from cluster.schedule.ledger import Ledger
from cluster.schedule.ray_jobs import RayJobs
from cluster.schedule.scheduler import Scheduler
from cluster.settings import load_settings

moment, file, root = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])


class Killed(RayJobs):
    """Real jobs, and SIGKILL between a tick's intent and its submission, or between that and its record."""

    def submit(self, schedule: Schedule, submission_id: str) -> None:
        if moment == "after":
            super().submit(schedule, submission_id)
        print(submission_id, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


settings = load_settings()
schedules = load_schedules(file, root)
Scheduler(
    schedules, Ledger(settings.database_url), Killed(root), settings.schedule, say=lambda _: None
).start()
time.sleep(300)
