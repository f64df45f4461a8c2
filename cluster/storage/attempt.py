"""One writer's try at an artifact: files first, the manifest last."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cluster.contracts import (
    ArtifactInput,
    ArtifactRef,
    CodeRevision,
    FileEntry,
    Manifest,
    Principal,
    Tombstone,
)
from cluster.errors import NotFoundError, RefusedError, UnavailableError, UsageError
from cluster.storage.client import ObjectStore, StoredObject
from cluster.storage.digest import canonical_json
from cluster.storage.faults import NoBucketError
from cluster.storage.paths import files_below, join, safe_path

ATTEMPTS = "attempts"
MANIFEST = "manifest.json"
#: Ends the name of the folder beside an attempt's in which training keeps its checkpoints.
TRAINING = ".train"
#: Ends the name of the folder beside an attempt's in which a batch keeps its answered rows until its commit.
ROWS = ".rows"
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_READERS = 8
_MIB = 1024 * 1024


class Attempt:
    """Files under ``<ref>/attempts/<run_id>/``, which nobody sees until :meth:`commit`.

    Other writers (Ray Data, Ray Train) may write under :attr:`uri` too. One attempt has one owner: two
    processes that shall race take different run ids.
    """

    def __init__(self, store: ObjectStore, ref: ArtifactRef, run_id: str) -> None:
        if not _RUN_ID.fullmatch(run_id):
            raise UsageError(f"{run_id!r} is no run id: use letters, digits, '.', '_' and '-'.")
        self.ref = ref
        self.run_id = run_id
        self.prefix = f"{ref}/{ATTEMPTS}/{run_id}/"
        self._store = store
        #: What this process wrote itself and need not read back: path to (SHA-256, bytes).
        self._written: dict[str, tuple[str, int]] = {}

    @property
    def uri(self) -> str:
        """``s3://bucket/.../attempts/<run_id>/`` for writers of their own."""
        return self._store.uri(self.prefix)

    def files(self) -> Iterator[StoredObject]:
        """What stands under the attempt now, with whole keys; a resumed run finds its own files here."""
        return self._store.list(self.prefix)

    def write(self, path: str, data: bytes) -> None:
        """Write one file. Raises UsageError for a path that leaves the attempt."""
        self._store.put(self.prefix + safe_path(path), data)
        self._written[path] = (hashlib.sha256(data).hexdigest(), len(data))

    def upload(self, local: Path | str, path: str = "") -> None:
        """Upload a file, or a directory with all below it.

        :param path: where it goes: the file's new path, or the directory's. If empty, the file's own name or
            the attempt's root.

        Raises NotFoundError if there is no such file, RefusedError if a file changes on the way.
        """
        local = Path(local)
        if local.is_dir():
            pairs = [(file, join(path, file.relative_to(local).as_posix())) for file in files_below(local)]
        else:
            pairs = [(local, path or local.name)]
        before = {file: _stamp(file) for file, _ in pairs if file.is_file()}
        self._store.upload_files([(file, self.prefix + safe_path(target)) for file, target in pairs])
        with ThreadPoolExecutor(_READERS, thread_name_prefix="sha256") as pool:
            digests = list(pool.map(_sha256_of_file, (file for file, _ in pairs)))
        for (file, target), digest in zip(pairs, digests, strict=True):
            if _stamp(file) != before[file]:
                raise RefusedError(
                    f"{file} changed while it was uploaded: let its writer finish, then run again."
                )
            self._written[target] = digest

    def clear(self, path: str = "") -> None:
        """Delete what stands under the attempt, or one file or folder in it, before writing it anew."""

        def stays(name: str) -> bool:
            return bool(path) and name != path and not name.startswith(f"{path}/")

        start = self.prefix + (safe_path(path) if path else "")
        names = (item.key[len(self.prefix) :] for item in self._store.list(start))
        self._store.delete(self.prefix + name for name in names if not stays(name))
        self._written = {name: digest for name, digest in self._written.items() if stays(name)}

    def commit(
        self,
        *,
        owner: Principal,
        configuration: Mapping[str, Any],
        code: CodeRevision,
        started_at: datetime,
        inputs: Iterable[ArtifactInput] = (),
        counts: Mapping[str, int] | None = None,
        data_digest: str | None = None,
        summary: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
    ) -> Manifest:
        """Make the attempt the artifact, by one conditional put of its manifest.

        Every file under the attempt gets a size and a SHA-256: taken while writing where this process wrote
        it, else by reading it back.

        :param data_digest: SHA-256 over canonical rows; over the files' paths and checksums if absent.
        :return: the winner's manifest: another's, if another attempt was first.

        Raises RefusedError if the attempt is empty, or if the artifact was erased.
        """
        files = self._entries()
        if not files:
            raise RefusedError(f"Nothing was written under {self.uri}: an artifact needs at least one file.")
        manifest = Manifest(
            ref=self.ref,
            owner=owner,
            run_id=self.run_id,
            data_digest=data_digest or files_digest(files),
            files=files,
            counts=dict(counts or {}),
            inputs=list(inputs),
            configuration=json.loads(canonical_json(configuration)),
            summary=json.loads(canonical_json(summary or {})),
            code=code,
            versions=dict(versions or {}),
            started_at=started_at,
            ended_at=datetime.now(UTC),
        )
        if self._store.put_if_absent(f"{self.ref}/{MANIFEST}", manifest.model_dump_json(indent=1).encode()):
            return manifest
        winner = read_record(self._store, self.ref)
        if isinstance(winner, Tombstone):
            # The erasure may have run before our files came: what was to be erased must not stay.
            self.clear()
            raise RefusedError(told_erased(winner))
        if winner is None:
            raise UnavailableError(
                f"The manifest of {self.ref} came and went: something deletes it; run again."
            )
        return winner

    def _entries(self) -> list[FileEntry]:
        """Every file that stands under the attempt, with its checksum, sorted by path."""

        def entry(item: StoredObject) -> FileEntry:
            path = item.key[len(self.prefix) :]
            digest = self._written.get(path)
            if digest is None or digest[1] != item.bytes:
                digest = self._store.sha256(item.key)
            return FileEntry(path=safe_path(path), bytes=digest[1], sha256=digest[0])

        with ThreadPoolExecutor(_READERS, thread_name_prefix="sha256") as pool:
            files = list(pool.map(entry, self.files()))
        missing = self._written.keys() - {file.path for file in files}
        if missing:
            raise RefusedError(f"{min(missing)} vanished from {self.uri} before the commit: run again.")
        return sorted(files, key=lambda file: file.path)


