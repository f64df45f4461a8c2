"""The admin API: keys made, changed and ended over HTTP, by whoever has a key with the scope ``admin``.

    POST   /admin/keys                 make one: a KeyTerms; the secret is in this answer and nowhere else
    GET    /admin/keys[?team=]         all that ever were
    GET    /admin/keys/{id}            one, with what is used and left of its budgets
    PATCH  /admin/keys/{id}            change its terms: a JSON merge patch, null takes a restriction away
    POST   /admin/keys/{id}/rotate     another secret; {"grace_s": seconds that the old one stays good}
    DELETE /admin/keys/{id}            end it, for ever

Same door, errors and keys as for models; outside of ``/v1``, which is OpenAI's, and so one rule of an ingress
closes it. These routes alone wait for SQL, in threads of their own, so that a database that is slow or away
is felt by administrators only. A change is published before it is answered; ``published`` is false if storage
could not take it, and then `manta key publish`, or the next change, does.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from cluster.contracts import ApiKey, KeyRecord, KeyTerms
from cluster.contracts.base import Slug
from cluster.errors import MantaError, NotFoundError, RefusedError
from deployments.gateway.body import typed
from deployments.gateway.errors import ApiError

if TYPE_CHECKING:
    from cluster.budget_ledger import BudgetLedger
    from cluster.keys import KeyRepository, NewSecret
    from deployments.gateway.pipeline import Pipeline

logger = logging.getLogger("ray.serve")
_LONGEST_BODY = 64 * 1024
Result = TypeVar("Result")
#: The key of who asks; raises ApiError.
Authenticate = Callable[[Request], ApiKey]
ReadBody = Callable[[Request, int], Awaitable[bytes]]


class Rotation(BaseModel):
    """Body of a rotation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    grace_s: float = Field(0, ge=0, le=365 * 86400, description="Seconds that the old secret stays good for.")


