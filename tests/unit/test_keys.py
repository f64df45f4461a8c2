"""API keys on SQLite and PostgreSQL: what is kept, and what gateways are told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from pydantic import ValidationError
from sqlalchemy import text

from cluster.contracts import ApiKey, KeyLimits, KeyTerms, Snapshot
from cluster.database import Database
from cluster.errors import NotFoundError, RefusedError
from cluster.keys import KeyRepository, sha256_of
from tests.unit.test_runs import in_processes

HOUR = timedelta(hours=1)


@pytest.fixture
def repository(database_url: str) -> KeyRepository:
    return KeyRepository(database_url)


def terms(key_id: str = "bot", **more: object) -> KeyTerms:
    return KeyTerms.model_validate({"id": key_id, "owner": "jane", "team": "support"} | more)


def for_gateway(repository: KeyRepository, key_id: str = "bot") -> ApiKey:
    return next(key for key in repository.for_gateways()[0] if key.id == key_id)


def test_a_key_comes_back_as_it_was_agreed(repository: KeyRepository) -> None:
    wanted = terms(
        tenant="acme",
        models=["m", "org/other"],
        policy="strict",
        limits=KeyLimits(requests_per_minute=3, tokens_per_minute=1000, concurrent_requests=2),
        expires_at=datetime.now(UTC) + HOUR,
    )
    made = repository.create(wanted)
    assert made.record.model_dump(include=set(KeyTerms.model_fields)) == wanted.model_dump()
    assert repository.get("bot") == made.record
    assert repository.list() == repository.list("support") == [made.record]
    assert repository.list("others") == []
    key = for_gateway(repository)
    assert key.sha256 == sha256_of(made.secret)
    assert (key.models, key.policy, key.limits) == (wanted.models, wanted.policy, wanted.limits)
    assert (key.expires_at, key.tenant, key.former, key.revoked) == (wanted.expires_at, "acme", None, False)


def test_the_secret_is_nowhere(repository: KeyRepository, database_url: str) -> None:
    made = repository.create(terms())
    assert len(bytes.fromhex(made.secret.removeprefix("sk-manta-"))) == 32
    assert made.secret != repository.create(terms("other")).secret
    assert made.secret not in repr(made)
    with Database(database_url).read() as connection:
        rows = connection.execute(text("SELECT * FROM api_keys")).all()
    assert made.secret not in repr(rows)
    assert sha256_of(made.secret) in repr(rows)


def test_an_id_is_given_once(repository: KeyRepository) -> None:
    repository.create(terms())
    repository.revoke("bot")
    with pytest.raises(RefusedError, match="a key 'bot' already, or was one"):
        repository.create(terms())


@pytest.mark.parametrize("wrong", [{"key_id": "No Slug"}, {"team": "A/b"}, {"models": []}, {"owner": ""}])
def test_terms_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        terms(**wrong)  # type: ignore[arg-type]


def test_a_revoked_key_goes_to_no_gateway_and_stays_on_record(repository: KeyRepository) -> None:
    repository.create(terms())
    repository.rotate("bot", HOUR)
    revoked = repository.revoke("bot")
    assert revoked.revoked_at is not None
    assert revoked.former_until is None
    assert repository.revoke("bot") == revoked
    assert repository.for_gateways() == ([], frozenset({"bot"}))
    assert repository.list() == [revoked]


def test_rotation_leaves_the_last_secret_good_for_a_while(repository: KeyRepository) -> None:
    first = repository.create(terms()).secret
    before = datetime.now(UTC)
    made = repository.rotate("bot", HOUR)
    key = for_gateway(repository)
    assert key.sha256 == sha256_of(made.secret) != sha256_of(first)
    assert key.former is not None
    assert key.former.sha256 == sha256_of(first)
    assert before + HOUR <= key.former.valid_until <= datetime.now(UTC) + HOUR
    assert made.record.rotated_at is not None
    repository.rotate("bot", HOUR)
    former = for_gateway(repository).former
    assert former is not None
    assert former.sha256 == sha256_of(made.secret)
    repository.rotate("bot", timedelta(0))
    assert for_gateway(repository).former is None


def test_a_former_secret_whose_time_is_over_is_not_told(repository: KeyRepository) -> None:
    repository.create(terms())
    repository.rotate("bot", timedelta(microseconds=1))
    assert for_gateway(repository).former is None


def test_what_is_over_is_not_rotated(repository: KeyRepository) -> None:
    repository.create(terms())
    repository.revoke("bot")
    repository.create(terms("old", expires_at=datetime.now(UTC) - HOUR))
    for key_id, why in (("bot", "is revoked"), ("old", "has expired")):
        with pytest.raises(RefusedError, match=f"{key_id}' {why}"):
            repository.rotate(key_id, HOUR)
    for call in (repository.get, repository.revoke, lambda key: repository.rotate(key, HOUR)):
        with pytest.raises(NotFoundError, match="no key 'nonsense'"):
            call("nonsense")


def test_an_adopted_key_stays_as_it_is_while_its_secret_does(repository: KeyRepository) -> None:
    made = repository.adopt(terms("local"), "a secret of its own")
    assert for_gateway(repository, "local").sha256 == sha256_of("a secret of its own")
    revoked = repository.revoke("local")
    assert repository.adopt(terms("local"), "a secret of its own") == revoked
    again = repository.adopt(terms("local"), "another secret")
    assert (again.revoked_at, again.created_at > made.created_at) == (None, True)


def _create(url: str, key_id: str) -> str | None:
    try:
        return KeyRepository(url).create(terms(key_id)).secret
    except RefusedError:
        return None


def test_of_processes_that_take_one_id_one_gets_it(database_url: str) -> None:
    secrets = in_processes(_create, [(database_url, "bot")] * 3)
    won = [secret for secret in secrets if secret]
    assert [sha256_of(secret) for secret in won] == [for_gateway(KeyRepository(database_url)).sha256]


def test_a_snapshot_from_before_keys_had_limits_is_understood() -> None:
    old = (
        '{"schema_version":1,"number":4,"created_at":"2026-01-02T03:04:05Z","created_by":"manta up","keys":'
        f'[{{"id":"local","sha256":"{"0" * 64}","team":"default","tenant":"default","models":null,'
        '"policy":null,"revoked":false}],"routes":[],"policies":[],"prompts":{}}'
    )
    key = Snapshot.model_validate_json(old).keys[0]
    assert (key.limits, key.expires_at, key.former) == (KeyLimits(), None, None)


def test_terms_change_and_the_secret_stays(repository: KeyRepository) -> None:
    made = repository.create(terms(scopes=["admin"], limits={"budget_day": 5, "requests_per_minute": 3}))
    assert for_gateway(repository).scopes == ["admin"]

    def change(had: KeyTerms) -> KeyTerms:
        return had.model_copy(update={"limits": KeyLimits(budget_month=Decimal("99.5")), "models": ["m"]})

    changed = repository.update("bot", change)
    assert changed == repository.get("bot")
    assert (changed.limits, changed.models) == (KeyLimits(budget_month=Decimal("99.5")), ["m"])
    key = for_gateway(repository)
    assert (key.sha256, key.scopes, key.limits) == (sha256_of(made.secret), ["admin"], changed.limits)
    assert changed.created_at == made.record.created_at
    repository.revoke("bot")
    with pytest.raises(RefusedError, match="is revoked"):
        repository.update("bot", change)
    with pytest.raises(NotFoundError):
        repository.update("nobody", change)


def test_a_table_from_before_scopes_gets_their_column(database_url: str) -> None:
    secret = KeyRepository(database_url).create(terms()).secret
    database = Database(database_url)
    with database.write() as connection:
        connection.execute(text("ALTER TABLE api_keys DROP COLUMN scopes"))
    assert in_processes(_scopes, [(database_url,)] * 2) == [[], []]
    repository = KeyRepository(database_url)
    assert for_gateway(repository).sha256 == sha256_of(secret)
    repository.create(terms("root", scopes=["admin"]))
    assert for_gateway(repository, "root").scopes == ["admin"]


def _scopes(url: str) -> list[str]:
    return for_gateway(KeyRepository(url)).scopes  # type: ignore[return-value]
