"""`manta key` and what it publishes: on SQL of both kinds and a bucket of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from cluster import keys, snapshots
from cluster.budget_ledger import BudgetLedger
from cluster.budgets import Claim, period
from cluster.cli import main
from cluster.contracts import ApiKey, KeyTerms, PolicyDocument, Route, Snapshot, Target
from cluster.errors import UnavailableError
from cluster.keys import KeyRepository, sha256_of
from cluster.storage import ObjectStore, object_store
from tests.conftest import S3, forget_settings

pytestmark = pytest.mark.integration

Manta = Callable[..., tuple[int, str, str]]
#: For what does not depend on the kind of SQL.
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def manta(
    s3: S3,
    team: str,
    database_url: str,
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Manta]:
    """`manta key` in this process: exit status, standard output, standard error."""
    store._client.create_bucket(Bucket=team)
    monkeypatch.setenv("MANTA_STORAGE__BUCKET", team)
    monkeypatch.setenv("MANTA_DATABASE__URL", database_url)
    forget_settings()

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(("key", *words))
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    yield run
    monkeypatch.undo()
    forget_settings()


def published() -> dict[str, ApiKey]:
    snapshot = snapshots.newest()
    return {key.id: key for key in snapshot.keys} if snapshot else {}


def test_the_life_of_a_key(manta: Manta, database_url: str) -> None:
    terms = ("--team", "support", "--owner", "jane", "--model", "m", "--requests-per-minute", "3")
    status, secret, said = manta("create", "bot", *terms, "--expires", "30d")
    assert status == 0
    assert "warning: no model 'm' is published now" in said
    assert secret.strip() not in said
    key = published()["bot"]
    assert (key.sha256, key.team, key.models) == (sha256_of(secret.strip()), "support", ["m"])
    assert key.limits.requests_per_minute == 3
    assert key.expires_at is not None
    assert key.expires_at - datetime.now(UTC) > timedelta(days=29)

    _, listed, _ = manta("list")
    assert listed.startswith("valid    bot                     support         jane                    ")
    assert "requests per minute 3; only m; until " in listed
    assert "requests_per_minute  3" in manta("show", "bot")[1].splitlines()

    status, rotated, _ = manta("rotate", "bot", "--grace", "1h", "--json")
    second = json.loads(rotated)
    assert (status, second["published"], second["state"]) == (0, True, "valid")
    key = published()["bot"]
    assert key.sha256 == sha256_of(second["secret"])
    assert key.former is not None
    assert key.former.sha256 == sha256_of(secret.strip())

    status, said, _ = manta("revoke", "bot")
    assert (status, said) == (0, "bot is revoked: gateways refuse it within 5 seconds\n")
    assert published() == {}
    _, shown, _ = manta("show", "bot", "--json")
    assert json.loads(shown)["state"] == "revoked"
    for out in (listed, shown, said):
        assert second["secret"] not in out
    assert second["secret"] not in repr(KeyRepository(database_url).list())


MISTAKES = {
    ("create", "No Slug"): (2, "error: key: id: "),
    ("create", "bot", "--expires", "soon"): (2, "'soon' is no duration: write a number and s, m, h or d"),
    ("create", "bot", "--expires", "999999d"): (2, "is too long: at most 36500d"),
    ("create", "bot", "--expires", "9" * 5000 + "d"): (2, "is too long: at most 36500d"),
    ("create", "bot", "--expires", "0s"): (2, "'0s' is over at once: write a longer one"),
    ("create", "bot", "--requests-per-minute", "0"): (2, "0 is not in the range x>=1"),
    ("create", "bot", "--policy", "strict"): (1, "No guard policy 'strict' is published, only default"),
    ("create", "bot", "--budget-day", "much"): (2, "'much' is no amount: write a number"),
    ("create", "bot", "--budget-day", "-1"): (2, "'-1' is no amount of money: write 0 or more"),
    ("create", "bot", "--budget-day", "0.0000001"): (2, "error: key: limits.budget_day: "),
    ("create", "bot", "--scope", "root"): (2, "'root' is not 'admin'"),
    ("update", "bot"): (2, "name what to change"),
    ("update", "bot", "--budget-day", "5"): (1, "There is no key 'bot'"),
    ("rotate", "bot"): (1, "There is no key 'bot'"),
    ("rotate", "local"): (1, "for another secret remove that file and run `manta up`"),
    ("revoke", "bot"): (1, "There is no key 'bot'"),
    ("show", "bot"): (1, "There is no key 'bot'"),
    ("fly",): (2, "No such command 'fly': see `manta key --help`."),
}


@on_sqlite
def test_a_budget_is_agreed_changed_and_shown(manta: Manta, database_url: str) -> None:
    assert manta("create", "bot", "--budget-day", "5", "--budget-month", "0.25", "--scope", "admin")[0] == 0
    key = published()["bot"]
    assert (key.limits.budget_day, key.limits.budget_month, key.scopes) == (5, Decimal("0.25"), ["admin"])
    assert "budget day 5; budget month 0.25" in manta("list")[1]

    now = datetime.now(UTC)
    for today in (now, now + timedelta(days=1)):  # It may be over before it is looked at.
        claim = Claim("bot", period("day", today), Decimal(5), Decimal("1.5"), Decimal(2))
        BudgetLedger(database_url).settle("replica", [claim])
    _, shown, _ = manta("show", "bot")
    assert "spent this day       1.5" in shown
    (day, month) = json.loads(manta("show", "bot", "--json")[1])["budgets"]
    assert [day[name] for name in ("budget", "spent", "reserved", "left")] == ["5", "1.5", "0.5", "3"]
    assert (month["span"], month["spent"], month["left"]) == ("month", "0", "0.25")

    words = ("--budget-day", "none", "--budget-month", "100", "--model", "m", "--requests-per-minute", "7")
    status, said, _ = manta("update", "bot", *words, "--expires", "30d")
    assert (status, said) == (0, "bot is changed: gateways keep to it within 5 seconds\n")
    changed = published()["bot"]
    assert changed.limits.model_dump(exclude_none=True) == {"budget_month": 100, "requests_per_minute": 7}
    assert (changed.models, changed.sha256, changed.scopes) == (["m"], key.sha256, ["admin"])
    assert manta("update", "bot", "--model", "none", "--expires", "none", "--json")[0] == 0
    assert (published()["bot"].models, published()["bot"].expires_at) == (None, None)


@on_sqlite
def test_mistakes_are_one_sentence(manta: Manta) -> None:
    for words, (status, sentence) in MISTAKES.items():
        ended, out, err = manta(*words)
        assert (ended, out) == (status, ""), words
        assert err.startswith("error: ")
        assert sentence in err
        assert err.count("\n") == 1
    assert published() == {}


def test_a_crash_between_sql_and_snapshot_is_repaired(manta: Manta, database_url: str) -> None:
    repository = KeyRepository(database_url)
    repository.create(KeyTerms(id="bot", owner="jane", team="support"))
    assert published() == {}
    manta("list")
    assert list(published()) == ["bot"]
    repository.revoke("bot")
    status, said, _ = manta("publish", "--json")
    assert (status, json.loads(said)["keys"]) == (0, [])
    number = snapshots.newest().number
    manta("publish")
    assert snapshots.newest().number == number


@on_sqlite
def test_a_secret_that_could_not_be_published_is_not_lost(
    manta: Manta, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manta("create", "bot")
    monkeypatch.setenv("MANTA_STORAGE__BUCKET", "no-such-bucket")
    forget_settings()
    status, out, err = manta("rotate", "bot", "--json")
    assert (status, json.loads(out)["published"]) == (1, False)
    assert err.startswith("error: gateways were not told what stands in the database: ")
    held = KeyRepository(database_url).for_gateways()[0][0]
    assert held.sha256 == sha256_of(json.loads(out)["secret"])
    status, out, err = manta("list")
    assert status == 0
    assert out.startswith("valid    bot")
    assert err.startswith("warning: gateways were not told")


@on_sqlite
@pytest.mark.parametrize("words", [("create", "bot"), ("create", "bot", "--json")])
@pytest.mark.parametrize("ending", [KeyboardInterrupt(), RuntimeError("a bug")])
def test_a_secret_outlives_whatever_ends_publishing(
    manta: Manta,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    ending: BaseException,
) -> None:
    def ended(*_: object, **__: object) -> None:
        raise ending

    monkeypatch.setattr(keys, "publish", ended)
    with pytest.raises((SystemExit, RuntimeError)):
        main(("key", *words))
    out = capsys.readouterr().out
    document = json.loads(out) if "--json" in words else {"secret": out.strip(), "published": None}
    assert document["published"] is None
    held = KeyRepository(database_url).for_gateways()[0][0]
    assert held.sha256 == sha256_of(document["secret"])


@on_sqlite
def test_a_database_that_is_lost_after_publishing_loses_nothing(
    manta: Manta, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise UnavailableError("The database does not answer.")

    monkeypatch.setattr(KeyRepository, "list", lost)
    status, out, err = manta("create", "bot", "--json")
    made = json.loads(out)
    assert (status, made["published"]) == (0, True)
    assert published()["bot"].sha256 == sha256_of(made["secret"])
    assert err.startswith("warning: gateways may accept keys that this database does not know: The database")


@on_sqlite
def test_keys_of_another_database_stay_until_they_are_pruned(manta: Manta, tmp_path: Path) -> None:
    manta("create", "mine")
    other = KeyRepository(f"sqlite:///{tmp_path / 'other.db'}")
    other.create(KeyTerms(id="theirs", owner="joe", team="other"))
    keys.publish(other, by="test")
    _, _, said = manta("list")
    assert "keys that this database has never known (theirs)" in said
    assert list(published()) == ["mine", "theirs"]
    status, said, _ = manta("publish", "--prune")
    assert (status, said.startswith("1 keys are published")) == (0, True)
    assert list(published()) == ["mine"]


def test_a_publisher_that_read_too_early_brings_no_revoked_key_back(
    manta: Manta, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads SQL; the key is revoked and that is published; then it writes its own snapshot."""
    repository, slow = KeyRepository(database_url), KeyRepository(database_url)
    for name in ("bot", "other"):
        repository.create(KeyTerms(id=name, owner="jane", team="support"))
    read, times = slow.for_gateways, []

    def read_then_wait():
        found = read()
        if not times:
            times.append(1)
            repository.revoke("bot")
            keys.publish(repository, by="faster")
        return found

    monkeypatch.setattr(slow, "for_gateways", read_then_wait)
    keys.publish(slow, by="slower")
    assert list(published()) == ["other"]


