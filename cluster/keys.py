"""API keys: who may use the gateway, for what and how much. SQL is the truth; gateways get snapshots of it.

A secret is 256 random bits. It is shown once, to whoever made or rotated the key, and kept nowhere: SQL and
snapshots hold its SHA-256. A slow, salted hash protects passwords, which can be guessed from a dictionary;
2**256 random secrets cannot, however fast the hash, and a slow one would stand in the way of every request.
"""

from __future__ import annotations

import builtins
import hashlib
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Column, MetaData, RowMapping, String, Table, Text, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from cluster import snapshots
from cluster.contracts import ApiKey, FormerSecret, KeyLimits, KeyRecord, KeyTerms, Snapshot
from cluster.database import LATER, Database, UtcDateTime
from cluster.errors import NotFoundError, RefusedError
from cluster.storage import ObjectStore

_METADATA = MetaData()

_KEYS = Table(
    "api_keys",
    _METADATA,
    Column("id", String(63), primary_key=True),
    Column("sha256", String(64), nullable=False),
    Column("owner", String(200), nullable=False),
    Column("team", String(63), nullable=False),
    Column("tenant", String(63), nullable=False),
    Column("models", Text),
    Column("policy", String(63)),
    # As JSON: a new kind of limit needs no new column.
    Column("limits", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("former_sha256", String(64)),
    Column("former_until", UtcDateTime),
    Column("rotated_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    Column("scopes", Text, info=LATER),
)
#: Of terms, what is kept as JSON.
_JSON = {"models", "limits", "scopes"}


@dataclass(frozen=True)
class NewSecret:
    """A key and its secret, which only this object holds: show it, then forget it."""

    record: KeyRecord
    secret: str = field(repr=False)


class KeyRepository:
    """All keys in one database. Safe among threads and processes.

    :param url: SQLAlchemy URL, as ``settings.database_url`` gives it.

    The table is made at first use. Nothing here reaches a gateway: :func:`publish` does that. Raises
    UsageError for a wrong URL; every method raises UnavailableError if the database does not answer.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        self._database.create(_METADATA)

    def create(self, terms: KeyTerms) -> NewSecret:
        """Make a key. Raises RefusedError if its id was ever given to another."""
        secret = new_secret()
        try:
            with self._database.write() as connection:
                made = insert(_KEYS).values(_row(terms, secret)).returning(_KEYS)
                row = connection.execute(made).mappings().one()
        except IntegrityError:
            raise RefusedError(
                f"There is a key {terms.id!r} already, or was one: take another id, or `manta key rotate "
                f"{terms.id}` for a new secret."
            ) from None
        return NewSecret(_record(row), secret)

    def adopt(self, terms: KeyTerms, secret: str, published: ApiKey | None = None) -> KeyRecord:
        """Know a secret that something else made and keeps, under the id in ``terms``.

        As long as the secret stays the same the record stays as it is, revocation included; another secret
        makes the key anew.

        :param published: what gateways know under that id. If it has this secret, a key that is not on record
            begins with the restrictions that it has there: those from before keys stood in SQL stay.
        """
        values = _row(terms, secret)
        if published is not None and published.sha256 == values["sha256"]:
            values |= _restrictions(published)
        with self._database.write() as connection:
            mine = select(_KEYS).where(_KEYS.c.id == terms.id)
            row = connection.execute(mine).mappings().one_or_none()
            if row is None or row["sha256"] != values["sha256"]:
                connection.execute(delete(_KEYS).where(_KEYS.c.id == terms.id))
                made = insert(_KEYS).values(values).returning(_KEYS)
                row = connection.execute(made).mappings().one()
            return _record(row)

    def update(self, key_id: str, change: Callable[[KeyTerms], KeyTerms]) -> KeyRecord:
        """Give a key other terms; its id, secret and past stay.

        :param change: from the terms that it has to those that it shall have.

        Raises NotFoundError, or RefusedError if the key is revoked.
        """
        mine = select(_KEYS).where(_KEYS.c.id == key_id).with_for_update()
        with self._database.write() as connection:
            row = connection.execute(mine).mappings().one_or_none()
            if row is None:
                raise _unknown(key_id)
            if row["revoked_at"] is not None:
                raise RefusedError(f"Key {key_id!r} is revoked: make a new one by `manta key create`.")
            wanted = _columns(change(_record(row).terms)) | {"id": key_id}
            query = update(_KEYS).where(_KEYS.c.id == key_id).values(wanted)
            return _record(connection.execute(query.returning(_KEYS)).mappings().one())

    def rotate(self, key_id: str, grace: timedelta) -> NewSecret:
        """Give a key a new secret; the old one stays good for ``grace``, one before that ends now.

        Raises NotFoundError, or RefusedError if the key is revoked, has expired or is kept elsewhere.
        """
        _refuse_local(key_id)
        now, secret = datetime.now(UTC), new_secret()
        alive = _KEYS.c.revoked_at.is_(None) & (_KEYS.c.expires_at.is_(None) | (_KEYS.c.expires_at > now))
        values = {
            "sha256": sha256_of(secret),
            "former_sha256": _KEYS.c.sha256 if grace else None,
            "former_until": now + grace if grace else None,
            "rotated_at": now,
        }
        record = self._change(key_id, alive, values)
        if record is None:
            found = self.get(key_id)
            why = "is revoked" if found.revoked_at else "has expired"
            raise RefusedError(f"Key {key_id!r} {why}: make a new one by `manta key create`.")
        return NewSecret(record, secret)

    def revoke(self, key_id: str) -> KeyRecord:
        """End a key with all of its secrets. A second call changes nothing. Raises NotFoundError."""
        now = datetime.now(UTC)
        values = {"revoked_at": now, "former_sha256": None, "former_until": None}
        return self._change(key_id, _KEYS.c.revoked_at.is_(None), values) or self.get(key_id)

    def get(self, key_id: str) -> KeyRecord:
        """One key. Raises NotFoundError."""
        with self._database.read() as connection:
            mine = select(_KEYS).where(_KEYS.c.id == key_id)
            row = connection.execute(mine).mappings().one_or_none()
        if row is None:
            raise _unknown(key_id)
        return _record(row)

    def list(self, team: str | None = None) -> builtins.list[KeyRecord]:
        """All keys ever made, or those of one team, by id."""
        query = select(_KEYS).order_by(_KEYS.c.id)
        if team is not None:
            query = query.where(_KEYS.c.team == team)
        with self._database.read() as connection:
            return [_record(row) for row in connection.execute(query).mappings()]

    def for_gateways(self) -> tuple[builtins.list[ApiKey], frozenset[str]]:
        """The keys that gateways shall know, by id: all but the revoked; and the ids of all on record."""
        now = datetime.now(UTC)
        with self._database.read() as connection:
            rows = connection.execute(select(_KEYS).order_by(_KEYS.c.id)).mappings().all()
        keys = [_api_key(row, now) for row in rows if row["revoked_at"] is None]
        return keys, frozenset(row["id"] for row in rows)

    def _change(self, key_id: str, condition: Any, values: Mapping[str, Any]) -> KeyRecord | None:
        """Change the key if the condition holds, in one statement; None if it does not."""
        query = update(_KEYS).where(_KEYS.c.id == key_id, condition).values(**values).returning(_KEYS)
        with self._database.write() as connection:
            row = connection.execute(query).mappings().one_or_none()
        return None if row is None else _record(row)


def adopt(
    repository: KeyRepository, terms: KeyTerms, secret: str, store: ObjectStore | None = None
) -> KeyRecord:
    """:meth:`KeyRepository.adopt` with what is published now.

    Raises UnavailableError or AccessError if the database or storage does not answer, and RefusedError when
    the newest snapshot cannot be understood.
    """
    snapshot = snapshots.newest(store=store)
    known = {key.id: key for key in snapshot.keys} if snapshot else {}
    return repository.adopt(terms, secret, known.get(terms.id))


def publish(
    repository: KeyRepository, by: str, store: ObjectStore | None = None, *, prune: bool = False
) -> Snapshot:
    """Let gateways know what the repository holds; publishes nothing if they do already.

    It repairs what a crash between SQL and snapshot left behind. Keys that this database has never known stay
    published: a command that is led to another database must not lock everybody out.

    :param prune: take those keys out, too.

    Raises UnavailableError or AccessError if the database or storage does not answer.
    """

    def with_keys(snapshot: Snapshot) -> Snapshot:
        # Read here, after the snapshot that is followed: whoever changes SQL later publishes later, too, and
        # so no publisher can bring back a key that another has revoked meanwhile.
        keys, known = repository.for_gateways()
        others = [] if prune else [key for key in snapshot.keys if key.id not in known]
        return snapshot.model_copy(update={"keys": sorted([*keys, *others], key=lambda key: key.id)})

    return snapshots.publish(with_keys, by=by, store=store)


def new_secret() -> str:
    """256 random bits, in the form that OpenAI's have."""
    return f"sk-manta-{secrets.token_hex(32)}"


def state_of(record: KeyRecord) -> str:
    """``valid``, ``expired`` or ``revoked``."""
    if record.revoked_at is not None:
        return "revoked"
    expired = record.expires_at is not None and record.expires_at <= datetime.now(UTC)
    return "expired" if expired else "valid"


def document(record: KeyRecord) -> dict[str, Any]:
    """A key as JSON has it."""
    return {"id": record.id, "state": state_of(record), **record.model_dump(mode="json", exclude={"id"})}


def sha256_of(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _row(terms: KeyTerms, secret: str) -> dict[str, Any]:
    return {
        **_columns(terms),
        "sha256": sha256_of(secret),
        "created_at": datetime.now(UTC),
    }


def _columns(terms: KeyTerms) -> dict[str, Any]:
    return {
        **terms.model_dump(exclude=_JSON),
        "models": _models(terms),
        "limits": _limits(terms),
        "scopes": json.dumps(terms.scopes) if terms.scopes else None,
    }


def _refuse_local(key_id: str) -> None:
    """Its secret stands in a file: another one here would last until the next `manta up`."""
    from cluster.local.credentials import LOCAL_KEY_ID
    from cluster.local.home import Home
    from cluster.settings import load_settings

    settings = load_settings()
    if key_id == LOCAL_KEY_ID and settings.profile == "local":
        raise RefusedError(
            f"Key {key_id!r} is the one in {Home(settings.state_dir).openai_key}, which `manta up` publishes:"
            " for another secret remove that file and run `manta up`."
        )


def _unknown(key_id: str) -> NotFoundError:
    return NotFoundError(f"There is no key {key_id!r}: `manta key list` shows those that are.")


def _restrictions(key: ApiKey) -> dict[str, Any]:
    # No models at all, which terms cannot say, is as good as revoked.
    over = key.revoked or key.models == []
    return {
        "models": _models(key) if key.models else None,
        "policy": key.policy,
        "limits": _limits(key),
        "expires_at": key.expires_at,
        "revoked_at": datetime.now(UTC) if over else None,
    }


def _models(key: KeyTerms | ApiKey) -> str | None:
    return None if key.models is None else json.dumps(key.models)


def _limits(key: KeyTerms | ApiKey) -> str:
    return key.limits.model_dump_json(exclude_none=True)


def _record(row: RowMapping) -> KeyRecord:
    plain = set(KeyRecord.model_fields) - _JSON
    return KeyRecord(
        models=None if row["models"] is None else json.loads(row["models"]),
        limits=KeyLimits.model_validate_json(row["limits"]),
        scopes=json.loads(row["scopes"] or "[]"),
        **{name: row[name] for name in plain},
    )


def _api_key(row: RowMapping, now: datetime) -> ApiKey:
    record = _record(row)
    former = None
    if record.former_until is not None and record.former_until > now:
        former = FormerSecret(sha256=row["former_sha256"], valid_until=record.former_until)
    return ApiKey(
        sha256=row["sha256"],
        former=former,
        **record.model_dump(include=set(KeyTerms.model_fields) - {"owner"}),
    )
