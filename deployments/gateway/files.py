"""``/v1/files``: uploads, each whole or not there, owned by the key's team.

The upload goes to this machine's disk as it comes, is checked line by line, and then goes to object storage.
SQL and storage are asked in threads, by these endpoints alone.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from cluster.contracts import ApiKey
from cluster.contracts.files import UPLOAD_PURPOSES, FilePurpose, FileRecord, UploadPurpose
from cluster.errors import MantaError
from deployments.gateway.args import GatewayArgs
from deployments.gateway.errors import ApiError, from_validation
from deployments.gateway.lines import LineLimits, check_lines
from deployments.gateway.threads import in_thread, waited

if TYPE_CHECKING:
    from cluster.files import FileRepository
    from cluster.storage import ObjectStore

_MIB = 1024 * 1024
#: What a form needs beside the file.
_FORM_BYTES = 64 * 1024


class ListQuery(BaseModel):
    """Query of ``GET /v1/files``."""

    model_config = ConfigDict(extra="forbid")

    purpose: FilePurpose | None = None
    after: str | None = Field(None, max_length=64)
    limit: int = Field(10_000, ge=1, le=10_000)
    order: Literal["asc", "desc"] = "desc"


class UploadForm(BaseModel):
    """Fields beside the file."""

    model_config = ConfigDict(extra="forbid")

    purpose: UploadPurpose
    expires_anchor: Literal["created_at"] | None = Field(None, alias="expires_after[anchor]")
    expires_s: int | None = Field(None, alias="expires_after[seconds]", ge=3600, le=30 * 24 * 3600)


class Files:
    """The endpoints.

    :param authenticate: the key of who asks; raises ApiError 401.
    """

    def __init__(self, args: GatewayArgs, authenticate: Callable[[Request], ApiKey]) -> None:
        self._args = args
        self._authenticate = authenticate
        self._uploads = 0

    @property
    def routes(self) -> list[Route]:
        """For the application."""
        return [
            Route("/v1/files", self.create, methods=["POST"]),
            Route("/v1/files", self.list, methods=["GET"]),
            Route("/v1/files/{file_id}", self.retrieve, methods=["GET"]),
            Route("/v1/files/{file_id}", self.delete, methods=["DELETE"]),
            Route("/v1/files/{file_id}/content", self.content, methods=["GET"]),
        ]

    async def create(self, request: Request) -> Response:
        """``POST /v1/files``."""
        key = self._authenticate(request)
        with self._place():
            form = await _read_form(request, self._args.max_file_bytes, self._args.body_timeout_s)
            try:
                upload, fields = _upload_of(form)
                key = self._authenticate(request)  # Sending may take long; it may be revoked since.
                record = await in_thread(
                    lambda: self._keep(key, upload, fields), refused=(403, "quota_exceeded")
                )
            finally:
                await form.close()
        return JSONResponse(_card(record))

    async def list(self, request: Request) -> Response:
        """``GET /v1/files``."""
        key = self._authenticate(request)
        try:
            query = ListQuery.model_validate(dict(request.query_params))
        except ValidationError as error:
            raise from_validation(error) from None
        found = await in_thread(
            lambda: self._repository.list(
                key.team,
                query.purpose,
                after=query.after,
                limit=query.limit + 1,
                newest_first=query.order == "desc",
            )
        )
        data = [_card(record) for record in found[: query.limit]]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
        more = len(found) > query.limit
        return JSONResponse({"object": "list", "data": data, **ends, "has_more": more})

    async def retrieve(self, request: Request) -> Response:
        """``GET /v1/files/{id}``."""
        return JSONResponse(_card(await self._find(request)))

    async def delete(self, request: Request) -> Response:
        """``DELETE /v1/files/{id}``."""
        record = await self._find(request)
        await in_thread(lambda: self._repository.delete(record.id, record.team, self._store))
        return JSONResponse({"id": record.id, "object": "file", "deleted": True})

    async def content(self, request: Request) -> Response:
        """``GET /v1/files/{id}/content``."""
        record = await self._find(request)
        chunks = await in_thread(lambda: self._store.chunks(record.key))
        first = await in_thread(lambda: next(chunks, b""))  # What fails until here is an error answer.
        return StreamingResponse(
            _rest(first, chunks),
            media_type="application/octet-stream",
            headers={"content-length": str(record.bytes)},
        )

    async def _find(self, request: Request) -> FileRecord:
        key, file_id = self._authenticate(request), request.path_params["file_id"]
        return await in_thread(lambda: self._repository.get(file_id, key.team))

    def _keep(self, key: ApiKey, upload: UploadFile, fields: UploadForm) -> FileRecord:
        """Check the file, store it, put it on record. Raises ApiError, MantaError."""
        from cluster.files import new_file_id

        limits = LineLimits(self._args.max_file_lines, self._args.max_body_bytes)
        found = check_lines(upload.file, fields.purpose, limits)
        size, digest = _measure(upload.file)
        now = datetime.now(UTC)
        lifetime = fields.expires_s or self._args.file_expiry_s
        record = FileRecord(
            id=new_file_id(),
            team=key.team,
            tenant=key.tenant,
            key_id=key.id,
            purpose=fields.purpose,
            filename=("".join(filter(str.isprintable, upload.filename or "")) or "file")[:255],
            bytes=size,
            lines=found.lines,
            endpoint=found.endpoint,
            model=found.model,
            sha256=digest,
            created_at=now,
            expires_at=now + timedelta(seconds=lifetime) if lifetime else None,
        )
        self._repository.announce(record, self._args.max_stored_bytes)
        try:
            self._store.upload_stream(upload.file, record.key)
            self._repository.confirm(record.id)
        except MantaError:
            with suppress(MantaError):  # If that fails too, a sweep does it.
                self._repository.give_up(record, self._store)
            raise
        return record

    @cached_property
    def _repository(self) -> FileRepository:
        from cluster.files import FileRepository
        from cluster.settings import load_settings

        return FileRepository(load_settings().database_url)

    @cached_property
    def _store(self) -> ObjectStore:
        from cluster.storage import object_store

        return object_store()

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._uploads >= self._args.max_uploads:
            raise ApiError(
                503, "Too many uploads at once; please try again.", kind="server_error", retry_after_s=5
            )
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1


async def _read_form(request: Request, limit: int, silence_s: float) -> FormData:
    """The form, its file on disk.

    Raises ApiError 413 as soon as it is too large, 408 if nothing comes for so long, 400 if it is none.
    """
    from starlette.formparsers import MultiPartException, MultiPartParser

    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(400, "Send the file as multipart/form-data.", param="file")
    whole = False

    async def limited() -> AsyncGenerator[bytes, None]:
        size, stream = 0, request.stream()
        while True:
            try:
                async with asyncio.timeout(silence_s):
                    part = await anext(stream, None)
            except TimeoutError:
                message = f"Nothing of the file came for {silence_s:g} seconds; send it again."
                raise ApiError(408, message, param="file") from None
            if part is None:
                return
            size += len(part)
            if size > limit + _FORM_BYTES:
                raise ApiError(413, f"A file may have at most {limit} bytes.", code="file_too_large")
            yield part

    class Parser(MultiPartParser):
        def on_end(self) -> None:
            nonlocal whole
            whole = True

    try:
        form = await Parser(request.headers, limited(), max_files=1, max_fields=8).parse()
    except MultiPartException as error:
        raise ApiError(400, f"The form cannot be read: {error.message}", param="file") from None
    if not whole:
        await form.close()
        raise ApiError(400, "The upload ended before the file did; send it again.", param="file")
    return form


def _upload_of(form: FormData) -> tuple[UploadFile, UploadForm]:
    fields = {name: value for name, value in form.multi_items() if not isinstance(value, UploadFile)}
    upload = form.get("file")
    if not isinstance(upload, UploadFile):
        raise ApiError(
            400, "Missing required parameter: 'file'.", param="file", code="missing_required_parameter"
        )
    if "purpose" in fields and fields["purpose"] not in UPLOAD_PURPOSES:
        known = ", ".join(UPLOAD_PURPOSES)
        raise ApiError(400, f"'purpose' must be one of: {known}.", param="purpose", code="invalid_value")
    try:
        parsed = UploadForm.model_validate(fields)
    except ValidationError as error:
        raise from_validation(error) from None
    if (parsed.expires_anchor is None) != (parsed.expires_s is None):
        raise ApiError(400, "'expires_after' needs both anchor and seconds.", param="expires_after")
    return upload, parsed


def _measure(file: BinaryIO) -> tuple[int, str]:
    """Size and SHA-256; leaves the file at its beginning."""
    file.seek(0)
    digest = hashlib.sha256()
    while part := file.read(_MIB):
        digest.update(part)
    size = file.tell()
    file.seek(0)
    return size, digest.hexdigest()


async def _rest(first: bytes, chunks: Iterator[bytes]) -> AsyncGenerator[bytes, None]:
    yield first
    while part := await waited(lambda: next(chunks, b"")):
        yield part


def _card(record: FileRecord) -> dict[str, Any]:
    card: dict[str, Any] = {
        "id": record.id,
        "object": "file",
        "bytes": record.bytes,
        "created_at": int(record.created_at.timestamp()),
        "filename": record.filename,
        "purpose": record.purpose,
        "status": "processed",
    }
    if record.expires_at is not None:
        card["expires_at"] = int(record.expires_at.timestamp())
    return card
