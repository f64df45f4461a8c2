"""Collect what killed and beaten attempts left in storage; ``manta gc`` calls it.

Collected are, once nothing was written to them and no run held them for the age that is asked for:

- attempts at an artifact that has no manifest, and all attempts but the winner's of one that has;
- training checkpoints (``attempts/<run id>.train/``) and answered rows of a batch (``<run id>.rows/``), of
  finished and of killed attempts alike: for so long a killed ``finetune`` or batch can be resumed;
- multipart uploads to an attempt that were begun and never finished;
- parts (artifacts of a kind ``…-part``) that no artifact of their name refers to in its ``parts.json``: those
  of erased datasets and of runs that failed; none while the team has a run, which may use them.

Never touched are the winner's files, and any attempt at an artifact that a run with a live lease is making:
it may be resuming from an older attempt. While an artifact's attempts are deleted no run can start, so that
none finds a checkpoint that is gone a moment later; a lost run is recorded as collected before its first file
goes, so that its process, should it come back, cannot commit the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cluster.contracts import ArtifactRef, Manifest, RunState
from cluster.errors import RefusedError
from cluster.reconcile import reconcile
from cluster.runs import RunRepository
from cluster.storage import PARTS, ArtifactStore, StoredObject
from cluster.storage.attempt import ATTEMPTS, MANIFEST, ROWS, TRAINING, read_record

_READERS = 8
#: How a kind of parts ends.
_PART = "-part"


@dataclass(frozen=True)
class Collected:
    """One attempt's folder, or one unfinished upload, that was deleted (or would be)."""

    path: str
    why: str
    files: int
    bytes: int
    #: When something last happened to it.
    last: datetime


@dataclass(frozen=True)
class _Dead:
    """A folder below ``attempts/`` that looks dead."""

    name: str
    objects: list[StoredObject]

    @property
    def run_id(self) -> str:
        return _run_id(self.name)

    @property
    def written(self) -> datetime:
        return max(item.modified for item in self.objects)


