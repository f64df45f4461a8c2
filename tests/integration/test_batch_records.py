"""Files and batches on record, in both databases: leases, ends and their files."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from cluster.batches import BatchRepository, entered, new_batch_id
from cluster.contracts.batches import BatchProgress, BatchRecord, BatchStatus, BatchTerms
from cluster.contracts.files import FileRecord
from cluster.database import Database
from cluster.errors import NotFoundError, RefusedError
from cluster.files import FileRepository, new_file_id
from cluster.storage import ObjectStore
from tests.unit.gateway_app import policy

pytestmark = pytest.mark.integration
NOW = datetime.now(UTC)


def file(**more: object) -> FileRecord:
    values = {
        "id": new_file_id(),
        "team": "a",
        "key_id": "k",
        "purpose": "batch",
        "filename": "f",
        "bytes": 1,
    }
    return FileRecord.model_validate(values | {"lines": 1, "sha256": "0" * 64, "created_at": NOW} | more)


def claim(batches: BatchRepository, holder: str, lease_s: float = 3600.0) -> tuple[BatchRecord, int]:
    claimed = batches.claim(holder, lease_s)
    assert claimed is not None
    return claimed


def terms(**more: object) -> BatchTerms:
    values = {
        "id": new_batch_id(),
        "team": "a",
        "key_id": "k",
        "endpoint": "/v1/chat/completions",
        "input_file_id": new_file_id(),
        "model": "m",
        "policy": policy("default", {"name": "w", "kind": "ban_list", "on": "input", "words": ["x"]}),
        "created_at": NOW,
        "expires_at": NOW + timedelta(days=1),
    }
    return BatchTerms.model_validate(values | more)


def test_files_are_there_with_the_end_of_their_batch(database_url: str) -> None:
    batches, files = BatchRepository(database_url), FileRepository(database_url)
    made = batches.create(terms())
    claims = [claim(batches, "first", 0.0), claim(batches, "second")]
    assert batches.claim("third", 30.0) is None
    ends = list[tuple[int, BatchProgress]]()
    for record, token in claims:
        files.announce(output := file(purpose="batch_output"))
        ends.append((token, entered(record, BatchStatus.COMPLETED, output_file_id=output.id)))
    with pytest.raises(RefusedError, match="second's now"):
        batches.report(made.id, *ends[0], 30.0)
    assert files.list("a") == []
    assert batches.report(made.id, *ends[1], 30.0).status is BatchStatus.COMPLETED
    assert [found.id for found in files.list("a")] == [ends[1][1].output_file_id]
    assert batches.claim("third", 30.0) is None
    assert [found.id for found in batches.ended(NOW)] == [made.id]
    assert batches.ended(NOW + timedelta(seconds=1)) == []


def test_work_that_cannot_be_read_is_passed_over(database_url: str) -> None:
    batches = BatchRepository(database_url)
    *bad, good = [batches.create(terms(created_at=NOW + timedelta(seconds=n))).id for n in range(4)]
    with Database(database_url).write() as connection:  # As a newer release may leave them.
        for name in bad:
            connection.execute(text("UPDATE batches SET terms = '{}' WHERE id = :id"), {"id": name})
    # At once: else, by the time that the last of many has had its turn, the first is free again.
    assert claim(batches, "first")[0].id == good
    assert batches.claim("second", 30.0) is None


def test_an_end_without_its_file_is_none(database_url: str, store: ObjectStore) -> None:
    batches, files = BatchRepository(database_url), FileRepository(database_url)
    batches.create(terms())
    record, token = claim(batches, "first")
    files.announce(output := file(purpose="batch_output"))
    files.give_up(output, store)
    end = entered(record, BatchStatus.COMPLETED, output_file_id=output.id)
    with pytest.raises(NotFoundError):
        batches.report(record.id, token, end, 30.0)
    assert batches.get(record.id, "a").status is BatchStatus.VALIDATING


def test_quotas_and_ids_that_are_none(database_url: str) -> None:
    batches, files = BatchRepository(database_url), FileRepository(database_url)
    files.announce(file(bytes=70), quota=100)
    files.announce(file(bytes=70, team="b"), quota=100)
    with pytest.raises(RefusedError, match="has 70"):
        files.announce(file(bytes=31), quota=100)
    for none in ("file-none", "file-\0", "'"):
        for ask in (
            lambda: files.get(none, "a"),  # noqa: B023
            lambda: files.list("a", after=none),  # noqa: B023
            lambda: batches.get(none, "a"),  # noqa: B023
            lambda: batches.cancel(none, "a"),  # noqa: B023
        ):
            with pytest.raises(NotFoundError):
                ask()
