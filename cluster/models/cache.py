"""Node-local copies of weights: downloaded once a node, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.contracts import FileEntry, Manifest
from cluster.errors import RefusedError, UnavailableError
from cluster.locks import file_lock
from cluster.settings import load_settings
from cluster.storage import ArtifactStore, ObjectStore, object_store

_PARALLEL_FILES = 4


def models_cache() -> Path:
    """Directory of this node's copies."""
    return load_settings().state_dir / "cache" / "models"


def local_copy(manifest: Manifest) -> Path:
    """The directory on this node that holds the artifact's files, downloaded if need be.

    Equal content is kept once, whatever artifact it belongs to. Processes that ask for the same copy at once
    wait for one download. Every checksum is verified after a download, every size on each call; a copy that
    was damaged meanwhile is replaced. Treat the directory as read-only.

    Raises RefusedError if the artifact is damaged, UnavailableError if storage or the disk fails.
    """
    copy = models_cache() / content_key(manifest)
    if _is_whole(copy, manifest):
        return copy
    with file_lock(copy.with_name(f"{copy.name}.lock")):
        if not _is_whole(copy, manifest):
            _download(manifest, copy)
    return copy


def content_key(manifest: Manifest) -> str:
    """32 hex digits over the files' paths and checksums: what a copy is called."""
    lines = "".join(f"{file.path}\0{file.sha256}\n" for file in manifest.files)
    return hashlib.sha256(lines.encode()).hexdigest()[:32]


def _is_whole(copy: Path, manifest: Manifest) -> bool:
    try:
        return all((copy / file.path).stat().st_size == file.bytes for file in manifest.files)
    except OSError:
        return False


def _download(manifest: Manifest, copy: Path) -> None:
    """Download beside the copy's place, verify, and put it there by one rename. The caller holds the lock."""
    store = object_store()
    prefix = ArtifactStore(store).prefix(manifest)
    partial = copy.with_name(f"{copy.name}.partial")
    _discard(partial)  # A killed process's.
    try:
        with ThreadPoolExecutor(_PARALLEL_FILES, thread_name_prefix="weights") as pool:
            list(pool.map(lambda file: _download_file(store, prefix, file, partial), manifest.files))
        _discard(copy)
        partial.rename(copy)
    except OSError as error:
        why = "the disk is full" if error.errno == errno.ENOSPC else str(error.strerror or error)
        raise UnavailableError(
            f"{manifest.ref} cannot be copied to {copy}: {why}; make room, or set MANTA_HOME elsewhere."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _download_file(store: ObjectStore, prefix: str, file: FileEntry, directory: Path) -> None:
    target = directory / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    store.download_file(prefix + file.path, target)
    with target.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != file.sha256:
            raise RefusedError(f"s3://{store.bucket}/{prefix}{file.path} differs from its checksum.")


def _discard(directory: Path) -> None:
    """Take a directory away at once, so that nobody opens half of it; then delete it."""
    if directory.exists():
        away = directory.with_name(f"{directory.name}.away-{uuid.uuid4().hex[:8]}")
        directory.rename(away)
        shutil.rmtree(away, ignore_errors=True)
