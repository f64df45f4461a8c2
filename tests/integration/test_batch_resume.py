"""A batch whose driver is killed goes on where it stood: each row once, and hardly any asked twice.

The driver and the S3 server are real; the engine is played, so that a run takes seconds and counts its rows.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cluster.contracts import Manifest
from cluster.errors import RefusedError, UsageError
from cluster.job import JobResult
from cluster.settings import load_settings
from cluster.storage import ArtifactStore
from jobs.batch.rows import read_parts
from tests.conftest import S3
from tests.fault_proxy import FaultProxy, Trap
from tests.ports import free_ports
from tests.warm_stub import StubEngine, asked, play, publish, write_prompts

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
CONCURRENCY, FLUSH = 4, 5


@pytest.fixture
def model(s3: S3) -> str:
    """A published name."""
    return publish(f"stub-{os.urandom(4).hex()}")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str) -> Any:
    """Run a batch in this process, with an engine that notes what it is asked."""
    from jobs import batch_inference
    from jobs.batch import warm

    for module, name in ((warm, "_handle"), (batch_inference, "connect")):
        monkeypatch.setattr(module, name, getattr(module, name))  # Put back after the test.
    engine = StubEngine(tmp_path / "asked")

    def one(name: str, **fields: Any) -> JobResult:
        play(engine)
        engine.asked = asked(tmp_path / "asked")
        return batch_inference.run(
            batch_inference.BatchInferenceConfig.model_validate(settings(name, tmp_path, model) | fields)
        )

    return one


def settings(name: str, folder: Path, model: str) -> dict[str, Any]:
    return {
        "name": name,
        "source": {"path": str(folder / "prompts.jsonl")},
        "model": model,
        "concurrency": CONCURRENCY,
        "flush_rows": FLUSH,
        "rows_per_file": 25,
        "attempts": 1,
    }


def stored(artifacts: ArtifactStore, manifest: Manifest) -> Counter[tuple[str, str]]:
    """How often each row stands in the artifact, with what became of it."""
    prefix = artifacts.prefix(manifest)
    keys = [prefix + file.path for file in manifest.files if file.path.endswith(".parquet")]
    rows = read_parts(artifacts.store, keys, ["row_id", "status"])
    return Counter((row["row_id"], row["status"]) for row in rows)


def show(what: str) -> dict[str, Any]:
    """``manta batch show --json``."""
    from jobs.cli import batch

    done = CliRunner().invoke(batch, ["show", what, "--json"], catch_exceptions=False)
    found: dict[str, Any] = json.loads(done.output)
    return found


def test_a_batch_killed_in_the_middle_asks_only_for_what_is_missing(
    s3: S3, run: Any, model: str, tmp_path: Path, artifacts: ArtifactStore
) -> None:
    texts = [f"Tell me about number {number}" for number in range(80)]
    texts[0] += " BUSY-ONCE"  # Failed of infrastructure: the next run asks again.
    texts[1] += " TOO-LONG"  # The row's own fault: it stays failed.
    write_prompts(tmp_path / "prompts.jsonl", texts)
    (tmp_path / "job.yaml").write_text(json.dumps(settings("cell", tmp_path, model)))

    with FaultProxy(s3.endpoint, free_ports()) as proxy, (tmp_path / "job.log").open("wb") as log:
        words = [sys.executable, "-m", "tests.warm_stub", str(tmp_path / "asked")]
        job = subprocess.Popen(
            [*words, "--config", str(tmp_path / "job.yaml")],
            env={**os.environ, "AWS_ENDPOINT_URL": proxy.endpoint},
            stdout=log,
            stderr=log,
        )
        kill = Trap(
            lambda request: request.writes and "/answers/part-" in request.key,
            "after",
            lambda: os.kill(job.pid, signal.SIGKILL),
            nth=7,
        )
        proxy.trap(kill)
        assert job.wait(timeout=600) == -signal.SIGKILL, (tmp_path / "job.log").read_text()[-3000:]
    before = asked(tmp_path / "asked")
    assert FLUSH * 7 <= before.total() < 80
    killed = kill.sprung.key.split("/")[5].removesuffix(".rows")  # type: ignore[union-attr]
    half = show(killed)
    assert half["total"] == 80
    assert 0 < half["rows"] <= before.total()
    assert half["estimate"]["counted"] == "a quarter of the characters"

    result = run("cell")
    manifest = artifacts.open(result.artifact)
    rows = stored(artifacts, manifest)
    ids = [json.loads(line)["custom_id"] for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert rows == Counter(
        {(row_id, "failed" if number == 1 else "succeeded"): 1 for number, row_id in enumerate(ids)}
    )
    after = asked(tmp_path / "asked")
    assert (after[ids[0]], after[ids[1]]) == (2, 1)
    repeated = [row_id for row_id in ids[2:] if after[row_id] > 1]
    assert len(repeated) <= CONCURRENCY + 2 * FLUSH
    assert result.summary["resumed"] + result.summary["asked"] == 80
    assert result.summary["resumed"] >= 7 * FLUSH - 1
    # The journal is gone with the commit; the killed run's own stays for `manta gc`.
    keys = [item.key.split("/")[5] for item in artifacts.store.list(f"{manifest.ref}/attempts/")]
    assert set(keys) == {manifest.run_id, f"{killed}.rows"}
    for what in (manifest.run_id, result.artifact):
        shown = show(what)
        assert (shown["rows"], shown["succeeded"], shown["failed"]) == (80, 79, 1)
        assert shown["engine_reason"] == f"run {killed} began this batch with it"
        assert shown["first_errors"][0]["error_message"] == "The prompt is too long."


def test_an_undisturbed_batch_has_the_same_digest_as_one_in_two_runs(
    run: Any, tmp_path: Path, artifacts: ArtifactStore
) -> None:
    texts = ["Fine", "TOO-LONG", *(f"Number {number}" for number in range(30))]
    write_prompts(tmp_path / "prompts.jsonl", texts)
    with pytest.raises(RefusedError, match=r"1 of 32 rows failed.*too long"):
        run("refused", max_failed=0.01)
    once = asked(tmp_path / "asked").total()
    again = run("refused", max_failed=0.5)
    assert asked(tmp_path / "asked").total() == once == 32
    assert (again.summary["resumed"], again.summary["asked"], again.summary["succeeded"]) == (32, 0, 31)
    calm = run("calm")
    assert artifacts.open(calm.artifact).data_digest == artifacts.open(again.artifact).data_digest


def test_two_equal_batches_at_once_ask_each_row_once(
    run: Any, tmp_path: Path, artifacts: ArtifactStore
) -> None:
    write_prompts(tmp_path / "prompts.jsonl", (f"Number {number}" for number in range(40)))
    results: list[JobResult] = []
    both = [
        threading.Thread(target=lambda: results.append(run("twin", concurrency=1, progress_s=0.5)))
        for _ in range(2)
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(timeout=600)
    assert len({result.artifact for result in results}) == 1
    assert sorted(result.reused for result in results) == [False, True]
    assert set(asked(tmp_path / "asked").values()) == {1}
    assert sum(stored(artifacts, artifacts.open(results[0].artifact)).values()) == 40


def test_what_costs_too_much_is_refused_before_it_starts(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_prompts(tmp_path / "prompts.jsonl", ["x" * 400] * 10)
    price = {"input_per_million_tokens": 100, "output_per_million_tokens": 1000}
    sampling = {"max_tokens": 50}
    # 10 x 100 prompt tokens at 0.0001, 10 x 50 to generate at 0.001.
    with pytest.raises(
        RefusedError, match=r"may cost up to 0\.6 .*more than max_cost=0\.5: .*nothing was run"
    ):
        run("dear", price=price, max_cost=0.5, sampling=sampling)
    with pytest.raises(UsageError, match=r"has no price: set price\."):
        run("dear", max_cost=0.5, sampling=sampling)
    assert asked(tmp_path / "asked").total() == 0
    summary = run("dear", price=price, max_cost=0.7, sampling=sampling).summary
    assert summary["cost"] == pytest.approx((10 * 20 * 100 + 10 * 12 * 1000) / 1e6)
    said = capsys.readouterr().out
    assert "10 rows to ask: about 1,000 prompt tokens (a quarter of the characters)" in said
    assert "rows/s" in said
    with pytest.raises(UsageError, match="is of preprocess: name a run or an address of a batch"):
        show(_other_run())


def _other_run() -> str:
    from cluster.contracts import Principal
    from cluster.runs import RunRepository

    runs = RunRepository(load_settings().database_url)
    record = runs.start("preprocess", "f" * 16, Principal(key_id="t", team="t"), "host:1", 0.0)
    return record.id
