"""A batch killed half-way and run again: how much work is done twice, and whether each row is there once.

    python -m tests.benchmarks.batch_resume [--rows 2000] [--kills 1] [--quick]

The job runs as its command on an S3 server of its own, with an engine that notes in a file what it is asked.
Its driver is killed with SIGKILL when the answered rows in storage reach each of ``--kills`` evenly spaced
marks, and started again. The last line is JSON: ``passes`` is rows that the engine was asked over rows;
``rows_found`` are in the artifact's files, ``duplicates`` are those that stand there twice.
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

from tests.benchmarks.local import storage
from tests.warm_stub import asked, publish, write_prompts

#: About ten seconds of work, so that a flush every second is a small part of it.
CONCURRENCY, FLUSH_ROWS, FLUSH_S = 16, 25, 1.0


def start(prompts: Path, asked: Path, log: Path) -> subprocess.Popen[bytes]:
    """The job's command."""
    words = [sys.executable, "-m", "tests.warm_stub", str(asked), "--name", "bench", "--model", "stub"]
    words += ["--source.path", str(prompts), "--concurrency", str(CONCURRENCY), "--json"]
    words += ["--flush_rows", str(FLUSH_ROWS), "--flush_s", str(FLUSH_S), "--progress_s", "1"]
    with log.open("ab") as out:
        return subprocess.Popen(words, stdout=out, stderr=out, start_new_session=True)


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
    return found.total(), sum(count > 1 for count in found.values())


def main() -> None:
    """Kill, resume, print a table, and end with the JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int)
    parser.add_argument("--kills", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="2,000 rows instead of 4,000")
    options = parser.parse_args()
    rows = options.rows or (2000 if options.quick else 4000)
    with storage(), tempfile.TemporaryDirectory(prefix="bench-in-") as folder:
        prompts, log, noted = Path(folder) / "prompts.jsonl", Path(folder) / "job.log", Path(folder) / "asked"
        write_prompts(prompts, (f"Describe number {number} in words." for number in range(rows)))
        publish()
        killed_at = []
        for mark in [rows * (number + 1) // (options.kills + 1) for number in range(options.kills)]:
            job = start(prompts, noted, log)
            while job.poll() is None and durable() < mark:
                time.sleep(0.05)
            if job.poll() is not None:
                raise SystemExit(f"the job ended before it was killed:\n{log.read_text()[-3000:]}")
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
            killed_at.append(asked(noted).total())
        if start(prompts, noted, log).wait(timeout=900) != 0:
            raise SystemExit(log.read_text()[-3000:])
        found, duplicates = result(rows, log)
        times = asked(noted)
        twice = sum(count > 1 for count in times.values())
    print(f"\n{rows} rows, {CONCURRENCY} in flight, parts of {FLUSH_ROWS} rows or {FLUSH_S:g} s")
    print(f"{'rows asked when the driver was killed':<44}{killed_at}")
    print(f"{'rows asked in all, of them more than once':<44}{times.total()}, {twice}")
    print(f"{'a batch that begins anew would have asked':<44}{sum(killed_at) + rows}")
    print(
        json.dumps(
            {
                "passes": round(times.total() / rows, 4),
                "rows_expected": rows,
                "rows_found": found,
                "duplicates": duplicates,
            }
        )
    )


if __name__ == "__main__":
    main()
