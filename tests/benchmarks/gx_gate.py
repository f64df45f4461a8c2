"""What the gate costs beside a bare scan, beside Great Expectations on the whole frame, and in another pass.

    python -m tests.benchmarks.gx_gate [--quick] [--rounds 5]

Ten expectations over a million rows of Parquet (50,000 with --quick). Each figure is CPU seconds (user and
system), the least of some rounds on warm workers:

- scan: all Ray workers while Ray Data reads the gate's columns, decodes them and counts the rows;
- gate: all Ray workers while they read the same columns and judge each block, and the driver while it merges
  the partial results and Great Expectations judges. Not the driver's share of the scan, which both have; not
  planning, which imports Great Expectations once. Workers are those that lived before and after: what Ray
  starts meanwhile to have them idle (a CPU second a round) is told apart;
- full frame: one process that reads the same columns into pandas and runs Great Expectations on the frame,
  after its import;
- share of pass: what `judge_block` of contract and final suite costs within the job's own two functions for a
  block, `Marking` and `Finishing`, by the shipped recipe for plain corpora, in one process. The texts are
  made up of 15 words; the rules refuse about half of them early, which makes the rest of the pass cheaper.

Both verdicts must be equal, or it fails. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from validation.data.suite import Suite

EXPECTATIONS: list[tuple[str, dict[str, Any]]] = [
    ("column_values_to_not_be_null", {"column": "text"}),
    ("column_values_to_be_between", {"column": "score", "min_value": 0, "max_value": 1}),
    ("column_values_to_be_in_set", {"column": "language", "value_set": ["en", "de", "fr"], "mostly": 0.5}),
    ("column_value_lengths_to_be_between", {"column": "text", "min_value": 10, "max_value": 400}),
    ("column_values_to_match_regex", {"column": "row_id", "regex": r"^r\d+$"}),
    ("column_mean_to_be_between", {"column": "score", "min_value": 0.4, "max_value": 0.6}),
    ("column_stdev_to_be_between", {"column": "score", "min_value": 0.2, "max_value": 0.4}),
    ("column_max_to_be_between", {"column": "tokens", "max_value": 500}),
    ("column_distinct_values_to_be_in_set", {"column": "language", "value_set": ["en", "de", "fr", "es"]}),
    ("table_row_count_to_be_between", {"min_value": 1}),
]
SUITE = Suite(
    "benchmark",
    {"name": "benchmark", "expectations": [{"type": f"expect_{n}", "kwargs": k} for n, k in EXPECTATIONS]},
)
RECIPE = Path(__file__).parents[2] / "jobs" / "configs" / "preprocess_text.yaml"
PASS_ROWS = 4_000
COLUMNS = ["row_id", "text", "score", "language", "tokens"]
FILES = 10


def write(folder: Path, rows: int) -> None:
    """Parquet files of text of one to four sentences."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    chance = np.random.default_rng(7)
    words = np.array(
        [
            "the",
            "quick",
            "brown",
            "fox",
            "jumps",
            "over",
            "a",
            "lazy",
            "dog",
            "while",
            "seven",
            "wizards",
            "judge",
            "my",
            "vow",
        ]
    )
    sentences = [" ".join(chance.choice(words, 12)) for _ in range(4_000)]
    for number in range(FILES):
        size = rows // FILES
        picked = chance.integers(0, len(sentences), (size, 2))
        table = {
            "row_id": [f"r{number * size + i}" for i in range(size)],
            "text": [f"{sentences[a]}. {sentences[b]}." for a, b in picked],
            "score": chance.random(size),
            "language": chance.choice(["en", "de", "fr", "es"], size),
            "tokens": chance.integers(1, 500, size),
            "unread": [sentences[a] for a in picked[:, 0]],
        }
        pq.write_table(pa.table(table), folder / f"{number:02}.parquet")


def workers_seconds() -> dict[int, float]:
    """CPU seconds of each Ray worker so far."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            line = " ".join(process.cmdline())
            if ("ray::" in line and "Agent" not in line) or "default_worker" in line:
                times = process.cpu_times()
                found[process.pid] = times.user + times.system
        except psutil.Error:
            continue
    return found


def measured(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """CPU seconds that Ray's workers spend on some work, those of new ones meanwhile, and the result."""
    before = workers_seconds()
    result = work()
    time.sleep(0.5)
    after = workers_seconds()
    warm = sum(seconds - before[pid] for pid, seconds in after.items() if pid in before)
    return warm, sum(seconds for pid, seconds in after.items() if pid not in before), result


