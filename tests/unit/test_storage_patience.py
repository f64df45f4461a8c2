"""How long a request waits for storage, without a server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError, ReadTimeoutError

from cluster.settings import StorageSettings
from cluster.storage.environment import Endpoint
from cluster.storage.faults import explain_arrow
from cluster.storage.patience import Patience

AWAY = EndpointConnectionError(endpoint_url="http://x")


def ask(patience: Patience, attempts: int = 1, status: int | None = None, code: str = "", error: Any = None):
    response = None if status is None else (SimpleNamespace(status_code=status), {"Error": {"Code": code}})
    return patience(attempts=attempts, response=response, caught_exception=error, operation=None)


def test_the_default_outlasts_half_a_minute_whatever_the_dice_say() -> None:
    patience = Patience(StorageSettings().max_attempts)
    waits = [ask(patience, attempt, error=AWAY) for attempt in range(1, StorageSettings().max_attempts)]
    # A wait is at least half of its longest, and those of one request are drawn apart from each other's.
    assert sum(waits) > 30
    assert max(waits) <= 10
    assert ask(patience, StorageSettings().max_attempts, error=AWAY) is None


@pytest.mark.parametrize(
    ("asked", "again"),
    [
        ({"error": AWAY}, True),
        ({"error": ReadTimeoutError(endpoint_url="http://x")}, True),
        ({"error": NoCredentialsError()}, False),
        ({"error": ValueError("a bug")}, False),
        ({"status": 503, "code": "SlowDown"}, True),
        ({"status": 500}, True),
        ({"status": 400, "code": "RequestTimeout"}, True),
        ({"status": 404, "code": "NoSuchKey"}, False),
        ({"status": 412, "code": "PreconditionFailed"}, False),
        ({"status": 403, "code": "AccessDenied"}, False),
        ({"status": 200}, False),
        ({}, False),
    ],
)
def test_only_what_may_pass_is_tried_again(asked: dict[str, Any], again: bool) -> None:
    assert (ask(Patience(3), **asked) is not None) is again


def test_what_a_worker_says_of_storage_is_one_sentence() -> None:
    endpoint = Endpoint("http://127.0.0.1:9", "us-east-1")
    try:
        try:
            raise OSError(
                "When writing: AWS Error NETWORK_CONNECTION during PutObject operation: curlCode: 7"
            )
        except OSError as error:
            raise RuntimeError("a task failed") from error
    except RuntimeError as error:
        told = explain_arrow(error, endpoint)
    assert str(told).startswith("http://127.0.0.1:9 does not answer (AWS Error NETWORK_CONNECTION): check")
    assert explain_arrow(OSError("AWS Error ACCESS_DENIED during PutObject operation"), endpoint) is None
