"""The admin API of keys: on SQL of both kinds, with snapshots that a running gateway takes."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from cluster import snapshots
from cluster.budget_ledger import BudgetLedger
from cluster.budgets import Claim, period
from cluster.contracts import Snapshot
from cluster.errors import UnavailableError
from tests.conftest import forget_settings
from tests.unit.gateway_app import KEY, Fixture, chat, gateway, key, policy, snapshot
from tests.unit.test_gateway_requests import BODY, URL, error_of

ROOT = {"authorization": "Bearer sk-root"}
TERMS = {"id": "bot", "owner": "jane", "team": "support"}


@pytest.fixture
async def running(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fixture]:
    """A gateway whose snapshots are published into a list in place of storage."""
    monkeypatch.setenv("MANTA_DATABASE__URL", database_url)
    forget_settings()
    strict = policy("strict", {"name": "pii", "kind": "pii", "on": "both", "action": "redact"})
    first = snapshot(keys=[key(), key("sk-root", id="root", scopes=["admin"])], policies=[strict])
    async with gateway(first) as g:

        def publish(change: Any, by: str, store: object = None) -> Snapshot:
            now = g.snapshots[-1]
            made = change(now).model_dump() | {"number": now.number + 1, "created_by": by}
            g.snapshots.append(Snapshot.model_validate(made))
            return g.snapshots[-1]

        monkeypatch.setattr(snapshots, "publish", publish)
        yield g
    monkeypatch.undo()
    forget_settings()


async def ask(g: Fixture, method: str, path: str = "", headers: dict = ROOT, **more: Any) -> Any:
    return await g.http.request(method, f"/admin/keys{path}", headers=headers, **more)


async def test_the_life_of_a_key(running: Fixture, database_url: str) -> None:
    limits = {"budget_day": "5", "requests_per_minute": 3}
    made = await ask(running, "POST", json=TERMS | {"limits": limits, "models": ["m"], "policy": "strict"})
    assert made.status_code == 201
    document = made.json()
    assert (document["object"], document["state"], document["published"]) == ("key", "valid", True)
    assert document["limits"]["budget_day"] == "5"

    def bearer(secret: str) -> dict[str, str]:
        return {"authorization": f"Bearer {secret}"}

    running.script.says = [chat("ok", finish="stop")]
    answer = await running.http.post(URL, json=BODY, headers=bearer(document["secret"]))
    assert answer.status_code == 200  # At once, at this replica.
    assert running.snapshots[-1].created_by == "key root"

    now = datetime.now(UTC)
    for day in (now, now + timedelta(days=1)):  # It may be over before it is looked at.
        claim = Claim("bot", period("day", day), Decimal(5), Decimal("1.5"), Decimal(2))
        BudgetLedger(database_url).settle("replica", [claim])
    shown = (await ask(running, "GET", "/bot")).json()
    assert [(use["span"], use["spent"], use["left"]) for use in shown["budgets"]] == [("day", "1.5", "3")]

    patch = {"limits": {"budget_day": None, "budget_month": 100}, "models": None}
    changed = (await ask(running, "PATCH", "/bot", json=patch)).json()
    assert changed["limits"]["budget_month"] == "100"
    assert "budget_day" not in changed["limits"]
    assert (changed["limits"]["requests_per_minute"], changed["models"]) == (3, None)
    assert running.poller.view.key(document["secret"]).limits.budget_month == 100

    rotated = (await ask(running, "POST", "/bot/rotate", json={"grace_s": 3600})).json()
    for secret in (rotated["secret"], document["secret"]):
        assert running.poller.view.key(secret).id == "bot"
    listed = (await ask(running, "GET", "?team=support")).json()
    assert [item["id"] for item in listed["data"]] == ["bot"]
    assert (await ask(running, "GET", "?team=none")).json()["data"] == []

    gone = (await ask(running, "DELETE", "/bot")).json()
    assert (gone["object"], gone["deleted"], gone["state"]) == ("key.deleted", True, "revoked")
    refused = await running.http.post(URL, json=BODY, headers=bearer(rotated["secret"]))
    assert refused.status_code == 401
    for shown in (listed, gone, changed):
        assert rotated["secret"] not in str(shown)
    # Keys that this database has never known stay published.
    assert running.poller.view.key(KEY) is not None


#: method, path, body -> status, code, param, part of the message
MISTAKES: list[tuple[str, str, Any, int, str | None, str | None, str]] = [
    ("POST", "", {}, 400, "missing_required_parameter", "id", "id"),
    ("POST", "", TERMS | {"id": "No Slug"}, 400, "invalid_value", "id", "id"),
    ("POST", "", TERMS | {"colour": 1}, 400, "unknown_parameter", "colour", "colour"),
    ("POST", "", TERMS | {"policy": "none"}, 400, None, "policy", "No guard policy 'none'"),
    ("POST", "", TERMS | {"limits": {"budget_day": -1}}, 400, "invalid_value", "limits.budget_day", "limits"),
    ("POST", "", TERMS | {"limits": {"budget_day": "NaN"}}, 400, "invalid_value", "limits.budget_day", ""),
    ("POST", "", TERMS | {"owner": "\ud800"}, 400, "invalid_value", "owner", "owner"),
    # A snapshot with it could not be written, nor any after it.
    ("POST", "", TERMS | {"models": ["\ud800"]}, 400, "invalid_value", "models[0]", "models"),
    ("POST", "", TERMS | {"scopes": ["root"]}, 400, "invalid_value", "scopes[0]", "admin"),
    ("POST", "", TERMS | {"owner": "a\0b"}, 400, "invalid_value", "owner", "pattern"),
    (
        "POST",
        "",
        TERMS | {"expires_at": "9999-12-31T23:59:59-12:00"},
        400,
        "invalid_value",
        "expires_at",
        "UTC",
    ),
    (
        "POST",
        "",
        TERMS | {"expires_at": "2030-01-01T00:00:00"},
        400,
        "invalid_value",
        "expires_at",
        "timezone",
    ),
    ("GET", "/%00", None, 404, "key_not_found", None, "no such key"),
    ("DELETE", "/No%20Slug", None, 404, "key_not_found", None, "no such key"),
    ("POST", "", [1], 400, None, None, "must be a JSON object"),
    ("GET", "/nobody", None, 404, "key_not_found", None, "no key 'nobody'"),
    ("PATCH", "/nobody", {"owner": "joe"}, 404, "key_not_found", None, "no key 'nobody'"),
    ("PATCH", "/nobody", {"id": "other"}, 400, None, "id", "cannot be changed"),
    ("DELETE", "/nobody", None, 404, "key_not_found", None, "no key 'nobody'"),
    ("POST", "/nobody/rotate", {"grace_s": -1}, 400, "invalid_value", "grace_s", "grace_s"),
    ("PUT", "/nobody", {}, 405, "method_not_supported", None, "Not allowed"),
]


async def test_mistakes_and_strangers_are_told_in_openais_form(running: Fixture) -> None:
    for method, path, body, status, code, param, said in MISTAKES:
        answer = await ask(running, method, path, content=json.dumps(body))
        error = error_of(answer)
        assert (answer.status_code, error["code"], error["param"]) == (status, code, param), (method, body)
        assert said in error["message"]
    assert (await ask(running, "GET", "?team=%00")).json()["data"] == []
    twice = [await ask(running, "POST", json=TERMS) for _ in range(2)]
    assert [answer.status_code for answer in twice] == [201, 400]
    assert error_of(twice[1])["code"] == "refused"
    for method, path, *_ in MISTAKES[:-1]:
        answer = await ask(running, method, path, headers={"authorization": f"Bearer {KEY}"}, json=TERMS)
        assert (answer.status_code, error_of(answer)["code"]) == (403, "missing_scope")
        answer = await ask(running, method, path, headers={}, json=TERMS)
        assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key")
    long = await ask(running, "POST", content=b" " * 70_000)
    assert long.status_code == 413


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_what_could_not_be_published_is_told_and_its_secret_is_not_lost(
    running: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        assert threading.current_thread() is not threading.main_thread()
        raise UnavailableError("S3 does not answer.")

    monkeypatch.setattr(snapshots, "publish", away)
    made = (await ask(running, "POST", json=TERMS)).json()
    assert (made["published"], made["secret"][:9]) == (False, "sk-manta-")


async def test_without_the_database_keys_wait_and_models_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANTA_DATABASE__URL", "postgresql+psycopg2://nobody@127.0.0.1:1/none")
    forget_settings()
    async with gateway(snapshot(keys=[key(), key("sk-root", id="root", scopes=["admin"])])) as g:
        answer = await ask(g, "GET")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "127.0.0.1" not in answer.text
        g.script.says = [chat("ok", finish="stop")]
        assert (await g.http.post(URL, json=BODY, headers=ROOT)).status_code == 200
    monkeypatch.undo()
    forget_settings()
