"""The file that names the schedules, and the check that each of its jobs can be submitted."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from cluster.errors import NotFoundError, UsageError
from cluster.job.config import read_yaml
from cluster.job.submit import entrypoint
from cluster.schedule.cron import Cron
from cluster.settings import describe_validation_error

#: Also a CronJob's name, to which Kubernetes appends eleven characters.
ScheduleName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?$")]


class Schedule(BaseModel):
    """One job that runs again and again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ScheduleName = Field(description="Lower-case letters, digits and hyphens, at most 52.")
    cron: str = Field(
        description="Minute, hour, day of month, month, weekday (by name); with six fields, seconds first."
    )
    time_zone: str = Field("UTC", description="IANA name of the zone in which cron is read.")
    job: str = Field(description="The verb, e.g. batch_inference.")
    config: str | None = Field(None, description="The job's YAML file, from the working directory.")
    arguments: tuple[str, ...] = Field((), description="More words for the job, e.g. [--name, nightly].")
    overlap: Literal["skip", "queue"] = Field(
        "skip",
        description="What a tick does while the job of the one before runs: give up, or wait for its end.",
    )
    catch_up: Literal["none", "latest"] = Field(
        "none", description="What is run of the ticks that no scheduler was there to see."
    )
    misfire_grace_time: int = Field(
        60, ge=1, description="Seconds by which a tick may be late and still count as seen."
    )

    @cached_property
    def when(self) -> Cron:
        """When it ticks."""
        return Cron(self.cron, self.time_zone)

    @property
    def definition(self) -> str:
        """What decides when it ticks: a changed one begins anew, without a past to catch up."""
        return f"{' '.join(self.cron.lower().split())} {self.time_zone}"

    def entrypoint(self, root: Path) -> list[str]:
        """The job's command in the working directory. Raises UsageError."""
        config = None if self.config is None else root / self.config
        try:
            return entrypoint(root, self.job, config, self.arguments)
        except UsageError as error:
            raise UsageError(f"Schedule {self.name}: {error}") from None

    @model_validator(mode="after")
    def _ticks(self) -> Self:
        _ = self.when
        return self


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    schedules: tuple[Schedule, ...] = Field(min_length=1, description="Each with a name of its own.")

    @model_validator(mode="after")
    def _names(self) -> Self:
        names = [schedule.name for schedule in self.schedules]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} is there twice: a schedule's name is its own")
        return self


def load_schedules(path: Path, root: Path) -> tuple[Schedule, ...]:
    """The schedules of a file.

    :param root: the working directory of their jobs, in which verbs and configuration files must be.

    Raises UsageError with one sentence.
    """
    if not path.is_file():
        raise UsageError(f"There is no file {path}: write your schedules there, or name another with --file.")
    try:
        found = _File.model_validate(read_yaml(path)).schedules
    except ValidationError as error:
        raise UsageError(describe_validation_error(error, str(path), _File)) from None
    for schedule in found:
        schedule.entrypoint(root)
    return found


def find_schedule(schedules: Sequence[Schedule], name: str) -> Schedule:
    """The schedule of that name. Raises NotFoundError."""
    for schedule in schedules:
        if schedule.name == name:
            return schedule
    known = ", ".join(schedule.name for schedule in schedules)
    raise NotFoundError(f"There is no schedule {name!r}: choose one of {known}.")


def check_configurations(schedules: Iterable[Schedule], root: Path) -> None:
    """Let every verb read its configuration now (its own ``--dry-run``), not at the first tick.

    Raises UsageError with the verb's own sentence.
    """
    for schedule in schedules:
        _, *words = schedule.entrypoint(root)
        done = subprocess.run(
            [sys.executable, *words, "--dry-run"], cwd=root, capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            sentence = next(
                (line for line in reversed(said) if line.startswith("error: ")), (said or ["?"])[-1]
            )
            raise UsageError(f"Schedule {schedule.name}: {sentence.removeprefix('error: ')}")
