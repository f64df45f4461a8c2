"""Source files: finding, opening and fingerprinting them, on this machine or behind S3."""

from __future__ import annotations

import glob
import hashlib
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any, Literal

from cluster.contracts import ArtifactInput
from cluster.errors import AccessError, MantaError, NotFoundError, RefusedError, UsageError
from cluster.storage import object_store

Format = Literal["csv", "jsonl", "parquet", "arrow", "text"]
FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
#: What ``datasets.Dataset.save_to_disk`` writes beside the data, and what a DatasetDict is known by.
_HF_SIDE_FILES = frozenset({"dataset_info.json", "state.json"})
_HF_DICT = "dataset_dict.json"
COMPRESSED = (".gz", ".bz2", ".zst")
_MIB = 1024 * 1024


@dataclass(frozen=True)
class SourceFile:
    """One file to read."""

    #: As the user names it, and as the row ids are made from.
    address: str
    #: Where a worker finds it: the address, absolute if it is a local path.
    location: str
    format: Format
    #: Its place among all files of the job: earlier files win when rows are equal.
    number: int = 0
    #: The split that all of its rows go to; None if each row is assigned by hash.
    split: str | None = None
    #: SHA-256 of its bytes, and what told that they were those, once it was fingerprinted.
    digest: str | None = None
    stamp: str | None = None

    @property
    def as_input(self) -> ArtifactInput:
        """For a manifest, once it was fingerprinted."""
        assert self.digest is not None
        return ArtifactInput(address=self.address, digest=self.digest)

    @property
    def place(self) -> str:
        """Where the file is, the same however its folder is named."""
        if self.location.startswith("s3://"):
            return self.location
        path = Path(self.location)
        return str(path.parent.resolve() / path.name)


def find_files(address: str) -> list[str]:
    """Addresses of the data files that a path, an ``s3://`` address, a folder or a glob names, sorted.

    A folder may be one that ``datasets.Dataset.save_to_disk`` wrote. Raises NotFoundError when there is none,
    UsageError for the folder of a whole ``DatasetDict``, whose splits are folders of their own.
    """
    found = _find_s3(address) if address.startswith("s3://") else _find_local(address)
    if any(name.rsplit("/", 1)[-1] == _HF_DICT for name in found):
        raise UsageError(f"{address} holds a DatasetDict: name the folder of one of its splits.")
    if len(found) > 1 and not any(character in address for character in "*?["):
        # A README or a LICENSE beside tables is no document of the corpus.
        found = [name for name in found if FORMATS[_suffix(name)] != "text"] or found
    if not found:
        if not address.startswith("s3://") and Path(address).expanduser().is_dir():
            raise NotFoundError(f"{address}: no such file in this folder as {', '.join(FORMATS)}.")
        raise NotFoundError(f"{address}: no such file; sources are local paths, s3:// addresses or globs.")
    return sorted(found)


def file_format(address: str) -> Format:
    """The format by the file's ending. Raises UsageError for an ending that is not known."""
    try:
        return FORMATS[_suffix(address)]
    except KeyError:
        raise UsageError(
            f"{address}: its ending says no known format; use {', '.join(FORMATS)}, "
            f"or one of these and {', '.join(COMPRESSED)}."
        ) from None


def fingerprint_files(files: Sequence[SourceFile]) -> list[SourceFile]:
    """The files with the SHA-256 of their bytes, several read at once.

    Raises NotFoundError, AccessError, UnavailableError or RefusedError (empty file) with one sentence.
    """
    with ThreadPoolExecutor(8, thread_name_prefix="sha256") as pool:
        return list(pool.map(_fingerprinted, files))


def source_file(address: str, number: int, split: str | None) -> SourceFile:
    """Describe one file that :func:`find_files` found. Raises UsageError for an unknown ending."""
    location = address if address.startswith("s3://") else str(Path(address).absolute())
    return SourceFile(address, location, file_format(address), number, split)


@contextmanager
def opened(file: SourceFile) -> Iterator[Any]:
    """The bytes of the file, seekable, as they are.

    Raises RefusedError if they are others than were fingerprinted, or become so while they are read.
    """
    filesystem, path = _located(file.location)
    with _unchanged(file), filesystem.open_input_file(path) as stream:
        yield stream


@contextmanager
def opened_stream(file: SourceFile) -> Iterator[io.BufferedReader]:
    """As :func:`opened`, from the beginning, decompressed if the file's ending says so."""
    filesystem, path = _located(file.location)
    with (
        _unchanged(file),
        filesystem.open_input_stream(path, compression="detect", buffer_size=_MIB) as stream,
    ):
        yield io.BufferedReader(stream, _MIB)


