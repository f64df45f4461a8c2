"""One bucket behind S3's API: boto3 for control and files, pyarrow for bulk.

Keys are paths without a leading slash. Every failure that a user can cause is a
:class:`cluster.errors.MantaError` of one sentence; nothing here logs or repeats a secret.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, TypeVar

from cluster.errors import NotFoundError, RefusedError, UnavailableError, UsageError
from cluster.settings import StorageSettings, load_settings
from cluster.storage import faults
from cluster.storage.environment import Endpoint, endpoint
from cluster.storage.paths import files_below, join, safe_path
from cluster.storage.patience import Patience

if TYPE_CHECKING:
    import pyarrow.fs

_T = TypeVar("_T")
_MIB = 1024 * 1024
#: S3 deletes at most this many keys a request.
_DELETE_BATCH = 1000
#: Marks each conditional put, so that a retried one recognises its own success.
_PUT_ID = "manta-put-id"


@dataclass(frozen=True)
class StoredObject:
    """One object of a listing."""

    key: str
    bytes: int
    modified: datetime


@dataclass(frozen=True)
class UnfinishedUpload:
    """A multipart upload that was begun and neither finished nor given up: it costs and shows nowhere."""

    key: str
    id: str
    started: datetime


class ObjectStore:
    """One bucket. Safe to share between threads, to fork and to pickle (keys are never pickled).

    :param bucket: name of the bucket.
    :param settings: time limits and tries.
    """

    def __init__(self, bucket: str, settings: StorageSettings) -> None:
        self.bucket = bucket
        self.endpoint: Endpoint = endpoint()
        self._settings = settings
        self._clients: dict[int, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.bucket, self._settings)

    def __repr__(self) -> str:
        return f"ObjectStore({self.bucket!r} at {self.endpoint})"

    # Addresses

    def uri(self, key: str) -> str:
        """``s3://bucket/key``."""
        return f"s3://{self.bucket}/{key}"

    def key(self, uri: str) -> str:
        """The key in an address of this bucket; a bare key stays as it is.

        Raises UsageError for an address of another bucket.
        """
        if "://" not in uri:
            return uri.lstrip("/")
        scheme, _, rest = uri.partition("://")
        bucket, _, key = rest.partition("/")
        if scheme not in ("s3", "s3a") or bucket != self.bucket:
            raise UsageError(
                f"{uri} is not in s3://{self.bucket}: set MANTA_STORAGE__BUCKET or use another address."
            )
        return key

    # Objects

    def get(self, key: str) -> bytes:
        """The object's bytes. Raises NotFoundError."""
        return self._consume(key, b"".join)

    def sha256(self, key: str) -> tuple[str, int]:
        """Hex SHA-256 and size in bytes of the object, read as a stream. Raises NotFoundError."""
        return self._consume(key, _hash)

    def etag(self, key: str) -> str:
        """What S3 tells an object's content by; another one once it is written anew. Raises NotFoundError."""
        with self._told(key):
            return str(self._client.head_object(Bucket=self.bucket, Key=key)["ETag"])

    def chunks(self, key: str) -> Iterator[bytes]:
        """The object's bytes as they come, a MiB at a time. Raises NotFoundError, or what breaks it off."""
        with self._told(key):
            body = self._client.get_object(Bucket=self.bucket, Key=key)["Body"]
        return self._iterate(body, key)

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        try:
            with self._told(key):
                self._client.head_object(Bucket=self.bucket, Key=key)
        except NotFoundError:  # HEAD has no body: a missing bucket looks the same.
            return False
        return True

    def put(self, key: str, data: bytes) -> None:
        """Write one object; readers see the whole of it or what was there before."""
        with self._told(key):
            self._client.put_object(Bucket=self.bucket, Key=key, Body=data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write the object unless one is there (``If-None-Match: *``): of many writers one gets True."""
        put_id = uuid.uuid4().hex
        for _ in range(self._settings.max_attempts):
            try:
                self._client.put_object(
                    Bucket=self.bucket, Key=key, Body=data, IfNoneMatch="*", Metadata={_PUT_ID: put_id}
                )
            except Exception as error:
                code = faults.code_of(error)
                if code in faults.CONFLICT:  # Another put is under way: S3 asks to try again.
                    continue
                if code in faults.EXISTS:
                    break
                self._tell(error, key)
            return True
        winner = self._put_id(key)
        if winner is None:
            raise UnavailableError(f"{self.endpoint} did not decide who writes {self.uri(key)}: try again.")
        # boto3 repeats a put whose answer got lost; the repetition then loses to its own success.
        return winner == put_id

    def list(self, prefix: str, after: str = "", *, directories: bool = False) -> Iterator[StoredObject]:
        """Objects below ``prefix`` in key order, without the empty "directory" objects that others write.

        :param after: list only keys behind this one.
        :param directories: with those too.
        """
        for page in self._pages(Prefix=prefix, **({"StartAfter": after} if after else {})):
            for item in page.get("Contents", ()):
                if directories or not item["Key"].endswith("/"):
                    yield StoredObject(item["Key"], item["Size"], item["LastModified"])

    def folders(self, prefix: str) -> Iterator[str]:
        """The names between ``prefix`` (empty, or ending in ``/``) and the next ``/``."""
        for page in self._pages(Prefix=prefix, Delimiter="/"):
            for item in page.get("CommonPrefixes", ()):
                yield item["Prefix"][len(prefix) : -1]

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are not there do not matter."""
        for batch in _batches(keys, _DELETE_BATCH):
            with self._told(batch[0]):
                answer = self._client.delete_objects(
                    Bucket=self.bucket, Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True}
                )
            for failed in answer.get("Errors", ()):
                if failed.get("Code") not in faults.KEY_ABSENT:
                    raise RefusedError(
                        f"{self.endpoint} does not delete {self.uri(failed['Key'])} ({failed.get('Code')})."
                    )

    def uploads(self, prefix: str = "") -> Iterator[UnfinishedUpload]:
        """Unfinished multipart uploads to keys below ``prefix``."""
        after: dict[str, str] = {}
        while True:
            with self._told(None):
                page = self._client.list_multipart_uploads(Bucket=self.bucket, Prefix=prefix, **after)
            for item in page.get("Uploads", ()):
                yield UnfinishedUpload(item["Key"], item["UploadId"], item["Initiated"])
            if not page.get("IsTruncated"):
                return
            after = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def abort(self, upload: UnfinishedUpload) -> None:
        """Give up a multipart upload, and free its parts; one that has ended meanwhile does not matter."""
        try:
            with self._told(upload.key):
                self._client.abort_multipart_upload(Bucket=self.bucket, Key=upload.key, UploadId=upload.id)
        except NotFoundError:
            return

    # Files, by boto3's transfer manager: in parts and in parallel

    def upload_file(self, path: Path | str, key: str) -> None:
        """Upload one file, in parts if it is large. Raises NotFoundError if there is no such file."""
        self.upload_files([(Path(path), key)])

    def upload_dir(self, directory: Path | str, prefix: str) -> None:
        """Upload every file below ``directory`` to the same path below ``prefix``."""
        root = Path(directory)
        self.upload_files(
            [(path, join(prefix, path.relative_to(root).as_posix())) for path in files_below(root)]
        )

    def upload_files(self, pairs: Sequence[tuple[Path, str]]) -> None:
        """Upload files to keys, several at once. Raises NotFoundError if one is no file."""
        for path, _ in pairs:
            if not path.is_file():
                raise NotFoundError(f"{path} is no file: nothing to upload.")
        with self._told(pairs[0][1] if len(pairs) == 1 else None), self._transfers() as manager:
            waiting = [manager.upload(str(path), self.bucket, key) for path, key in pairs]
            for future in waiting:
                future.result()

    def upload_stream(self, file: BinaryIO, key: str) -> None:
        """Upload a file from where it stands, in parts if it is large; it must be seekable."""
        with self._told(key), self._transfers() as manager:
            manager.upload(file, self.bucket, key).result()

    def download_file(self, key: str, path: Path | str) -> None:
        """Download one object; the file appears whole or not at all. Raises NotFoundError."""
        self._download([(key, Path(path))])

    def download_dir(self, prefix: str, directory: Path | str) -> None:
        """Download everything below ``prefix``. Raises NotFoundError if nothing is there."""
        root = Path(directory)
        prefix = join(prefix, "")
        pairs = tuple((item.key, root / safe_path(item.key[len(prefix) :])) for item in self.list(prefix))
        if not pairs:
            raise NotFoundError(f"{self.endpoint} has nothing below {self.uri(prefix)}: check the address.")
        self._download(pairs)

    def _download(self, pairs: Sequence[tuple[str, Path]]) -> None:
        for _, path in pairs:
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._told(pairs[0][0]), self._transfers() as manager:
            waiting = [manager.download(self.bucket, key, str(path)) for key, path in pairs]
            for future in waiting:
                future.result()

    # Bulk and health

    def filesystem(self) -> pyarrow.fs.S3FileSystem:
        """pyarrow's file system for Ray Data; paths are ``bucket/key``.

        It holds no keys (each process reads AWS_* for itself), so that a pickled plan carries none.
        """
        from cluster.storage.arrow import PatientS3FileSystem

        return PatientS3FileSystem(
            self._settings.max_attempts,
            region=self.endpoint.region,
            scheme=self.endpoint.scheme,
            endpoint_override=self.endpoint.host,
            connect_timeout=self._settings.connect_timeout_s,
            request_timeout=self._settings.read_timeout_s,
            allow_bucket_creation=False,
        )

    def check(self) -> None:
        """Try the keys and the bucket, without waiting through all retries.

        Raises AccessError (wrong keys), UnavailableError (no answer) or NotFoundError (no such bucket).
        """
        with self._told(None):
            # A listing and not HEAD, because only an answer with a body says why it was refused.
            self._new_client(max_attempts=2).list_objects_v2(Bucket=self.bucket, MaxKeys=1)

    # Inside

    @property
    def _client(self) -> Any:
        """This process's client: a forked child must not use its parent's connections."""
        pid = os.getpid()
        if pid not in self._clients:
            # Threads that come here at once make a client each, and all go on with the same one.
            self._clients.setdefault(pid, self._new_client(self._settings.max_attempts))
        return self._clients[pid]

    def _new_client(self, max_attempts: int) -> Any:
        import boto3
        from botocore.config import Config

        config = Config(
            connect_timeout=self._settings.connect_timeout_s,
            read_timeout=self._settings.read_timeout_s,
            retries={"mode": "standard", "total_max_attempts": 1},  # Patience tries again.
            s3={"addressing_style": "path" if self.endpoint.url else "auto"},
            max_pool_connections=32,
            tcp_keepalive=True,
        )
        with self._told(None):
            # A session of its own: boto3's shared default session is not safe between threads.
            client = boto3.session.Session().client(
                "s3", region_name=self.endpoint.region, endpoint_url=self.endpoint.url, config=config
            )
        client.meta.events.register("needs-retry.s3", Patience(max_attempts))
        return client

    @contextmanager
    def _transfers(self) -> Iterator[Any]:
        from boto3.s3.transfer import TransferConfig, create_transfer_manager

        config = TransferConfig(
            multipart_threshold=16 * _MIB, multipart_chunksize=16 * _MIB, max_concurrency=8
        )
        with create_transfer_manager(self._client, config) as manager:
            yield manager

    @contextmanager
    def _told(self, key: str | None) -> Iterator[None]:
        """Turn what boto3 raises into one sentence about ``key`` (None: about the bucket)."""
        try:
            yield
        except Exception as error:
            self._tell(error, key)

    def _tell(self, error: Exception, key: str | None) -> NoReturn:
        told = faults.explain(error, self.endpoint, self.bucket, key)
        if told is None:
            raise error
        raise told from None

    def _pages(self, **arguments: Any) -> Iterator[dict[str, Any]]:
        token: dict[str, str] = {}
        while True:
            with self._told(None):
                page = self._client.list_objects_v2(Bucket=self.bucket, **arguments, **token)
            yield page
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _consume(self, key: str, read: Callable[[Iterator[bytes]], _T]) -> _T:
        """Read an object from its beginning, again if the connection breaks on the way."""
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        for tries_left in reversed(range(self._settings.max_attempts)):
            with self._told(key):  # boto3 repeats the request by itself, but not the reading.
                body = self._client.get_object(Bucket=self.bucket, Key=key)["Body"]
            try:
                with closing(body):
                    return read(body.iter_chunks(_MIB))
            except (HTTPClientError, IncompleteReadError) as error:
                if not tries_left:
                    self._tell(error, key)
            except Exception as error:
                self._tell(error, key)
        raise AssertionError("unreachable: the last try returns or raises")

    def _iterate(self, body: Any, key: str) -> Iterator[bytes]:
        with self._told(key), closing(body):
            yield from body.iter_chunks(_MIB)

    def _put_id(self, key: str) -> str | None:
        try:
            with self._told(key):
                found = self._client.head_object(Bucket=self.bucket, Key=key)
        except NotFoundError:
            return None
        return str(found.get("Metadata", {}).get(_PUT_ID, ""))


def _hash(chunks: Iterable[bytes]) -> tuple[str, int]:
    total, size = hashlib.sha256(), 0
    for chunk in chunks:
        total.update(chunk)
        size += len(chunk)
    return total.hexdigest(), size


def _batches(items: Iterable[str], size: int) -> Iterator[list[str]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


@cache
def object_store() -> ObjectStore:
    """This process's bucket, as settings and AWS_* variables say.

    It asks nothing of the network; :meth:`ObjectStore.check` does.
    """
    settings = load_settings().storage
    return ObjectStore(settings.bucket, settings)