def own(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds that this process spends on some work, and its result."""
    before = time.process_time()
    result = work()
    return time.process_time() - before, result


def scan_and_gate(folder: Path, rounds: int) -> tuple[float, float, list[bool]]:
    """The least CPU seconds of the scan and of the gate, and the gate's verdicts."""
    import ray
    import ray.data

    from validation.data.engine.rounds import partials_of
    from validation.data.gate import arrow_schema, finish_gate, plan_gate

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    ray.data.DataContext.get_current().enable_progress_bars = False

    def rows(columns: list[str]) -> Any:
        return ray.data.read_parquet(str(folder), columns=columns)

    def count(table: Any) -> Any:
        import pyarrow as pa

        return pa.table({"rows": [table.num_rows]})

    plan = plan_gate(SUITE, arrow_schema(rows(COLUMNS).schema()))
    assert set(plan.first.columns) | {"row_id"} == set(COLUMNS)

    def scan() -> int:
        counted = rows(COLUMNS).map_batches(count, batch_size=None, batch_format="pyarrow", num_cpus=1)
        return sum(row["rows"] for row in counted.iter_rows())

    scans, gates, report = [], [], None
    scan()
    for _ in range(rounds):
        scanning, idle, _ = measured(scan)
        judging, more, partials = measured(lambda: list(partials_of(rows(COLUMNS), plan.first, 1)))
        merging, report = own(lambda found=partials: finish_gate(plan, found, rows))
        told = f"round: scan {scanning:.2f} (new workers {idle:.2f}), gate {judging:.2f} + {merging:.2f}"
        print(f"{told} (new workers {more:.2f})", file=sys.stderr)
        scans.append(scanning)
        gates.append(judging + merging)
    ray.shutdown()
    assert report is not None
    return min(scans), min(gates), [e.success for e in report.expectations]


def full_frame(folder: Path, rounds: int) -> tuple[float, list[bool]]:
    """The least CPU seconds of Great Expectations on one frame, and its verdicts."""
    import pyarrow.parquet as pq
    from great_expectations.core.expectation_suite import ExpectationSuite

    from validation.data.engine.execution import _context

    built = SUITE.build()

    def run(name: str) -> list[bool]:
        frame = pq.read_table(folder, columns=COLUMNS).to_pandas()
        asset = _context().data_sources.add_pandas(name).add_dataframe_asset(name)
        batch = asset.add_batch_definition_whole_dataframe(name).get_batch({"dataframe": frame})
        form = {"result_format": "SUMMARY", "unexpected_index_column_names": ["row_id"]}
        suite = ExpectationSuite(name=name, expectations=[e.configuration for e in built])
        outcome = batch.validate(suite, result_format=form)
        found = {r.expectation_config.type: bool(r.success) for r in outcome.results}
        return [found[e.configuration.type] for e in built]

    timed = [own(lambda number=number: run(f"full-{number}")) for number in range(rounds)]
    return min(seconds for seconds, _ in timed), timed[0][1]


def share_of_pass(folder: Path) -> float:
    """The gates' share of the job's pass over blocks."""
    import pyarrow.parquet as pq

    from cluster.job.config import read_yaml
    from jobs.preprocess import PreprocessConfig
    from jobs.preprocessing.duplicates import gathered
    from jobs.preprocessing.files import source_file
    from jobs.preprocessing.finishing import Finishing
    from jobs.preprocessing.marking import Marking
    from jobs.preprocessing.reading import read_tables
    from jobs.preprocessing.rows import contract_schema
    from validation.data.gate import BlockVerdict, GatePlan, plan_gate
    from validation.data.suite import load_suite

    spent = 0.0

    class Timed(GatePlan):
        def judge_block(self, table: Any) -> BlockVerdict:
            nonlocal spent
            seconds, verdict = own(lambda: super(Timed, self).judge_block(table))
            spent += seconds
            return verdict

    def timed(plan: GatePlan) -> Timed:
        return Timed(**vars(plan))

    columns = {"row_id": "string", "text": "string", "score": "float64", "language": "string"}
    changes = {"name": "b", "train": ["a"], "columns": columns | {"tokens": "int64"}, "id_column": "row_id"}
    config = PreprocessConfig.model_validate(read_yaml(RECIPE) | changes | {"text": ["text"]})
    rows = folder / "pass" / "rows.parquet"
    rows.parent.mkdir()
    pq.write_table(pq.read_table(min(folder.glob("*.parquet")), columns=COLUMNS).slice(0, PASS_ROWS), rows)
    form = config.row_format
    marking = Marking(
        form,
        config.normalise,
        config.shape,
        contract=timed(plan_gate(SUITE, contract_schema(form))),
        rules=config.rules,
        near=config.duplicates.near,
    )
    finishing = Finishing(form, config.shape)
    final = timed(plan_gate(load_suite("documents"), finishing.suite_schema()))
    (raw,) = read_tables(source_file(str(rows), 0, None), form)

    def run(block: Any) -> None:
        finishing(marking(block), gathered(), {}, final)

    run(raw.slice(0, 100))  # Models and patterns are loaded once in a process.
    spent = 0.0
    whole, _ = own(lambda: run(raw))
    return spent / whole


def main() -> None:
    """Measure, print, end with JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="50,000 rows.")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    rows = 50_000 if arguments.quick else 1_000_000
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(folder, rows)
        share = share_of_pass(folder)
        scan, judged, found = scan_and_gate(folder, arguments.rounds)
        full, wanted = full_frame(folder, arguments.rounds)
    assert found == wanted, (found, wanted)
    for name, seconds in (("bare scan", scan), ("gate", judged), ("full frame", full)):
        print(f"{name:12} {seconds:8.2f} CPU seconds for {rows:,} rows", file=sys.stderr)
    figures = {
        "gate_cpu_over_scan": round(judged / scan, 2),
        "full_frame_cpu_over_gate": round(full / judged, 2),
        "gate_share_of_pass": round(share, 3),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
