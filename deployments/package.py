"""The code of Serve applications: one content-addressed zip in object storage.

Ray fetches it itself (``runtime_env.working_dir: s3://bucket/code/<hash>.zip``), on any node and after a
restart of the head, which forgets what is uploaded to it. Equal code is the same address, so a deployment
that changes no code restarts nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster.errors import NotFoundError
from cluster.storage import ObjectStore

PREFIX = "code/"
#: Nothing of it runs in Serve; without it an edit of a job or a note restarts no model.
_NEVER_SERVED = ("/jobs/", "/*.md", "/Makefile", "/uv.lock")
_TOP = "code"
#: Where jobs that the platform submits itself find the code that was deployed last, and its environment.
_JOBS = "control/jobs.json"


def upload_code(
    root: Path, excludes: Iterable[str], store: ObjectStore, never: Iterable[str] = _NEVER_SERVED
) -> str:
    """Put the code below ``root`` into storage, unless it is there, and return its ``s3://`` address.

    :param excludes: patterns as in ``runtime_env.yaml``, which are those of ``.gitignore``.
    :param never: more of them.
    """
    files = list(code_files(root, excludes, never))
    digest = hashlib.sha256()
    for path in files:
        content = hashlib.sha256((root / path).read_bytes()).hexdigest()
        digest.update(f"{path}\0{content}\n".encode())
    key = f"{PREFIX}{digest.hexdigest()[:32]}.zip"
    if not store.exists(key):
        store.put(key, _zip(root, files))
    return store.uri(key)


def upload_jobs(root: Path, environment: Mapping[str, Any], store: ObjectStore) -> None:
    """Let jobs that the platform submits itself run the code below ``root``; nothing restarts.

    :param environment: the content of ``runtime_env.yaml``.
    """
    address = upload_code(root, environment.get("excludes") or [], store, never=())
    content = {"working_dir": address, "env_vars": environment.get("env_vars") or {}}
    store.put(_JOBS, json.dumps(content).encode())


def jobs_environment(store: ObjectStore) -> dict[str, Any]:
    """``runtime_env`` of such jobs; an empty one, which is the image's code, if none was deployed."""
    try:
        return dict(json.loads(store.get(_JOBS)))
    except NotFoundError:
        return {}


def code_files(root: Path, excludes: Iterable[str], never: Iterable[str] = _NEVER_SERVED) -> Iterator[str]:
    """Paths of the files that belong to the code, sorted."""
    # Ray's own copy of pathspec: the excludes mean here exactly what they mean to Ray.
    from ray._private.thirdparty.pathspec import PathSpec

    excluded = PathSpec.from_lines("gitwildmatch", [*excludes, *never])
    stack, found = [root], []
    while stack:
        for entry in stack.pop().iterdir():
            path = entry.relative_to(root).as_posix()
            if excluded.match_file(f"{path}/" if entry.is_dir() else path):
                continue
            if entry.is_dir():
                stack.append(entry)
            elif entry.is_file():
                found.append(path)
    yield from sorted(found)


def _zip(root: Path, files: Iterable[str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            # Ray takes a sole top-level directory away: give it one, lest it be a package.
            archive.write(root / path, f"{_TOP}/{path}")
    return buffer.getvalue()
