"""``jobs.tune`` of a job that ends meanwhile."""

from __future__ import annotations

import hashlib
import json
import secrets
from datetime import UTC, datetime
from typing import Any

import pytest

from cluster.contracts.tuning import TuningTerms
from cluster.errors import NotFoundError, RefusedError
from cluster.job import JobResult
from cluster.registry import Registry
from cluster.settings import load_settings
from cluster.storage import ObjectStore
from cluster.tuning import TuningRepository, new_tuning_id
from jobs import finetune, tune
from jobs.tune import TuneConfig
from tests.integration.tuning import example
from tests.model.test_promote import make_checkpoint

pytestmark = pytest.mark.integration


def test_nothing_is_registered_for_a_job_that_was_cancelled(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings()
    jobs, job_id = TuningRepository(settings.database_url), new_tuning_id()
    key, content = f"{settings.team}/files/{secrets.token_hex(8)}", json.dumps(example(1)).encode()
    store.put(key, content)
    config = TuneConfig(
        name=job_id,
        training_file={"key": key, "sha256": hashlib.sha256(content).hexdigest()},
        base_model=f"default/model/tiny/{'a' * 16}",
        adapters="default/adapters/",
        training={},
    )
    with pytest.raises(NotFoundError, match="Could not find fine tune"):
        tune.run(config)
    terms = {
        "id": job_id,
        "team": settings.team,
        "key_id": "k",
        "model": "m",
        "training_file": "f",
        "seed": 1,
    }
    jobs.create(TuningTerms(**terms, created_at=datetime.now(UTC)))

    def is_cancelled_at_its_end(*_: Any, **__: Any) -> JobResult:
        checkpoint = make_checkpoint(job_id, b"weights", counts={"samples_seen": 1})
        jobs.cancel(job_id, settings.team)
        return JobResult(artifact=str(checkpoint.ref), reused=False, summary={})

    monkeypatch.setattr(finetune, "run", is_cancelled_at_its_end)
    with pytest.raises(RefusedError, match=f"{job_id} is cancelled: nothing may come of it any more"):
        tune.run(config)
    with pytest.raises(NotFoundError):
        Registry(settings).versions(job_id)
    # One that is submitted too late does not even begin.
    monkeypatch.delattr(finetune, "run")
    with pytest.raises(RefusedError, match="is cancelled"):
        tune.run(config)
    assert list(store.list(f"default/adapters/{job_id}")) == []