def test_an_adopted_key_keeps_the_restrictions_from_before_keys_stood_in_sql(
    manta: Manta, database_url: str, tmp_path: Path
) -> None:
    repository = KeyRepository(database_url)
    terms = {name: KeyTerms(id=name, owner="manta up", team="default") for name in ("a", "b", "c")}
    mine = ApiKey(id="a", sha256=sha256_of("mine"), team="default", models=["m1"], policy="strict")
    over = ApiKey(id="b", sha256=sha256_of("over"), team="default", revoked=True)
    other = ApiKey(id="c", sha256=sha256_of("other"), team="default", models=[])
    snapshots.publish(lambda old: old.model_copy(update={"keys": [mine, over, other]}), by="older")

    kept = keys.adopt(repository, terms["a"], "mine")
    assert (kept.models, kept.policy, kept.revoked_at) == (["m1"], "strict", None)
    assert keys.adopt(repository, terms["b"], "over").revoked_at is not None
    assert keys.adopt(repository, terms["c"], "a new secret").revoked_at is None
    elsewhere = KeyRepository(f"sqlite:///{tmp_path / 'other.db'}")
    none = keys.adopt(elsewhere, terms["c"], "other")  # It may use no model.
    assert (none.models, none.revoked_at is not None) == (None, True)

    keys.publish(repository, by="manta up")
    assert {name: key.models for name, key in published().items()} == {"a": ["m1"], "c": None}
    assert published()["c"].sha256 == sha256_of("a new secret")
    assert keys.adopt(repository, terms["b"], "over").revoked_at is not None


@on_sqlite
def test_a_published_policy_may_be_a_keys_own(manta: Manta) -> None:
    route = Route(model="m", targets=[Target(model="m", application="a")], created_at=datetime.now(UTC))
    policy = PolicyDocument(name="strict", digest="0" * 64, body={})

    def deployed(snapshot: Snapshot) -> Snapshot:
        return snapshot.model_copy(update={"routes": [route], "policies": [policy]})

    snapshots.publish(deployed, by="test", store=object_store())
    status, _, said = manta("create", "bot", "--policy", "strict", "--model", "m")
    assert (status, "warning" in said) == (0, False)
    assert published()["bot"].policy == "strict"
    assert snapshots.newest().routes == [route]
