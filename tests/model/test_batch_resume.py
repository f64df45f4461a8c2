"""A batch whose driver is killed goes on where it stood: each row once, and hardly any asked twice."""

from __future__ import annotations

import json
import threading
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cluster.contracts import Manifest
from cluster.job import JobResult
from cluster.storage import ArtifactStore, ObjectStore
from jobs.batch.rows import read_parts
from tests.fault_proxy import FaultProxy, Trap
from tests.model.kills import Verb, as_team, run_and_kill

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]
CONCURRENCY, FLUSH = 4, 5


def batch_of(folder: Path, model: str, prompts: list[str], **fields: Any) -> Verb:
    """The verb, over rows whose ids no other test has."""
    mark = uuid.uuid4().hex[:8]
    lines = [
        {
            "custom_id": f"{mark}-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"messages": [{"role": "user", "content": prompt}]},
        }
        for number, prompt in enumerate(prompts)
    ]
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    configuration = {
        "source": {"path": str(folder / "prompts.jsonl")},
        "model": model,
        "concurrency": CONCURRENCY,
        "rows_per_file": 25,
        "flush_rows": FLUSH,
        **fields,
    }
    return Verb("batch_inference", "batch-output", configuration, writes=range(1, 2))


def asked(model: str, verb: Verb) -> dict[int, int]:
    """How often the engine got each row."""
    from ray import serve

    seen, _, _ = serve.get_deployment_handle("model", app_name=model).seen.remote().result()
    first = json.loads(Path(verb.fields["source"]["path"]).read_text().splitlines()[0])["custom_id"]
    mark = first.partition("-")[0]
    return {
        int(name.rpartition("-")[2]): count
        for name, count in seen.items()
        if name.startswith(f"batch-{mark}-")
    }


def stored(artifacts: ArtifactStore, manifest: Manifest) -> Counter[str]:
    """How often each row stands in the artifact, with what became of it."""
    prefix = artifacts.prefix(manifest)
    keys = [prefix + file.path for file in manifest.files if file.path.endswith(".parquet")]
    rows = read_parts(artifacts.store, keys, ["row_id", "status"])
    return Counter(f"{row['row_id'].rpartition('-')[2]} {row['status']}" for row in rows)


def test_a_batch_killed_in_the_middle_asks_only_for_what_is_missing(
    echo_route: str,
    proxy: FaultProxy,
    team: str,
    tmp_path: Path,
    artifacts: ArtifactStore,
    store: ObjectStore,
) -> None:
    prompts = [f"Tell me about number {number}" for number in range(60)]
    prompts[0] += " FAIL-ONCE"  # Tried once and failed of infrastructure: the next run asks again.
    prompts[1] += " FAIL-ALWAYS"  # The row's own fault: it stays failed.
    verb = batch_of(tmp_path, echo_route, prompts, attempts=1)

    def part(request: Any) -> bool:
        return request.writes and "/answers/part-" in request.key

    run_and_kill(verb, "cell", team, proxy, Trap(part, "after", lambda: None, nth=6), tmp_path)
    before = asked(echo_route, verb)
    assert list(artifacts.list(team)) == []
    with as_team(team):
        result = verb.run("cell")
    manifest = artifacts.open(result.artifact)

    assert stored(artifacts, manifest) == Counter(
        {f"{number} {'failed' if number == 1 else 'succeeded'}": 1 for number in range(60)}
    )
    after = asked(echo_route, verb)
    assert (before[0], after[0]) == (1, 2)
    assert after[1] == 1
    repeated = [number for number, count in after.items() if count > 1 and number != 0]
    assert len(repeated) <= CONCURRENCY + 2 * FLUSH
    assert result.summary["resumed"] >= 6 * FLUSH - 1
    assert result.summary["resumed"] + result.summary["asked"] == 60
    # The journal is gone with the commit; the killed run's own stays for `manta gc`.
    left = {
        item.key.removeprefix(f"{manifest.ref}/attempts/").split("/")[0] for item in store.list(f"{team}/")
    }
    assert f"{manifest.run_id}.rows" not in left
    assert len([name for name in left if name.endswith(".rows")]) == 1


def test_a_batch_that_was_refused_answers_nothing_twice(
    echo_route: str, team: str, tmp_path: Path, artifacts: ArtifactStore
) -> None:
    verb = batch_of(tmp_path, echo_route, ["FAIL-ALWAYS now", "Fine", "Good"], max_failed=0.1)
    lenient = batch_of(tmp_path, echo_route, [], max_failed=0.5)
    (tmp_path / "prompts.jsonl").write_text(
        "\n".join(
            json.dumps(
                {
                    "custom_id": f"{team}x-{number}",
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": {"messages": [{"role": "user", "content": text}]},
                }
            )
            for number, text in enumerate(["FAIL-ALWAYS now", "Fine", "Good"])
        )
    )
    from cluster.errors import RefusedError

    with as_team(team):
        with pytest.raises(RefusedError, match="1 of 3 rows failed"):
            verb.run("cell")
        summary = lenient.run("cell").summary
    assert (summary["resumed"], summary["asked"], summary["succeeded"]) == (3, 0, 2)


def test_two_equal_batches_at_once_ask_each_row_once(
    echo_route: str, team: str, tmp_path: Path, artifacts: ArtifactStore
) -> None:
    verb = batch_of(tmp_path, echo_route, [f"Number {number}" for number in range(40)], concurrency=1)
    results: list[JobResult] = []
    with as_team(team):
        both = [threading.Thread(target=lambda: results.append(verb.run("cell"))) for _ in range(2)]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join(timeout=120)
    assert len({result.artifact for result in results}) == 1
    assert sorted(result.reused for result in results) == [False, True]
    assert set(asked(echo_route, verb).values()) == {1}
    assert sum(stored(artifacts, artifacts.open(results[0].artifact)).values()) == 40


def test_a_row_that_kills_the_engine_goes_to_the_errors_alone(
    echo_route: str, team: str, tmp_path: Path, artifacts: ArtifactStore
) -> None:
    prompts = [f"Number {number}" for number in range(12)]
    prompts[3] = "KILL the engine"
    prompts[7] = "PAUSE-ONCE and go on"
    verb = batch_of(tmp_path, echo_route, prompts, stall_s=4.0)
    with as_team(team):
        result = verb.run("cell")
    assert stored(artifacts, artifacts.open(result.artifact)) == Counter(
        {f"{number} {'failed' if number == 3 else 'succeeded'}": 1 for number in range(12)}
    )
    assert result.summary["error_codes"] == {"poison": 1}
