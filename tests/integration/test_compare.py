"""``manta compare`` on evaluations in storage."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from click.testing import CliRunner

from cluster.contracts import ArtifactRef, CodeRevision, Principal
from cluster.errors import NotFoundError, RefusedError
from cluster.settings import load_settings
from cluster.storage import ArtifactStore
from tests.unit.test_model_gate import card
from validation.cli import compare
from validation.models import Scorecard

pytestmark = pytest.mark.integration


def commit(
    artifacts: ArtifactStore, owner: Principal, code: CodeRevision, number: int, scores: Scorecard
) -> str:
    ref = ArtifactRef(
        team=load_settings().team, kind="evaluation", name="shield-compare", fingerprint=f"{number:016x}"
    )
    attempt = artifacts.attempt(ref, "evaluate-1")
    attempt.write("scorecard.json", scores.model_dump_json().encode())
    attempt.commit(owner=owner, configuration={}, code=code, started_at=datetime.now(UTC))
    return str(ref)


def test_addresses_and_the_newest_are_read(
    artifacts: ArtifactStore, owner: Principal, code: CodeRevision
) -> None:
    def run(*words: str) -> BaseException | None:
        return CliRunner().invoke(compare, [*words], standalone_mode=False).exception

    first = commit(artifacts, owner, code, 1, card(20, 180))
    assert run(first, "latest:shield-compare") is None
    second = commit(artifacts, owner, code, 2, card(20, 150))
    refused = run(first, "latest:shield-compare")
    assert isinstance(refused, RefusedError)
    assert "accuracy is 75.0%, was 90.0%" in str(refused)
    assert run(second, first) is None
    assert isinstance(run(first, "latest:no-such-evaluation"), NotFoundError)
