"""The stages of ``jobs.preprocess`` over Ray Data, and the account that every input row is held in."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cluster.errors import RefusedError
from cluster.job import JobRun
from cluster.job.preflight import preflight
from cluster.storage import merge_row_digests
from jobs.preprocessing.cleaning import Normalise, content_key, find_duplicates, normalised
from jobs.preprocessing.files import SourceFile
from jobs.preprocessing.reading import (
    ERROR,
    FILE,
    LINE,
    ROW_ID,
    SPLIT,
    RowFormat,
    arrow_type,
    raw_schema,
    read_tables,
)
from jobs.preprocessing.shaping import Template, hashed_split
from jobs.preprocessing.writing import Reason, block_digests, write_parquet, write_quarantine
from jobs.session import connect
from validation.data import GateReport, Suite

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import ray.data

SPLITS = ("train", "test")


class Pipeline:
    """One preprocessing run. The methods are its stages, to be called in the order in which they stand."""

    def __init__(self, job: JobRun, *, num_cpus: float) -> None:
        self.job, self._cpus = job, num_cpus
        self.contract: GateReport | None = None
        self.final: GateReport | None = None
        self.contaminated = 0
        self._reasons: dict[str, Reason] = {}
        self._duplicates: set[str] = set()
        self._input = 0

    def read(self, files: Sequence[SourceFile], form: RowFormat) -> None:
        """Read all rows. Raises RefusedError about the first file or line that cannot be read."""
        import ray

        connect()
        preflight([{"CPU": self._cpus}], asker="Preprocessing", remedy="lower num_cpus")
        _quiet()
        self._form = form

        def rows(batch: dict[str, Any]) -> Iterator[pa.Table]:
            for number in batch["id"]:
                yield from read_tables(files[number], form)

        # One task for each file.
        numbers = ray.data.range(len(files), override_num_blocks=len(files))
        read = numbers.map_batches(rows, batch_size=1, num_cpus=self._cpus)
        self._raw = read.materialize()
        self.job.progress(f"read {len(files)} files")
        places = _narrow(self._raw, [ROW_ID, FILE, LINE, ERROR]).sort_values([FILE, LINE])
        self._refuse_broken(places)
        self._input = len(places)
        if form.id_column is not None:
            repeated = places[places.duplicated(ROW_ID)]
            if len(repeated):
                raise RefusedError(
                    f"column {form.id_column} is no row id: {len(repeated)} rows repeat one, "
                    f"such as {repeated[ROW_ID].iloc[0]!r} at line {repeated[LINE].iloc[0]}."
                )

    def _refuse_broken(self, places: pd.DataFrame) -> None:
        broken = places[places[ERROR].notna()]
        fatal = broken if not self._form.keep_broken else broken[broken[LINE] == 0]
        if len(fatal):
            raise RefusedError(str(fatal[ERROR].iloc[0]))
        for row_id, error in zip(broken[ROW_ID], broken[ERROR], strict=True):
            self._reasons[row_id] = Reason("read", error)

    def check_contract(self, suite: Suite) -> None:
        """Judge the raw rows as they are. Raises RefusedError that names the failed expectations."""
        readable = self._without(self._raw) if self._reasons else self._raw
        declared = [name for name in self._form.columns if name != ROW_ID]
        self.contract = self._judge(readable.select_columns([ROW_ID, *declared]), suite, "contract")

    def shape(self, rule: Normalise, template: Template, keep: Sequence[str], test_fraction: float) -> None:
        """Normalise the text, and make messages; rows that cannot be shaped go to quarantine."""
        form, schema = self._form, shaped_schema(self._form, template, keep)
        text = [
            n for n, kind in form.columns.items() if kind in ("string", "messages") and n != form.id_column
        ]

        def shaped(block: pa.Table) -> pa.Table:
            import pyarrow as pa

            rows = [
                shape_row(normalised(row, text, rule), template, keep, test_fraction)
                for row in block.to_pylist()
            ]
            return pa.Table.from_pylist(rows, schema=schema)

        self._shaped = self._map(self._without(self._raw), shaped).materialize()
        self._keys = _narrow(self._shaped, [ROW_ID, FILE, LINE, SPLIT, "_key", "_answer", "_reason"])
        unshaped = self._keys[self._keys["_reason"].notna()]
        for row_id, reason in zip(unshaped[ROW_ID], unshaped["_reason"], strict=True):
            self._reasons[row_id] = Reason("shape", reason)
        self.job.progress(f"shaped {len(self._keys) - len(unshaped)} rows into messages")

    def remove_duplicates(self) -> None:
        """Keep one of equal rows, and none of rows that contradict each other, across files and splits."""
        shaped = self._keys[self._keys["_reason"].isna()]
        names = {FILE: "file", LINE: "line", SPLIT: "split", "_key": "key", "_answer": "label"}
        decisions = find_duplicates(shaped.rename(columns=names))
        self._duplicates, self.contaminated = decisions.duplicates, decisions.contaminated
        for row_id, reason in decisions.conflicts.items():
            self._reasons[row_id] = Reason("duplicates", reason)
        self.job.progress(
            f"removed {len(self._duplicates)} duplicates, {self.contaminated} of them in train and test; "
            f"{len(decisions.conflicts)} rows contradict each other"
        )

    def check_final(self, suite: Suite) -> None:
        """Judge the finished rows. Raises RefusedError that names the failed expectations."""
        work = {FILE, LINE, SPLIT, "_key", "_answer", "_reason"}
        kept = self._without(self._shaped)
        names = [name for name in self._shaped.schema().names if name not in work]
        self._finished = kept.select_columns(names).materialize()
        self.final = self._judge(self._finished, suite, "final")

    def write(self) -> tuple[dict[str, int], str]:
        """Write splits, quarantine and checks; return the counts and the data digest.

        Raises RefusedError when a split is empty.
        """
        counts: dict[str, int] = {}
        finished = self._without(self._finished)
        hidden = {"split", "prompt", "completion"}
        names = [name for name in self._finished.schema().names if name not in hidden]
        for split in SPLITS:
            rows = self._map(finished, _only(split)).select_columns(names).materialize()
            counts[split] = rows.count()
            if not counts[split]:
                raise RefusedError(f"no row is left for {split}: {self._account(counts)}.")
            write_parquet(self.job.attempt, self.job.store, rows, split, self._cpus)
        counts |= {
            "quarantined": len(self._reasons),
            "duplicates": len(self._duplicates),
            "input": self._input,
        }
        self._write_apart(counts)
        kept = counts["train"] + counts["test"]
        assert kept + counts["quarantined"] + counts["duplicates"] == self._input, counts
        digests = self._map(finished, block_digests)
        digest = merge_row_digests((row["id"], row["digest"]) for row in digests.iter_rows())
        self.job.progress(f"wrote {self._account(counts)}")
        return counts, digest

    def _judge(self, rows: ray.data.Dataset, suite: Suite, stage: str) -> GateReport:
        # Imported here: Great Expectations costs seconds, which a broken file need not wait for.
        from validation.data.gate import gate

        report = gate(rows, suite, ROW_ID, num_cpus=self._cpus)
        setattr(self, stage, report)
        for row_id, labels in report.bad_rows.items():
            self._reasons[row_id] = Reason(stage, "; ".join(labels))
        held, number = sum(e.success for e in report.expectations), len(report.expectations)
        self.job.progress(
            f"suite {suite.name}: {held} of {number} expectations hold, "
            f"{len(report.bad_rows)} of {report.rows} rows go to quarantine"
        )
        if not report.success:
            self._write_apart({"input": self._input, "quarantined": len(self._reasons)})
            named = ", ".join(e.describe() for e in report.failed)
            raise RefusedError(
                f"suite {suite.name} refuses the {report.rows} rows: {named} failed; "
                f"rows with reasons are in {self.job.attempt.uri}quarantine/."
            )
        return report

    def _write_apart(self, counts: dict[str, int]) -> None:
        columns = list(self._form.columns)
        write_quarantine(self.job.attempt, self.job.store, self._raw, self._reasons, columns, self._cpus)
        reports = {"contract": self.contract, "final": self.final}
        checks = {
            "counts": counts,
            "contaminated": self.contaminated,
            "suites": {stage: r.model_dump(mode="json") if r else None for stage, r in reports.items()},
        }
        self.job.attempt.write("checks.json", json.dumps(checks, ensure_ascii=False, default=str).encode())

    def _without(self, rows: ray.data.Dataset) -> ray.data.Dataset:
        """The rows that are neither in quarantine nor duplicates so far."""
        import ray

        gone = ray.put(frozenset(self._reasons) | self._duplicates)

        def kept(block: pa.Table) -> pa.Table:
            import ray

            removed = ray.get(gone)
            return block.filter([row_id not in removed for row_id in block[ROW_ID].to_pylist()])

        return self._map(rows, kept)

    def _map(self, rows: ray.data.Dataset, function: Any) -> ray.data.Dataset:
        return rows.map_batches(function, batch_format="pyarrow", batch_size=None, num_cpus=self._cpus)

    def _account(self, counts: dict[str, int]) -> str:
        return ", ".join(f"{count} {name}" for name, count in counts.items())


def shaped_schema(form: RowFormat, template: Template, keep: Sequence[str]) -> pa.Schema:
    """Schema of shaped rows."""
    import pyarrow as pa

    text, raw = pa.string(), raw_schema(form)
    kept = [(name, text if name in template.values else raw.field(name).type) for name in keep]
    work = [(name, raw.field(name).type) for name in (FILE, LINE, SPLIT)]
    made = [("split", text), ("messages", arrow_type("messages")), ("prompt", text), ("completion", text)]
    return pa.schema(
        [(ROW_ID, text), *made, *kept, *work, ("_key", text), ("_answer", text), ("_reason", text)]
    )


def shape_row(
    row: dict[str, Any], template: Template, keep: Sequence[str], test_fraction: float
) -> dict[str, Any]:
    """A normalised raw row as messages, with keys to compare it by, or the reason why it has none."""
    place = {name: row[name] for name in (ROW_ID, FILE, LINE, SPLIT)}
    try:
        mapped = template.mapped(row)
        messages = template.render(mapped)
    except LookupError as problem:
        return {**place, "_reason": str(problem.args[0])}
    asked, answer = messages[:-1], messages[-1]["content"]
    key = content_key({"messages": asked}, ["messages"])
    split = row[SPLIT] or hashed_split(key, test_fraction)
    prompt = "\n".join(m["content"] for m in asked)
    made = {"split": split, "messages": messages, "prompt": prompt, "completion": answer, SPLIT: split}
    return {**place, **made, **{n: mapped[n] for n in keep}, "_key": key, "_answer": answer}


def _quiet() -> None:
    """The job has progress lines of its own."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False


def _only(split: str) -> Any:
    def only(block: pa.Table) -> pa.Table:
        import pyarrow.compute as pc

        return block.filter(pc.equal(block["split"], split))

    return only


def _narrow(rows: ray.data.Dataset, names: Sequence[str]) -> pd.DataFrame:
    """A few small columns of all rows, in the driver."""
    import pandas as pd

    blocks = rows.select_columns(list(names)).iter_batches(batch_size=None, batch_format="pandas")
    return pd.concat(
        [pd.DataFrame({n: [] for n in names}), *(b for b in blocks if len(b))], ignore_index=True
    )