class Collector:
    """One collection.

    :param older_than: how long nothing may have happened to what is collected.
    :param now: for tests.
    """

    def __init__(
        self,
        artifacts: ArtifactStore,
        runs: RunRepository,
        older_than: timedelta,
        *,
        dry_run: bool = False,
        now: datetime | None = None,
    ) -> None:
        self._artifacts, self._store, self._runs = artifacts, artifacts.store, runs
        self._now = now or datetime.now(UTC)
        self._before, self._dry_run = self._now - older_than, dry_run
        self._references: dict[ArtifactRef, frozenset[str]] = {}

    def collect(self, team: str | None = None) -> Iterator[Collected]:
        """Delete what is dead, and tell of each thing.

        :param team: of one team only.

        Raises UnavailableError or AccessError if storage or the database does not answer; what was collected
        until then is.
        """
        reconcile(self._runs, self._artifacts, self._now)
        with ThreadPoolExecutor(_READERS, thread_name_prefix="gc") as pool:
            for ref, dead in pool.map(self._dead, self._artifacts.refs(team)):
                if dead:
                    # Gathered, not passed on one by one: whoever reads must not hold up runs that start.
                    yield from self._attempts(ref, dead)
        yield from self._uploads(team)
        yield from self._parts(team)

    def _parts(self, team: str | None) -> list[Collected]:
        """Whole artifacts that others are made of, and that none is."""
        old = [
            manifest
            for ref in self._artifacts.refs(team)
            if ref.kind.endswith(_PART)
            and (manifest := self._readable(ref))
            and manifest.ended_at < self._before
        ]
        lines = {(m.ref.team, m.ref.kind.removesuffix(_PART), m.ref.name) for m in old}
        self._used(lines)  # Most is read before runs are held up.
        with nullcontext() if self._dry_run else self._runs.no_start():
            busy = {record.owner.team for record in self._runs.list(state=RunState.RUNNING, limit=None)}
            used = self._used(lines)
            dead = [m for m in old if str(m.ref) not in used and m.ref.team not in busy]
            if not self._dry_run:
                # Without its manifest it is an attempt that was left, should this be interrupted.
                self._store.delete(f"{manifest.ref}/{MANIFEST}" for manifest in dead)
                self._store.delete(o.key for m in dead for o in self._store.list(f"{m.ref}/{ATTEMPTS}/"))
        return [
            Collected(
                path=str(manifest.ref),
                why="a part that nothing refers to",
                files=len(manifest.files),
                bytes=sum(file.bytes for file in manifest.files),
                last=manifest.ended_at,
            )
            for manifest in dead
        ]

    def _readable(self, ref: ArtifactRef) -> Manifest | None:
        try:
            return self._artifacts.find(ref)
        except RefusedError:
            return None

    def _used(self, lines: set[tuple[str, str, str]]) -> set[str]:
        """Addresses of the parts that the artifacts of some names refer to."""
        for line in lines:
            for manifest in self._artifacts.list(*line):
                if manifest.ref not in self._references:
                    told = any(file.path == PARTS for file in manifest.files)
                    named = json.loads(self._artifacts.read(manifest, PARTS)) if told else []
                    self._references[manifest.ref] = frozenset(named)
        return {address for named in self._references.values() for address in named}

    def _dead(self, ref: ArtifactRef) -> tuple[ArtifactRef, list[_Dead]]:
        """Folders to which nothing was written for long enough, the winner's excepted."""
        names = list(self._store.folders(f"{ref}/{ATTEMPTS}/"))
        try:
            winner = self._winner(ref) if names else None
        except RefusedError:  # A manifest that is damaged, or a newer Manta's: hands off.
            return ref, []
        found = [
            _Dead(name, list(self._store.list(f"{ref}/{ATTEMPTS}/{name}/", directories=True)))
            for name in names
            if name != winner
        ]
        return ref, [dead for dead in found if dead.objects and dead.written < self._before]

    def _attempts(self, ref: ArtifactRef, dead: list[_Dead]) -> list[Collected]:
        with nullcontext() if self._dry_run else self._runs.no_start():
            # In this order: a run that ends between the two questions has its manifest by the second.
            if self._held(ref.fingerprint):
                return []
            winner = self._winner(ref)
            going = [one for one in dead if one.name != winner and self._may_go(one)]
            if not self._dry_run:
                self._store.delete(item.key for one in going for item in one.objects)
        return [
            Collected(
                path=f"{ref}/{ATTEMPTS}/{one.name}",
                why=_why(one, winner),
                files=len(one.objects),
                bytes=sum(item.bytes for item in one.objects),
                last=one.written,
            )
            for one in going
        ]

    def _held(self, fingerprint: str) -> bool:
        """Whether a run holds a lease on such an artifact; one whose lease has expired is lost by now."""
        return bool(self._runs.list(state=RunState.RUNNING, limit=1, fingerprint=fingerprint))

    def _may_go(self, one: _Dead) -> bool:
        """Whether its run ended long enough ago; one without a record is judged by its files alone."""
        record = self._runs.find(one.run_id)
        if record is None:
            return True
        if record.ended_at is None or record.ended_at >= self._before:
            return False
        if record.state is RunState.LOST and not self._dry_run:
            return self._runs.collect(one.run_id) is not None
        return True

    def _winner(self, ref: ArtifactRef) -> str | None:
        found = read_record(self._store, ref)
        return found.run_id if isinstance(found, Manifest) else None

    def _uploads(self, team: str | None) -> Iterator[Collected]:
        for upload in self._store.uploads(f"{team}/" if team else ""):
            if upload.started >= self._before or not self._dead_upload(upload.key):
                continue
            if not self._dry_run:
                self._store.abort(upload)
            yield Collected(upload.key, "an upload that was never finished", 0, 0, upload.started)

    def _dead_upload(self, key: str) -> bool:
        """Whether it is of an attempt, and of one whose run ended long enough ago; a bucket may be shared."""
        parts = key.split("/")
        try:
            ref = ArtifactRef.parse("/".join(parts[:4]))
        except ValueError:
            return False
        if len(parts) < 7 or parts[4] != ATTEMPTS or self._held(ref.fingerprint):
            return False
        record = self._runs.find(_run_id(parts[5]))
        return record is None or (record.ended_at is not None and record.ended_at < self._before)


def _run_id(folder: str) -> str:
    return folder.removesuffix(TRAINING).removesuffix(ROWS)


def _why(one: _Dead, winner: str | None) -> str:
    for suffix, what in ((TRAINING, "training checkpoints"), (ROWS, "answered rows")):
        if one.name.endswith(suffix):
            return what + ("" if winner is None else " of a finished artifact")
    return "an attempt without a manifest" if winner is None else f"beaten by {winner}"
