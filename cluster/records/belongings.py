"""What a key left besides records: its files, the copies that were made of them, and its name on batches and
fine-tuning jobs.

A batch and a fine-tuning job that are still under way keep the copies that they have made, and are named:
what comes of them comes later anyway. What was learned from a file is not taken out of a model by deleting
the file, so models are named as well. Of an end user, who owns no file, the files whose lines name it are
named: they are their team's, and hold what others said.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from cluster.batches import BatchRepository
from cluster.contracts import ArtifactRef, Principal
from cluster.contracts.batches import ENDED, BatchRecord
from cluster.contracts.files import FileRecord
from cluster.contracts.tuning import TuningRecord, TuningStatus
from cluster.errors import NotFoundError
from cluster.files import FileRepository
from cluster.records.schema import subject_hash
from cluster.storage import ArtifactStore, ObjectStore
from cluster.storage.attempt import ATTEMPTS
from cluster.tuning import TuningRepository

#: By these a line of a batch names the end user.
_NAMES = ("safety_identifier", "user")


@dataclass(frozen=True)
class Belongings:
    """What is there of one key."""

    files: list[FileRecord] = field(default_factory=list)
    #: That have ended.
    batches: list[BatchRecord] = field(default_factory=list)
    #: That are settled.
    jobs: list[TuningRecord] = field(default_factory=list)
    #: Of those, and of others' that learned from its files: the artifacts with what they read.
    datasets: list[ArtifactRef] = field(default_factory=list)
    #: Keys of all objects in storage that belong to these.
    objects: list[str] = field(default_factory=list)
    #: Names of models that learned from its files, or that it tuned.
    models: list[str] = field(default_factory=list)
    #: Ids of its batches and jobs that have not ended, and of others' jobs that learn from its files.
    under_way: list[str] = field(default_factory=list)
    #: Ids of those files: once they are deleted nothing else leads from the key to others' jobs.
    awaited: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class OnRecord:
    """What SQL knows of keys; read once for however many of them."""

    #: Of those that have files.
    key_ids: list[str]
    #: Theirs alone.
    batches: list[BatchRecord]
    #: Everybody's.
    settled_jobs: list[TuningRecord]
    open_jobs: list[TuningRecord]


class Owned:
    """What keys own in one bucket and one database.

    :param by: who erases.

    Every method raises UnavailableError or AccessError if one of them does not answer.
    """

    def __init__(self, store: ObjectStore, url: str, by: Principal) -> None:
        self._store, self._by = store, by
        self._files, self._batches, self._jobs = (
            FileRepository(url),
            BatchRepository(url),
            TuningRepository(url),
        )

    def load(self, subjects: Collection[str]) -> OnRecord:
        """What SQL knows of the keys with those hashes.

        Raises UnreadableError if some of what is there, be it whose it may, cannot be read.
        """
        return OnRecord(
            [name for name in self._files.key_ids() if _hash(name) in subjects],
            [batch for batch in self._batches.all() if _hash(batch.key_id) in subjects],
            *self._jobs.all(),
        )

    def find(
        self, subject: str, before: datetime, on_record: OnRecord, deleted: Collection[str] = ()
    ) -> Belongings:
        """What the key with that hash left until then.

        :param deleted: ids of its files that are deleted already, from which others' jobs learned.
        """

        def mine(record: BatchRecord | TuningRecord) -> bool:
            return _hash(record.key_id) == subject and record.created_at <= before

        names = [name for name in on_record.key_ids if _hash(name) == subject]
        files = self._files.made_by(names, before)
        ids = {file.id for file in files}.union(deleted)

        def touched(job: TuningRecord) -> bool:
            return mine(job) or not ids.isdisjoint((job.training_file, job.validation_file))

        batches = [batch for batch in on_record.batches if mine(batch)]
        ended = [batch for batch in batches if batch.status in ENDED]
        jobs = [job for job in on_record.settled_jobs if touched(job)]
        others = [job for job in on_record.open_jobs if touched(job)]
        of_others = {
            name for job in others if not mine(job) for name in (job.training_file, job.validation_file)
        }
        artifacts = ArtifactStore(self._store)
        datasets = [ref for job in jobs for ref in artifacts.refs(job.team, "dataset", job.id)]
        folders = [batch.folder for batch in ended] + [f"{ref}/{ATTEMPTS}/" for ref in datasets]
        return Belongings(
            files=files,
            batches=ended,
            jobs=[job for job in jobs if mine(job)],
            datasets=datasets,
            objects=[item.key for folder in folders for item in self._store.list(folder)]
            + [file.key for file in files],
            models=[
                job.tuned_name
                for job in [*jobs, *others]
                if job.status is TuningStatus.SUCCEEDED and (mine(job) or job.training_file in ids)
            ],
            under_way=[batch.id for batch in batches if batch.status not in ENDED]
            + [job.id for job in others],
            awaited=sorted(ids & of_others),
        )

    def erase(self, found: Belongings, pseudonym: Callable[[], str]) -> None:
        """Delete objects, and put a pseudonym in the key's place; whoever is killed midway does it again.

        :param pseudonym: asked only if it is needed.
        """
        artifacts = ArtifactStore(self._store)
        for ref in found.datasets:
            try:
                artifacts.erase(ref, self._by, "its owner's right to erasure")
            except NotFoundError:  # Only tried: there is no manifest.
                self._store.delete(item.key for item in self._store.list(f"{ref}/{ATTEMPTS}/"))
        for batch in found.batches:
            self._store.delete(item.key for item in self._store.list(batch.folder))
            self._batches.forget_key(batch.id, pseudonym())
        # The files last: by them those jobs are found that others began.
        for job in found.jobs:
            self._jobs.forget_key(job.id, pseudonym())
        self._files.erase(found.files, self._store)

    def naming(self, subject: str, team: str) -> list[str]:
        """Ids of that team's files of batches whose lines name an end user, and of what came of these.

        :param subject: the user's hash.
        """
        inputs = [file for file in self._files.list(team, "batch", limit=None) if self._names(file, subject)]
        ids = {file.id for file in inputs}
        made = [
            (batch.output_file_id, batch.error_file_id)
            for batch in self._batches.all()
            if batch.team == team and batch.input_file_id in ids
        ]
        there = {file.id for file in self._files.list(team, "batch_output", limit=None)}
        return [*sorted(ids), *(name for names in made for name in names if name in there)]

    def _names(self, file: FileRecord, subject: str) -> bool:
        with TemporaryDirectory(prefix="erase-") as folder:
            source = Path(folder) / "batch.jsonl"
            try:
                self._store.download_file(file.key, source)
            except NotFoundError:  # Deleted meanwhile.
                return False
            with source.open("rb") as lines:
                bodies = (json.loads(line)["body"] for line in lines if line.strip())
                named = (body.get(name) for body in bodies for name in _NAMES)
                return any(name and subject_hash("user", file.team, str(name)) == subject for name in named)


def _hash(key_id: str) -> str:
    return subject_hash("key", "", key_id)
