"""One run of a job: its record in SQL, its attempt in storage, its run in MLflow."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cluster.contracts import ArtifactInput, ArtifactRef, CodeRevision, Manifest, RunRecord, RunState
from cluster.errors import MantaError, RefusedError, UnavailableError
from cluster.job.causes import mistake_in
from cluster.job.config import JobConfig
from cluster.job.provenance import code_revision, package_versions, submission_id
from cluster.job.tracking import Tracking
from cluster.reconcile import reconcile
from cluster.runs import RunRepository
from cluster.settings import Settings, load_settings
from cluster.storage import ArtifactStore, Attempt, ObjectStore, fingerprint, object_store
from cluster.storage.faults import explain_arrow

LEASE_S = 60.0
#: `manta gc` collects nothing that was heard of since.
COLLECTED_AFTER_S = 3600.0


class JobResult(BaseModel):
    """What a job answers; the last line that it prints."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    artifact: str = Field(description="Address of what was made.")
    reused: bool = Field(description="True if an equal run had made it before.")
    summary: dict[str, Any] = Field(description="The verb's own figures.")


class JobRun:
    """What a verb's ``run`` works with between start and commit."""

    def __init__(
        self,
        *,
        ref: ArtifactRef,
        config: JobConfig,
        inputs: Sequence[ArtifactInput],
        code: CodeRevision,
        settings: Settings,
        store: ObjectStore,
    ) -> None:
        self.ref = ref
        self.settings = settings
        self.store = store
        self.artifacts = ArtifactStore(store)
        self.done: Manifest | None = self.artifacts.find(ref)
        self.code = code
        self._config, self._inputs = config, inputs
        self._started_at, self._clock = datetime.now(UTC), time.monotonic()
        self._record: RunRecord | None = None
        self._runs: RunRepository | None = None
        #: When the database last took this run for alive.
        self._beaten = time.monotonic()
        self._tracking: Tracking | None = None
        self._attempt: Attempt | None = None
        self._manifest: Manifest | None = None

    @property
    def run_id(self) -> str:
        """``<verb>-<fingerprint>-<attempt>``."""
        assert self._record is not None, "a finished artifact has no new run"
        return self._record.id

    @property
    def attempt(self) -> Attempt:
        """Where this run writes; invisible until :meth:`commit`."""
        assert self._attempt is not None, "a finished artifact has no new attempt"
        return self._attempt

    def earlier(self) -> list[RunRecord]:
        """The attempts at this artifact before this one, newest first, with their states put right.

        Raises UnavailableError if the database or storage does not answer.
        """
        assert self._record is not None, "a finished artifact has no attempts to look for"
        assert self._runs is not None, "a run that writes has a record"
        reconcile(self._runs, self.artifacts)
        found = self._runs.list(self._record.verb, limit=None, fingerprint=self._record.fingerprint)
        return [run for run in found if run.attempt < self._record.attempt and run.artifact == str(self.ref)]

    def progress(self, message: str) -> None:
        """Print one line with the time since the start."""
        print(f"[{time.monotonic() - self._clock:7.1f} s] {message}", flush=True)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send figures to the run's MLflow run."""
        if self._tracking is not None:
            self._tracking.metrics(metrics, step)

    def commit(
        self, *, counts: Mapping[str, int], summary: Mapping[str, Any], data_digest: str | None = None
    ) -> Manifest:
        """Make the attempt visible; of two equal writers one wins, and both get its manifest.

        Raises RefusedError if this run was away so long that its files have been deleted, UnavailableError if
        it was away so long that they may have been and the database does not say.
        """
        self._refuse_collected()
        self._manifest = self.attempt.commit(
            owner=self.settings.principal,
            configuration=self._config.model_dump(mode="json"),
            code=self.code,
            started_at=self._started_at,
            inputs=self._inputs,
            counts=dict(counts),
            data_digest=data_digest,
            summary=dict(summary),
            versions=package_versions(),
        )
        return self._manifest

    def _refuse_collected(self) -> None:
        assert self._runs is not None, "only a run that writes can commit"
        try:
            record = self._runs.find(self.run_id)
        except UnavailableError:
            if time.monotonic() - self._beaten < COLLECTED_AFTER_S:
                return  # An artifact needs storage and nothing else.
            raise  # Unheard of for so long its files may have been collected: a part must not pass for all.
        if record is not None and record.state is RunState.COLLECTED:
            raise RefusedError(
                f"Run {self.run_id} was taken for lost and `manta gc` has deleted its files: run it again."
            )

    def result(self, manifest: Manifest) -> JobResult:
        """The result line for an artifact, made now or found."""
        return JobResult(artifact=str(manifest.ref), reused=self.done is not None, summary=manifest.summary)


