"""From the journal's small parts to the artifact's files, with the proof that each row is there once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.job import JobRun
from cluster.storage import row_digest
from jobs.batch.formats import OutputConfig, stored_ids, writers
from jobs.batch.rows import ERRORS, MEASURED, OUTPUT
from jobs.batch.sorting import SortedSpill, difference

#: So many of the first failed rows' sentences are kept in the summary.
SHOWN_ERRORS = 5


@dataclass
class Finished:
    """What stands in the files. ``digest`` is the data digest, over the rows in the order of their ids."""

    counts: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    errors: list[dict[str, str]] = field(default_factory=list)
    digest: str = ""

    @property
    def rows(self) -> int:
        """All rows."""
        return self.counts.total()

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one row."""
        self.counts[row["status"]] += 1
        self.prompt_tokens += row["prompt_tokens"]
        self.completion_tokens += row["completion_tokens"]
        if row["error_code"]:
            self.codes[row["error_code"]] += 1
        if row["status"] == "failed" and len(self.errors) < SHOWN_ERRORS:
            self.errors.append({key: row[key] for key in ("row_id", "error_code", "error_message")})


def write_files(
    job: JobRun, rows: Iterable[dict[str, Any]], output: OutputConfig, rows_per_file: int, model: str
) -> Finished:
    """Every row into the files of its status, once in each format; ``model`` is the name to show."""
    finished = Finished()
    made = {name: writers(job, name, output, rows_per_file, model) for name in (OUTPUT, ERRORS)}
    with SortedSpill() as digests:
        for row in rows:
            row.pop("number")
            for writer in made[OUTPUT if row["status"] == "succeeded" else ERRORS]:
                writer.add(row)
            digests.add(*row_digest({name: row[name] for name in row if name not in MEASURED}))
            finished.add(row)
        for writer in (*made[OUTPUT], *made[ERRORS]):
            writer.close()
        total = hashlib.sha256()  # As cluster.storage.merge_row_digests, without all rows in memory.
        for _, digest in digests:
            total.update(digest)
    finished.digest = total.hexdigest()
    return finished


def prove(job: JobRun, asked: SortedSpill, output: OutputConfig) -> None:
    """Read back which rows are stored.

    Raises AssertionError unless it is each asked one exactly once, in every format.
    """
    for form in output.formats:
        with SortedSpill() as found:
            for row_id in stored_ids(job, form):
                found.add(row_id)
            wrong = difference(asked, found)
        if wrong is not None:
            raise AssertionError(f"{job.run_id}, {form}: {wrong}")
