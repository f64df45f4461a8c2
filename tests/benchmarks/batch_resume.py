"""A batch killed half-way and run again: how much work is done twice, and whether each row is there once.

    python -m tests.benchmarks.batch_resume [--rows 2000] [--kills 1] [--quick]

The job runs as its command on a Ray and an S3 server of its own, against a warm stub engine that counts what
it is asked. Its driver is killed with SIGKILL when the answered rows in storage reach each of ``--kills``
evenly spaced marks, and started again. The last line is JSON: ``passes`` is rows that the engine was asked
over rows; ``rows_found`` are in the artifact's files, ``duplicates`` are those that stand there twice.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.benchmarks.local import platform

#: About ten seconds of work, so that a flush every second is a small part of it.
CONCURRENCY, FLUSH_ROWS, FLUSH_S = 16, 25, 1.0


def deploy() -> Any:
    """The stub engine, its route, and the handle that tells what it was asked."""
    from datetime import UTC, datetime

    from ray import serve

    from cluster import snapshots
    from cluster.contracts import Route, Target
    from tests.integration.echo_model import app

    serve.run(app, name="bench", route_prefix=None)
    target = Target(application="bench", deployment="model", model="bench", digest="3" * 64)
    route = Route(model="bench", targets=[target], created_at=datetime.now(UTC))
    snapshots.publish(lambda s: s.model_copy(update={"routes": [route]}), by="benchmark")
    return serve.get_deployment_handle("model", app_name="bench")


def write_prompts(path: Path, rows: int) -> None:
    """OpenAI's batch lines."""
    head = {"method": "POST", "url": "/v1/chat/completions"}
    with path.open("w") as out:
        for number in range(rows):
            body = {"messages": [{"role": "user", "content": f"Describe number {number} in words."}]}
            out.write(json.dumps({"custom_id": f"r{number}", **head, "body": body}) + "\n")


def start(prompts: Path, log: Path) -> subprocess.Popen[bytes]:
    """The job's command."""
    import ray

    words = [sys.executable, "-m", "jobs.batch_inference", "--name", "bench", "--model", "bench"]
    words += ["--source.path", str(prompts), "--concurrency", str(CONCURRENCY), "--json"]
    words += ["--flush_rows", str(FLUSH_ROWS), "--flush_s", str(FLUSH_S), "--progress_s", "1"]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with log.open("ab") as out:
        return subprocess.Popen(words, env=environment, stdout=out, stderr=out, start_new_session=True)


def durable() -> int:
    """Answered rows, as the job's attempts report them beside each part that they write."""
    from cluster.storage import object_store

    store, most = object_store(), 0
    for item in store.list("default/batch-output/bench/"):
        if item.key.endswith(".rows/progress.json"):
            most = max(most, json.loads(store.get(item.key))["rows"])
    return most


def result(rows: int, log: Path) -> tuple[int, int]:
    """Rows found in the artifact's files, and how many of them stand there more than once."""
    from cluster.storage import ArtifactStore, object_store
    from jobs.batch.rows import read_parts

    artifacts = ArtifactStore(object_store())
    manifest = artifacts.open(json.loads(log.read_text().strip().splitlines()[-1])["artifact"])
    prefix = artifacts.prefix(manifest)
    keys = [prefix + file.path for file in manifest.files if file.path.endswith(".parquet")]
    found = Counter(row["row_id"] for row in read_parts(artifacts.store, keys, ["row_id"]))
    assert set(found) == {f"r{number}" for number in range(rows)}
    return found.total(), sum(count > 1 for count in found.values())


def main() -> None:
    """Kill, resume, print a table, and end with the JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int)
    parser.add_argument("--kills", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="1,000 rows instead of 4,000")
    options = parser.parse_args()
    rows = options.rows or (1000 if options.quick else 4000)
    with platform(num_cpus=4), tempfile.TemporaryDirectory(prefix="bench-in-") as folder:
        prompts, log = Path(folder) / "prompts.jsonl", Path(folder) / "job.log"
        write_prompts(prompts, rows)
        engine, killed_at = deploy(), []
        try:
            for mark in [rows * (number + 1) // (options.kills + 1) for number in range(options.kills)]:
                job = start(prompts, log)
                while job.poll() is None and durable() < mark:
                    time.sleep(0.05)
                if job.poll() is not None:
                    raise SystemExit(f"the job ended before it was killed:\n{log.read_text()[-3000:]}")
                os.killpg(job.pid, signal.SIGKILL)
                job.wait()
                killed_at.append(sum(engine.seen.remote().result()[0].values()))
            if start(prompts, log).wait(timeout=600) != 0:
                raise SystemExit(log.read_text()[-3000:])
            asked = engine.seen.remote().result()[0]
            found, duplicates = result(rows, log)
        finally:
            from ray import serve

            serve.shutdown()
    total = sum(asked.values())
    print(f"\n{rows} rows, {CONCURRENCY} in flight, parts of {FLUSH_ROWS} rows or {FLUSH_S:g} s")
    print(f"{'rows asked when the driver was killed':<44}{killed_at}")
    print(f"{'rows asked in all, of them more than once':<44}{total}, {sum(n > 1 for n in asked.values())}")
    print(f"{'a batch that begins anew would have asked':<44}{sum(killed_at) + rows}")
    print(
        json.dumps(
            {
                "passes": round(total / rows, 4),
                "rows_expected": rows,
                "rows_found": found,
                "duplicates": duplicates,
            }
        )
    )


if __name__ == "__main__":
    main()
