"""The one way in which every job runs: typed configuration, run record, artifact, result line."""

from cluster.job.command import command
from cluster.job.config import JobConfig
from cluster.job.run import JobResult, JobRun, start_run

__all__ = ["JobConfig", "JobResult", "JobRun", "command", "start_run"]
