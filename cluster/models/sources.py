"""Where base weights come from: the packaged demo model, a directory, S3, or the Hugging Face hub.

Whatever the source, the weights become an artifact of kind ``model``: from there on everything reads them
by address and digest, and nothing depends on the source being there.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster.contracts import ArtifactInput, ArtifactRef, Manifest
from cluster.errors import NotFoundError, UnavailableError, UsageError
from cluster.locks import file_lock
from cluster.models import demo, hub
from cluster.models.cache import models_cache
from cluster.models.files import ModelFiles, check_model, require, taken
from cluster.settings import load_settings
from cluster.storage import ArtifactStore, ObjectStore, fingerprint, object_store

#: Raised when equal sources shall give another artifact.
CODE_EPOCH = 1
KIND = "model"

_ROOT = Path(__file__).resolve().parents[2]
_HUB_ID = re.compile(r"(?P<repository>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Located:
    """A source that exists, not yet fetched."""

    name: str
    #: Recorded as the artifact's input.
    address: str
    #: Stands for the content; equal digests are not fetched again.
    digest: str
    #: Brings it into an HF directory; gets a scratch directory.
    fetch: Callable[[Path], Path]
    what: str
    licence: str | None = None


def ensure_model(source: str, name: str | None = None, progress: Progress | None = None) -> Manifest:
    """The model artifact of a source, made if it is not there.

    :param source: ``demo``; a directory; ``s3://...``; a Hugging Face id (``organisation/name``, with
        ``@revision`` if wanted; HF_TOKEN, HF_HOME and HF_HUB_OFFLINE count); or the address of a model
        artifact, which is only opened.
    :param name: name of the artifact; made from the source if absent.
    :param progress: is told what takes long.

    Raises NotFoundError if there is no such model or it lacks files, AccessError if credentials do not do,
    UnavailableError if the source is away, RefusedError if it is damaged, UsageError for what is no source.
    """
    store = object_store()
    artifacts = ArtifactStore(store)
    if _is_address(source):
        return _open(artifacts, source)
    try:
        located = _locate(source, store)
    except UnavailableError:
        known = _imported_before(artifacts, source, name)
        if known is None:
            raise
        return known
    ref = _ref(located, name)
    found = artifacts.find(ref)
    if found is not None:
        return found
    # One process of this machine imports; another machine's is told from ours by the conditional put.
    with file_lock(models_cache() / f"import-{ref.fingerprint}.lock"):
        return artifacts.find(ref) or _import(artifacts, ref, source, located, progress or _silent)


def find_model(source: str, name: str | None = None) -> tuple[ArtifactRef, Manifest | None]:
    """Where :func:`ensure_model` would have the model, and its manifest if it is there. Imports nothing.

    Raises what :func:`ensure_model` raises when the source is not there.
    """
    store = object_store()
    artifacts = ArtifactStore(store)
    if _is_address(source):
        opened = _open(artifacts, source)
        return opened.ref, opened
    try:
        ref = _ref(_locate(source, store), name)
    except UnavailableError:
        known = _imported_before(artifacts, source, name)
        if known is None:
            raise
        return known.ref, known
    return ref, artifacts.find(ref)


def _ref(located: Located, name: str | None) -> ArtifactRef:
    return ArtifactRef(
        team=load_settings().team,
        kind=KIND,
        name=name or located.name,
        fingerprint=fingerprint(KIND, {}, [located.digest], CODE_EPOCH),
    )


def _import(
    artifacts: ArtifactStore, ref: ArtifactRef, source: str, at: Located, progress: Progress
) -> Manifest:
    from cluster.job.provenance import code_revision, package_versions

    started_at = datetime.now(UTC)
    attempt = artifacts.attempt(ref, f"import-{ref.fingerprint}-{uuid.uuid4().hex[:8]}")
    with tempfile.TemporaryDirectory(dir=models_cache(), prefix="import-") as scratch:
        progress(at.what)
        files = check_model(at.fetch(Path(scratch)), source)
        size = sum((files.root / path).stat().st_size for path in files.paths)
        progress(f"uploading {size / 1e6:.0f} MB of weights as {ref}")
        for path in files.paths:
            attempt.upload(files.root / path, path)
        return attempt.commit(
            owner=load_settings().principal,
            configuration={"source": source, "name": ref.name},
            code=code_revision(CODE_EPOCH),
            started_at=started_at,
            inputs=[ArtifactInput(address=at.address, digest=at.digest)],
            counts=_counts(files, size),
            summary=_summary(files, source, at),
            versions=package_versions(),
        )


def _counts(files: ModelFiles, size: int) -> dict[str, int]:
    counts = {"files": len(files.paths), "bytes": size}
    return counts if files.parameters is None else counts | {"parameters": files.parameters}


def _summary(files: ModelFiles, source: str, located: Located) -> dict[str, Any]:
    return {
        "source": source,
        "architecture": files.architecture,
        "licence": located.licence,
        "licence_files": list(files.licences),
    }


# The sources


def _locate(source: str, store: ObjectStore) -> Located:
    if source == "demo":
        return _demo()
    if source.startswith(("s3://", "s3a://")):
        return _bucket(source, store)
    path = Path(source.removeprefix("file://")).expanduser()
    if source.startswith(("/", ".", "~", "file://")) or (source and path.is_dir()):
        return _directory(path, source)
    return _hub(source)


def _demo() -> Located:
    return Located(
        name=demo.DEMO_MODEL_NAME,
        address=f"pkg:pypi/{demo.DEMO_MODEL_PACKAGE.replace('_', '-')}",
        digest=demo.demo_digest(),
        fetch=_convert_demo,
        what="converting the packaged Gemma 3 270M to safetensors (one to two minutes, once)",
        licence="gemma",
    )


def _convert_demo(scratch: Path) -> Path:
    directory = scratch / "model"
    done = subprocess.run(
        [sys.executable, "-m", "cluster.models.convert", str(directory)],
        cwd=_ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise UnavailableError(f"The demo model cannot be converted: {last[:300]}.")
    return directory


def _directory(path: Path, source: str) -> Located:
    files = check_model(path, source)
    return Located(
        name=_slug(path.resolve().name),
        address=path.resolve().as_uri(),
        digest=files.digest(),
        fetch=lambda scratch: path,
        what=f"taking the model in {path}",
    )


def _bucket(source: str, own: ObjectStore) -> Located:
    bucket, _, prefix = source.partition("://")[2].strip("/").partition("/")
    if not bucket:
        raise UsageError(f"{source!r} names no bucket: write s3://bucket/path.")
    store = own if bucket == own.bucket else ObjectStore(bucket, load_settings().storage)
    address, start = f"s3://{bucket}/{prefix}", f"{prefix}/" if prefix else ""
    objects = {item.key[len(start) :]: item for item in store.list(start)}
    if not objects:
        raise NotFoundError(f"Model {source!r}: there is nothing below this address.")
    paths = taken(objects)
    require(paths, source)
    # What a listing tells suffices to know it again without reading it all.
    lines = [f"{path}\0{objects[path].bytes}\0{objects[path].modified.isoformat()}\n" for path in paths]

    def fetch(scratch: Path) -> Path:
        for path in paths:
            store.download_file(start + path, scratch / "model" / path)
        return scratch / "model"

    return Located(
        name=_slug(prefix.rpartition("/")[2] or bucket),
        address=address,
        digest=hashlib.sha256(f"{address}\n{''.join(lines)}".encode()).hexdigest(),
        fetch=fetch,
        what=f"reading {source}",
    )


def _hub(source: str) -> Located:
    parts = _HUB_ID.fullmatch(source)
    if parts is None:
        raise UsageError(
            f"{source!r} is no model source: write demo, a directory, an s3:// address or organisation/name."
        )
    found = hub.find(parts["repository"], parts["revision"])
    return Located(
        name=_slug(found.repository.rpartition("/")[2]),
        address=f"hf://{found.repository}@{found.commit}",
        digest=hashlib.sha256(f"hf://{found.repository}@{found.commit}".encode()).hexdigest(),
        fetch=lambda scratch: found.fetch(),
        what=f"downloading {found.repository} at {found.commit[:12]} from the Hugging Face hub",
        licence=found.licence,
    )


# Addresses and names


def _is_address(source: str) -> bool:
    try:
        return bool(ArtifactRef.parse(source))
    except ValueError:
        return False


def _open(artifacts: ArtifactStore, address: str) -> Manifest:
    manifest = artifacts.open(address)
    if manifest.ref.kind != KIND:
        raise UsageError(f"{address} is a {manifest.ref.kind}: name an artifact of kind {KIND!r}.")
    return manifest


def _imported_before(artifacts: ArtifactStore, source: str, name: str | None) -> Manifest | None:
    """The newest artifact made from this very source, for when the source itself is away."""
    team = load_settings().team
    made = [m for m in artifacts.list(team, KIND, name) if m.configuration.get("source") == source]
    return max(made, key=lambda manifest: manifest.ended_at, default=None)


def _slug(text: str) -> str:
    slug = re.sub(r"[^a-z0-9._-]+", "-", text.lower())[:63].strip("._-")
    return slug or KIND


def _silent(message: str) -> None:
    """Progress that nobody wants."""
