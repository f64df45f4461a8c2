"""Snapshots: numbered, immutable, nothing lost among publishers (racing ones are in test_writers)."""

import json
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from cluster import snapshots
from cluster.contracts import ApiKey, FormerSecret, KeyLimits, Route, Target
from cluster.errors import RefusedError
from cluster.settings import StorageSettings
from cluster.snapshots import PREFIX
from cluster.storage import ObjectStore

pytestmark = pytest.mark.integration


@pytest.fixture
def own(store, s3, team):
    """A bucket of its own: numbers begin at 1."""
    store._client.create_bucket(Bucket=team)
    return ObjectStore(team, StorageSettings())


def add_key(name):
    key = ApiKey(id=name, sha256="0" * 64, team="default")
    return lambda old: old.model_copy(update={"keys": [*old.keys, key]})


def test_publish_and_newest(own):
    assert snapshots.newest(store=own) is None
    first = snapshots.publish(add_key("a"), "tester", own)
    assert first.number == 1
    assert first.created_by == "tester"
    second = snapshots.publish(add_key("b"), "other", own)
    assert second.number == 2
    assert second.created_at >= first.created_at
    assert [key.id for key in second.keys] == ["a", "b"]
    assert snapshots.newest(store=own) == second
    assert snapshots.newest(after=1, store=own) == second
    assert snapshots.newest(after=2, store=own) is None
    assert [item.key for item in own.list(PREFIX)] == [
        f"{PREFIX}000000000001.json",
        f"{PREFIX}000000000002.json",
    ]


def test_gateways_from_before_keys_had_limits_read_what_uses_none(own):
    def written(key):
        made = snapshots.publish(lambda old: old.model_copy(update={"keys": [key]}), "tester", own)
        assert snapshots.newest(store=own).keys == [key]
        return json.loads(own.get(f"{PREFIX}{made.number:012d}.json"))["keys"][0]

    key = ApiKey(id="bot", sha256="0" * 64, team="default", revoked=True)
    assert set(written(key)) == {"id", "sha256", "team", "tenant", "models", "policy", "revoked"}
    more = {
        "limits": KeyLimits(requests_per_minute=3),
        "expires_at": datetime.now(UTC),
        "former": FormerSecret(sha256="1" * 64, valid_until=datetime.now(UTC)),
    }
    assert set(written(key.model_copy(update=more))) > set(more)


def test_a_change_that_changes_nothing_publishes_nothing(own):
    first = snapshots.publish(add_key("a"), "tester", own)
    assert snapshots.publish(lambda old: old, "tester", own) == first
    assert len(list(own.list(PREFIX))) == 1


def test_number_time_and_publisher_are_not_the_changes_to_choose(own):
    made = snapshots.publish(
        lambda old: add_key("a")(old).model_copy(update={"number": 99, "created_by": "forged"}), "tester", own
    )
    assert (made.number, made.created_by) == (1, "tester")


def test_a_change_that_fails_or_makes_nonsense_publishes_nothing(own):
    snapshots.publish(add_key("a"), "tester", own)
    with pytest.raises(ZeroDivisionError):
        snapshots.publish(lambda old: 1 / 0, "tester", own)
    with pytest.raises(ValidationError):
        snapshots.publish(
            lambda old: old.model_copy(update={"routes": [Route.model_construct(model="m", targets=[])]}),
            "tester",
            own,
        )
    assert snapshots.newest(store=own).number == 1


def test_routes_come_back_as_they_went(own):
    route = Route(model="m", targets=[Target(model="m", application="a")], created_at=datetime.now(UTC))
    snapshots.publish(lambda old: old.model_copy(update={"routes": [route]}), "tester", own)
    assert snapshots.newest(store=own).routes == [route]


def test_a_snapshot_of_a_newer_manta_is_refused(own):
    own.put(f"{PREFIX}000000000007.json", b'{"schema_version": 2}')
    with pytest.raises(RefusedError, match="is no snapshot of schema 1"):
        snapshots.newest(store=own)
