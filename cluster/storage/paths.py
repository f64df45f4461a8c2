"""Paths below a prefix of the bucket or below a directory: always relative, never climbing out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cluster.errors import NotFoundError, UsageError


def join(prefix: str, path: str) -> str:
    """``prefix/path`` with exactly one slash between; ``prefix/`` for an empty path."""
    return f"{prefix.rstrip('/')}/{path}" if prefix.rstrip("/") else path


def safe_path(path: str) -> str:
    """The path itself.

    Raises UsageError if it is empty, absolute, ends in a slash or has ``.`` or ``..`` parts.
    """
    if not path or any(part in ("", ".", "..") for part in path.split("/")) or "\\" in path or "\0" in path:
        raise UsageError(f"{path!r} is no path inside an artifact: use a relative one without '.' and '..'.")
    return path


def files_below(directory: Path) -> Iterator[Path]:
    """All files below ``directory``, sorted. Raises NotFoundError if there is no such directory."""
    if not directory.is_dir():
        raise NotFoundError(f"{directory} is no directory: nothing to upload.")
    yield from sorted(path for path in directory.rglob("*") if path.is_file())