class KeyAdmin:
    """The routes. Nothing of SQL is imported before one of them is asked.

    :param authenticate: the key of who asks, as for any other request.
    :param read_body: the body, of at most so many bytes.
    """

    def __init__(self, pipeline: Pipeline, authenticate: Authenticate, read_body: ReadBody) -> None:
        self._pipeline = pipeline
        self._authenticate = authenticate
        self._read_body = read_body
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="key-admin")
        self._repository: KeyRepository | None = None
        self._ledger: BudgetLedger | None = None

    def routes(self) -> list[Route]:
        """For the application."""
        return [
            Route("/admin/keys", self.create, methods=["POST"]),
            Route("/admin/keys", self.list_all, methods=["GET"]),
            Route("/admin/keys/{id}", self.get, methods=["GET"]),
            Route("/admin/keys/{id}", self.change, methods=["PATCH"]),
            Route("/admin/keys/{id}", self.revoke, methods=["DELETE"]),
            Route("/admin/keys/{id}/rotate", self.rotate, methods=["POST"]),
        ]

    async def create(self, request: Request) -> JSONResponse:
        """Make a key."""
        admin = self._admin(request)
        terms = self._terms(await self._json(request))
        made = await self._in_thread(lambda keys: keys.create(terms))
        return JSONResponse(await self._with_secret(admin, made, "created"), status_code=201)

    async def list_all(self, request: Request) -> JSONResponse:
        """All keys, or one team's, by id."""
        self._admin(request)
        team = request.query_params.get("team")
        if team is not None and not _is_slug(team):  # PostgreSQL takes no NUL, and nobody has such a team.
            return JSONResponse({"object": "list", "data": [], "has_more": False})
        data = await self._in_thread(lambda keys: [_document(record) for record in keys.list(team)])
        return JSONResponse({"object": "list", "data": data, "has_more": False})

    async def get(self, request: Request) -> JSONResponse:
        """One key and its budgets."""
        self._admin(request)
        key_id = _id(request)
        return JSONResponse(await self._in_thread(lambda keys: self._with_budgets(keys.get(key_id))))

    async def change(self, request: Request) -> JSONResponse:
        """Other terms; the secret stays."""
        admin, patch = self._admin(request), await self._json(request)
        key_id = _id(request)
        if patch.get("id", key_id) != key_id:
            raise ApiError(400, "A key's id cannot be changed.", param="id")

        def merged(had: KeyTerms) -> KeyTerms:
            return self._terms(_merge(had.model_dump(mode="json"), patch))

        record = await self._in_thread(lambda keys: keys.update(key_id, merged))
        return JSONResponse(await self._published(admin, record, "changed"))

    async def rotate(self, request: Request) -> JSONResponse:
        """Another secret."""
        admin = self._admin(request)
        grace = timedelta(seconds=typed(await self._json(request), Rotation).grace_s)
        key_id = _id(request)
        made = await self._in_thread(lambda keys: keys.rotate(key_id, grace))
        return JSONResponse(await self._with_secret(admin, made, "rotated"))

    async def revoke(self, request: Request) -> JSONResponse:
        """End a key."""
        admin, key_id = self._admin(request), _id(request)
        record = await self._in_thread(lambda keys: keys.revoke(key_id))
        answer = await self._published(admin, record, "revoked")
        return JSONResponse(answer | {"object": "key.deleted", "deleted": True})

    def _admin(self, request: Request) -> ApiKey:
        """Who asks. Raises ApiError 401, or 403 for a key without the scope."""
        key = self._authenticate(request)
        if "admin" not in key.scopes:
            raise ApiError(
                403,
                "You have insufficient permissions for this operation. Missing scopes: admin.",
                code="missing_scope",
            )
        return key

    async def _json(self, request: Request) -> dict[str, Any]:
        raw = await self._read_body(request, _LONGEST_BODY)
        try:
            body = json.loads(raw or b"{}")
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise ApiError(400, "The request body must be a JSON object.")
        return body

    def _terms(self, body: dict[str, Any]) -> KeyTerms:
        """Raises ApiError 400 for terms that cannot be, or a policy that is not published."""
        terms = typed(body, KeyTerms)
        if terms.policy is not None and terms.policy not in self._pipeline.poller.view.engines:
            raise ApiError(400, f"No guard policy '{terms.policy}' is published.", param="policy")
        return terms

    async def _with_secret(self, admin: ApiKey, made: NewSecret, what: str) -> dict[str, Any]:
        return await self._published(admin, made.record, what) | {"secret": made.secret}

    async def _published(self, admin: ApiKey, record: KeyRecord, what: str) -> dict[str, Any]:
        """The key as it is now, published as far as can be."""
        logger.info(json.dumps({"event": "key_admin", "by": admin.id, "key": record.id, "what": what}))
        done = True
        try:
            await self._in_thread(lambda keys: _publish(keys, f"key {admin.id}"))
        except ApiError as error:
            logger.warning("Key %s is %s in SQL, and not published: %s", record.id, what, error.message)
            done = False
        await self._pipeline.poller.look()  # This replica knows it at once.
        return _document(record) | {"published": done}

    async def _in_thread(self, work: Callable[[KeyRepository], Result]) -> Result:
        """What ``work`` makes of the keys on record. Raises ApiError."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._with_keys, work)
        except NotFoundError as error:
            raise ApiError(404, str(error), code="key_not_found") from None
        except RefusedError as error:
            raise ApiError(400, str(error), code="refused") from None
        except MantaError as error:
            logger.warning("The admin API cannot work: %s", error)
            raise ApiError(
                503, "Keys cannot be administered now.", kind="server_error", retry_after_s=5
            ) from None

    def _with_keys(self, work: Callable[[KeyRepository], Result]) -> Result:
        if self._repository is None:
            from cluster.keys import KeyRepository
            from cluster.settings import load_settings

            self._repository = KeyRepository(load_settings().database_url)
        return work(self._repository)

    def _with_budgets(self, record: KeyRecord) -> dict[str, Any]:
        if self._ledger is None:
            from cluster.budget_ledger import BudgetLedger
            from cluster.settings import load_settings

            self._ledger = BudgetLedger(load_settings().database_url)
        budgets = [use.document() for use in self._ledger.use(record.id, record.limits)]
        return _document(record) | {"budgets": budgets}


def _id(request: Request) -> str:
    """The key that is meant. Raises ApiError 404 for what can be no key's id."""
    key_id: str = request.path_params["id"]
    if not _is_slug(key_id):
        raise ApiError(404, "There is no such key.", code="key_not_found")
    return key_id


def _is_slug(text: str) -> bool:
    try:
        TypeAdapter(Slug).validate_python(text)
    except ValidationError:
        return False
    return True


def _document(record: KeyRecord) -> dict[str, Any]:
    from cluster.keys import document

    return {"object": "key"} | document(record)


def _publish(repository: KeyRepository, by: str) -> None:
    from cluster import keys

    keys.publish(repository, by=by)


def _merge(had: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """RFC 7386: what is named replaces, null removes, mappings are merged."""
    merged = dict(had)
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict) and isinstance(merged.get(name), dict):
            merged[name] = _merge(merged[name], value)
        else:
            merged[name] = value
    return merged