def files_digest(files: Sequence[FileEntry]) -> str:
    """SHA-256 (hex) over the files' paths and checksums, sorted by path."""
    lines = sorted(f"{file.path}\0{file.sha256}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_record(store: ObjectStore, ref: ArtifactRef) -> Manifest | Tombstone | None:
    """What stands in the manifest's place.

    Raises RefusedError if it is damaged, of a newer schema, or belongs to another address.
    """
    address = store.uri(f"{ref}/{MANIFEST}")
    try:
        data = store.get(store.key(address))
    except NoBucketError:
        raise
    except NotFoundError:
        return None
    try:
        body = json.loads(data)
        state = body.get("state")
        found = (Tombstone if state == "erased" else Manifest).model_validate(body)
    except (ValidationError, ValueError, AttributeError):
        raise RefusedError(
            f"{address} is not a manifest of schema 1: it is damaged, or a newer Manta wrote it."
        ) from None
    if found.ref != ref:
        raise RefusedError(f"{address} belongs to {found.ref}: artifacts are not copied by hand.")
    return found


def told_erased(tombstone: Tombstone) -> str:
    """The sentence for who comes to an erased artifact."""
    return (
        f"Artifact {tombstone.ref} was erased by {tombstone.erased_by.key_id}"
        f" on {tombstone.erased_at:%Y-%m-%d} ({tombstone.reason.rstrip('.')}):"
        " it cannot be read or made again."
    )


def _stamp(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_mtime_ns, stat.st_size


def _sha256_of_file(file: Path) -> tuple[str, int]:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest(), file.stat().st_size
