"""Marked rows that are kept, file by file, so that a later run need not look at the same file again.

What becomes of a row by itself depends on its file and on the part of the configuration that looks at single
rows. The marked rows of a file are an artifact of their own (kind ``dataset-part``), named by both and
committed like any other: a run with more files, or one that takes up a killed run's work, finds them. The
code of an augmentation hook is not known to the name: give a changed hook another name.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cluster.contracts import ArtifactInput, ArtifactRef, CodeRevision, Manifest, Principal
from cluster.storage import ArtifactStore, ObjectStore, fingerprint
from jobs.preprocessing.files import SourceFile
from jobs.preprocessing.marking import Marking
from jobs.preprocessing.reading import READ, read_tables
from jobs.preprocessing.rows import ORDINAL, STAGE, WHOLE_FILE, line_of, ordinal

if TYPE_CHECKING:
    import pyarrow as pa

KIND = "dataset-part"
_FINDERS = 16


@dataclass(frozen=True)
class Parts:
    """The parts of one run's files."""

    store: ObjectStore
    owner: Principal
    code: CodeRevision
    run_id: str
    #: The dataset's name, which its parts have too.
    name: str
    #: All that decides what becomes of a row by itself, beside its file.
    meaning: Mapping[str, Any]
    files: Sequence[SourceFile]
    inputs: Sequence[ArtifactInput]

    def find(self) -> list[Manifest | None]:
        """The part of each file, where there is one. Raises RefusedError for one that was erased."""
        with ThreadPoolExecutor(_FINDERS, thread_name_prefix="parts") as pool:
            return list(pool.map(self._find, range(len(self.files))))

    def make(self, number: int, marking: Marking) -> Iterator[pa.Table]:
        """Mark the rows of a file and commit them as its part; then give them.

        Nothing is committed of a file that cannot be read as it is.
        """
        import pyarrow.parquet as pq

        made = self._find(number)
        if made is not None:  # By this task, whose worker was lost after the commit.
            yield from self.load(number, made)
            return
        started, file = datetime.now(UTC), self.files[number]
        attempt = ArtifactStore(self.store).attempt(self.ref(number), self.run_id)
        attempt.clear()
        rows, whole = 0, True
        for place, raw in enumerate(read_tables(file, marking.form)):
            table = marking(raw)
            sink = io.BytesIO()
            pq.write_table(renumbered(table, -file.number), sink, compression="zstd")
            attempt.write(f"rows/{place:06d}.parquet", sink.getvalue())
            rows += len(table)
            whole = whole and _readable(table, marking)
            yield table
        if whole and rows:
            attempt.commit(
                owner=self.owner,
                configuration=self.meaning,
                code=self.code,
                started_at=started,
                inputs=[self.inputs[number]],
                counts={"rows": rows},
            )

    def load(self, number: int, part: Manifest) -> Iterator[pa.Table]:
        """The marked rows of a file, from its part."""
        import pyarrow.parquet as pq

        artifacts = ArtifactStore(self.store)
        for path in sorted(file.path for file in part.files):
            table = pq.read_table(io.BytesIO(artifacts.read(part, path)))
            yield renumbered(table, self.files[number].number)

    def ref(self, number: int) -> ArtifactRef:
        """The address of a file's part."""
        file = self.files[number]
        meaning = {**self.meaning, "address": file.address, "split": file.split}
        digests = [self.inputs[number].digest]
        return ArtifactRef(
            team=self.owner.team,
            kind=KIND,
            name=self.name,
            fingerprint=fingerprint(KIND, meaning, digests, self.code.epoch),
        )

    def _find(self, number: int) -> Manifest | None:
        return ArtifactStore(self.store).find(self.ref(number))


def renumbered(table: pa.Table, by: int) -> pa.Table:
    """The rows with the number of their file changed: it is their place in a run's list."""
    import pyarrow as pa

    moved = [number + ordinal(by, 0) for number in table[ORDINAL].to_pylist()]
    place = table.column_names.index(ORDINAL)
    return table.set_column(place, ORDINAL, pa.array(moved, pa.uint64()))


def _readable(table: pa.Table, marking: Marking) -> bool:
    """Whether no row of the table ends the job."""
    stages, ordinals = table[STAGE].to_pylist(), table[ORDINAL].to_pylist()
    broken = [number for number, stage in zip(ordinals, stages, strict=True) if stage == READ]
    return not broken or (marking.form.keep_broken and all(line_of(n) != WHOLE_FILE for n in broken))
