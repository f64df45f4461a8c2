"""The driver of a batch over ever more rows: its memory, and what a row costs it.

    python -m tests.benchmarks.batch_memory [--rows 1000000] [--quick]

Each batch runs in a process of its own on a real S3 server, with everything that the job does (reading,
checking, guards, journal, files, proof) and an engine in the same process that answers at once: what is
measured is the job. Every process runs a batch of 1,000 rows first, so that imports and first uses count in
neither. Memory is the process's greatest resident size; the cost of a row is CPU time between the first row
read and the proof. The last line is JSON: both of the large batch over those of 1,000 rows.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from tests.benchmarks.local import storage
from tests.warm_stub import StubEngine, play, publish, write_prompts

SMALL = 1000
_POLICY = (
    "name: quick\nversion: 1\nguards:\n- {name: length, kind: length, 'on': both, max_characters: 4000}\n"
)
_PROMPT = "Please describe object number {} in a sentence or two, and say what it is good for."


def measure_here(rows: int, folder: Path) -> dict[str, float]:
    """Of a batch in this process: CPU seconds a row, and MB of memory at most."""
    from jobs import batch_inference

    play(StubEngine(pace_s=0))
    run_rows, cpu = batch_inference._run_rows, [0.0]

    def timed(*arguments: Any) -> Any:
        started = time.process_time()
        try:
            return run_rows(*arguments)
        finally:
            cpu[0] = time.process_time() - started

    batch_inference._run_rows = timed
    policy = folder / "policy.yaml"
    policy.write_text(_POLICY)

    def batch(count: int) -> None:
        path = folder / f"{uuid.uuid4().hex}.jsonl"
        write_prompts(path, (_PROMPT.format(number) for number in range(count)))
        config = {"name": f"b{uuid.uuid4().hex[:8]}", "source": {"path": str(path)}, "model": "stub"}
        config |= {"policy": str(policy), "progress_s": 30}
        summary = batch_inference.run(batch_inference.BatchInferenceConfig.model_validate(config)).summary
        path.unlink()
        assert summary["succeeded"] == count

    batch(SMALL)
    batch(rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"peak_mb": peak, "cpu_s_a_row": cpu[0] / rows}


def measure(rows: int) -> dict[str, float]:
    """The same in a process of its own."""
    words = [sys.executable, "-m", "tests.benchmarks.batch_memory", "--here", str(rows)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    """Measure, print a table, and end with the JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int)
    parser.add_argument("--quick", action="store_true", help="100,000 rows in place of 1,000,000")
    parser.add_argument("--here", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        with tempfile.TemporaryDirectory(prefix="bench-in-") as folder:
            print(json.dumps(measure_here(options.here, Path(folder))))
        return
    large = options.rows or (100_000 if options.quick else 1_000_000)
    with storage():
        publish()
        found = {rows: measure(rows) for rows in (SMALL, large)}
    print(f"\n{'rows':>10}{'peak MB':>12}{'CPU us a row':>16}")
    for rows, figures in found.items():
        print(f"{rows:>10,}{figures['peak_mb']:>12.0f}{figures['cpu_s_a_row'] * 1e6:>16.0f}")
    ratios = {key: found[large][key] / found[SMALL][key] for key in ("peak_mb", "cpu_s_a_row")}
    print(
        json.dumps(
            {
                "rss_1m_over_1k": round(ratios["peak_mb"], 3),
                "row_cost_1m_over_1k": round(ratios["cpu_s_a_row"], 3),
            }
        )
    )


if __name__ == "__main__":
    main()