def address_of(
    kind: str, config: JobConfig, inputs: Sequence[ArtifactInput], code_epoch: int, team: str
) -> ArtifactRef:
    """Where a run of this configuration on these inputs puts its artifact, or has put it before."""
    made_of = fingerprint(kind, config.meaning(), [item.digest for item in inputs], code_epoch)
    return ArtifactRef(team=team, kind=kind, name=config.name, fingerprint=made_of)


@contextmanager
def start_run(
    verb: str,
    kind: str,
    config: JobConfig,
    *,
    inputs: Sequence[ArtifactInput],
    code_epoch: int,
    tracked_late: bool = False,
) -> Iterator[JobRun]:
    """Open a run of ``verb`` that makes one artifact of ``kind``.

    If an equal artifact exists already the run has :attr:`JobRun.done` and no new run is recorded.
    Otherwise a run record with a lease and an MLflow run are opened, and closed with the outcome. Either way
    what killed runs left in the records is put right first.

    :param tracked_late: open the MLflow run with the first figures or at the end: for jobs that somebody
        waits for, since it costs seconds.

    Raises AccessError, UnavailableError or NotFoundError when storage cannot be used.
    """
    settings, store = load_settings(), object_store()
    store.check()
    ref = address_of(kind, config, inputs, code_epoch, settings.team)
    job = JobRun(
        ref=ref, config=config, inputs=inputs, code=code_revision(code_epoch), settings=settings, store=store
    )
    if job.done is not None:
        job.progress(f"{ref} is there already: equal configuration, inputs and code; nothing to do.")
        _settle_found(settings, job.done)
        yield job
        return
    repository = RunRepository(settings.database_url)
    left = reconcile(repository, job.artifacts)
    for run in left.lost:
        job.progress(f"run {run.id} was lost: its process ended without a word")
    record = repository.start(
        verb,
        ref.fingerprint,
        settings.principal,
        f"{socket.gethostname()}:{os.getpid()}",
        LEASE_S,
        log_address=submission_id(),
        artifact=str(ref),
    )
    job._record, job._runs = record, repository
    job._attempt = job.artifacts.attempt(ref, record.id)
    job.progress(f"run {record.id} makes {ref}")
    parameters = config.model_dump(mode="json")
    job._tracking = Tracking.start(settings, verb, record.id, parameters, late=tracked_late)
    with _recorded(repository, record, job):
        yield job


def _settle_found(settings: Settings, found: Manifest) -> None:
    """The run that made it may have been killed right after its commit; finding it needs no database."""
    try:
        RunRepository(settings.database_url).settle(found.run_id, str(found.ref), found.ended_at)
    except MantaError as error:
        print(f"warning: the records of runs are not reconciled: {error}", file=sys.stderr, flush=True)


@contextmanager
def _recorded(repository: RunRepository, record: RunRecord, job: JobRun) -> Iterator[None]:
    """Keep the lease alive meanwhile, and write down how it ended."""
    assert record.lease is not None
    assert job._tracking is not None
    token, stop = record.lease.token, threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(repository, job, token, stop), daemon=True)
    beat.start()
    state = RunState.FAILED
    message: str | None = "interrupted"
    try:
        yield
        state, message = RunState.SUCCEEDED, None
    except Exception as error:
        told = mistake_in(error) or explain_arrow(error, job.store.endpoint)
        message = str(told) if told else f"{type(error).__name__}: {error}"[:500]
        if told is None or told is error:
            raise
        raise told from None
    finally:
        stop.set()
        beat.join(timeout=5)
        try:
            repository.finish(record.id, token, state, message=message, cost=time.process_time())
        except MantaError as error:
            # What was committed stands, and what failed keeps its own error.
            print(f"warning: how run {record.id} ended is not recorded: {error}", file=sys.stderr, flush=True)
        artifact = str(job._manifest.ref) if job._manifest else None
        job._tracking.end(succeeded=state is RunState.SUCCEEDED, artifact=artifact)


def _heartbeat(repository: RunRepository, job: JobRun, token: int, stop: threading.Event) -> None:
    while not stop.wait(LEASE_S / 3):
        try:
            repository.heartbeat(job.run_id, token)
            job._beaten = time.monotonic()
        except MantaError as error:
            # The commit's conditional put decides who wins; a lost lease is only worth a line.
            print(f"warning: run {job.run_id}: {error}", file=sys.stderr, flush=True)