def told(address: str, problem: Exception) -> str:
    """One sentence about a file that cannot be read to its end."""
    if isinstance(problem, MantaError) or type(problem).__name__ == "BrokenLine":
        return str(problem)
    if isinstance(problem, UnicodeDecodeError):
        return f"{address} is not UTF-8 (byte 0x{problem.object[problem.start]:02x}): convert it first."
    if isinstance(problem, FileNotFoundError):
        return f"{address}: no such file; sources are local paths, s3:// addresses or globs."
    why = " ".join(str(problem).split()).rstrip(".")[:200]
    return f"{address} cannot be read: {why or type(problem).__name__}."


@contextmanager
def _unchanged(file: SourceFile) -> Iterator[None]:
    stamp = file.stamp and _verified(file, file.stamp)
    yield
    if stamp:
        _verified(file, stamp)


def _verified(file: SourceFile, stamp: str) -> str:
    """The file's stamp, which is ``stamp`` unless it was written anew, with the same bytes.

    Raises RefusedError if the bytes are others.
    """
    found = _stamp(file.location)
    if found != stamp and _hashed(file.location)[0] != file.digest:
        raise RefusedError(
            f"{file.address} has changed since the job began and took its fingerprint: run the job again."
        )
    return found


def _stamp(location: str) -> str:
    """What changes when a file is written: S3's ETag, or size and time of the last change."""
    if location.startswith("s3://"):
        return object_store().etag(object_store().key(location))
    found = Path(location).stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def _located(address: str) -> tuple[Any, str]:
    from pyarrow import fs

    if address.startswith("s3://"):
        return object_store().filesystem(), address.removeprefix("s3://")
    return fs.LocalFileSystem(), address


def _find_local(address: str) -> list[str]:
    path = Path(address).expanduser()
    if any(character in address for character in "*?["):
        return [name for name in glob.glob(str(path), recursive=True) if Path(name).is_file()]
    if path.is_dir():
        try:
            return [str(p) for p in path.iterdir() if p.is_file() and _is_data(p.name)]
        except PermissionError:
            raise AccessError(f"{address} cannot be read: permission denied.") from None
    return [str(path)] if path.exists() else []


def _find_s3(address: str) -> list[str]:
    store = object_store()
    key = store.key(address)
    first = min((key.index(c) for c in "*?[" if c in key), default=None)
    if first is not None:
        return [store.uri(o.key) for o in store.list(key[:first]) if _matches(o.key, key)]
    if key and not key.endswith("/") and store.exists(key):
        return [address]
    below = [o.key for o in store.list(key if not key or key.endswith("/") else key + "/")]
    return [store.uri(k) for k in below if _is_data(k.rsplit("/", 1)[-1])]


def _is_data(name: str) -> bool:
    """Whether a file of a folder is meant: a README beside the data is not."""
    if name in _HF_SIDE_FILES or name.startswith((".", "_")):
        return False
    return name == _HF_DICT or (_suffix(name) in FORMATS)


def _suffix(address: str) -> str:
    path = Path(address)
    return (Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix).lower()


def _matches(key: str, pattern: str) -> bool:
    # As in a shell, '*' stays within one path segment, and '**' crosses them.
    if "**" in pattern:
        return fnmatchcase(key, pattern)
    parts, patterns = key.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _fingerprinted(file: SourceFile) -> SourceFile:
    address = file.address
    try:
        # The stamp first: if the file changes in between, it is looked at again when it is opened.
        stamp = _stamp(file.location)
        digest, size = _hashed(file.location)
    except FileNotFoundError:
        raise NotFoundError(told(address, FileNotFoundError())) from None
    except PermissionError:
        raise AccessError(f"{address} cannot be read: permission denied.") from None
    except OSError as error:
        raise AccessError(f"{address} cannot be read: {error.strerror}.") from None
    if size == 0:
        raise RefusedError(f"{address} is empty: it has no row.")
    return replace(file, digest=digest, stamp=stamp)


def _hashed(location: str) -> tuple[str, int]:
    """Hex SHA-256 and size of a file."""
    if location.startswith("s3://"):
        return object_store().sha256(object_store().key(location))
    with Path(location).open("rb") as stream:
        return _hash(stream)


def _hash(stream: IO[bytes]) -> tuple[str, int]:
    hasher, size = hashlib.sha256(), 0
    while chunk := stream.read(_MIB):
        hasher.update(chunk)
        size += len(chunk)
    return hasher.hexdigest(), size
