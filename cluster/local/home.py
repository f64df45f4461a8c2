"""The directory of all local state, and the record of what runs."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.errors import RefusedError, UsageError
from cluster.local.s3server import write_private
from cluster.settings import Ports

#: The longest path of a Unix socket on Linux.
_SOCKET_LIMIT = 107
#: What Ray appends to its temp dir: session_<date>_<time>_<micros>_<pid>/sockets/plasma_store.
_SOCKET_TAIL = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")


class Home:
    """Paths below MANTA_HOME."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.credentials = root / "credentials.json"
        self.ray_token = root / "ray-token"
        self.openai_key = root / "openai-key"
        self.s3 = root / "s3"
        self.ray = root / "ray"
        self.registry = root / "registry"
        self.logs = root / "logs"
        self.state = root / "state.json"

    def prepare(self) -> None:
        """Make the directories, closed to others.

        Raises UsageError when the path is too long for Ray's sockets or cannot be written.
        """
        longest = _SOCKET_LIMIT - _SOCKET_TAIL - len("/ray")
        if len(os.fsencode(self.root)) > longest:
            raise UsageError(
                f"MANTA_HOME={self.root} is {len(os.fsencode(self.root))} bytes long and Ray's sockets "
                f"below it allow {longest}: set MANTA_HOME to a shorter path."
            )
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.root.chmod(0o700)
            for folder in (self.s3, self.ray, self.registry, self.logs):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise UsageError(f"MANTA_HOME={self.root} cannot be used: {error.strerror}.") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the home for one `up` or `down`. Raises RefusedError while another one holds it."""
        with (self.root / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RefusedError(
                    f"Another `manta up` or `manta down` is at work on {self.root}: wait for its end."
                ) from None
            yield


class ProcessRef(BaseModel):
    """A process that we started. Its start time tells it from a stranger with the same number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int = Field(ge=1, description="Process id.")
    created: float = Field(description="Start time, seconds since the epoch, as psutil tells it.")


class State(BaseModel):
    """What `manta up` started, so that `down` stops exactly that."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = Field(1, description="Version of this schema.")
    instance: str = Field(description="Random mark in the environment of every process that we started.")
    started_at: datetime = Field(description="UTC time of the start.")
    ports: Ports = Field(description="The ports in use.")
    s3: ProcessRef | None = Field(None, description="The S3 server.")
    ray: list[ProcessRef] = Field(default_factory=list, description="Ray's own processes.")

    @classmethod
    def load(cls, home: Home) -> State | None:
        """Read the record; None if nothing was started. Raises UsageError if it is damaged."""
        try:
            return cls.model_validate_json(home.state.read_bytes())
        except FileNotFoundError:
            return None
        except (ValidationError, OSError):
            raise UsageError(
                f"{home.state} cannot be read: end the processes that still use {home.root} and remove it."
            ) from None

    def save(self, home: Home) -> None:
        """Write the record in one step."""
        write_private(home.state, self.model_dump_json(indent=1))
