"""From marked rows to finished ones, once it is known which of them repeat others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.preprocessing.duplicates import DECISIONS
from jobs.preprocessing.marking import CONTRACT
from jobs.preprocessing.reading import READ, SIZE
from jobs.preprocessing.rows import ORDINAL, RAW, REASON, ROW_ID, SCORE, SPLIT, STAGE, RowFormat, origin
from jobs.preprocessing.shaping import Shape

if TYPE_CHECKING:
    import pyarrow as pa

    from validation.data.gate import GatePlan

#: Finished columns that suites look at, and that are not written.
_HIDDEN = frozenset({"split", "prompt", "completion"})
#: Ordinal of the row that a duplicate repeats.
REPEATS = "_repeats"
FINAL = "final"


@dataclass(frozen=True)
class Finishing:
    """Gives rows their finished form; those that are refused keep their place, and their raw form as JSON."""

    form: RowFormat
    shape: Shape

    def schema(self) -> pa.Schema:
        """Of finished rows."""
        import pyarrow as pa

        text = pa.string()
        fixed = [(ROW_ID, text), *self.shape.schema(self.form), (ORDINAL, pa.uint64())]
        marks = [(STAGE, text), (REASON, text), (SCORE, pa.float64()), (REPEATS, pa.uint64()), (RAW, text)]
        return pa.schema([*fixed, *marks])

    def suite_schema(self) -> pa.Schema:
        """Of what the final suite judges."""
        import pyarrow as pa

        schema = self.schema()
        return pa.schema([schema.field(name) for name in self.columns()])

    def written_schema(self) -> pa.Schema:
        """Of the files of a split."""
        import pyarrow as pa

        return pa.schema([field for field in self.schema() if field.name in written(self.columns())])

    def columns(self) -> list[str]:
        """What suites see of finished rows."""
        return [ROW_ID, *(name for name, _ in self.shape.schema(self.form))]

    def __call__(
        self, block: pa.Table, decisions: pa.Table, bad: Mapping[str, str], final: GatePlan
    ) -> tuple[pa.Table, bytes]:
        """A marked block as a finished one, and what it adds to the final suite's verdict.

        :param decisions: on duplicates, in the order of ordinals.
        :param bad: row id to the expectations of the contract that the row breaks, as far as no block knew.
        """
        import pyarrow as pa

        marked, dropped = block.to_pylist(), decided_here(block, decisions)
        rows = [self._row(row, dropped, bad) for row in marked]
        kept = [place for place, row in enumerate(rows) if row.get(STAGE) is None]
        judged = pa.Table.from_pylist([rows[place] for place in kept], schema=self.suite_schema())
        verdict = final.judge_block(judged)
        for place, reason in zip(kept, verdict.reasons, strict=True):
            if reason is not None:
                rows[place] |= {STAGE: FINAL, REASON: reason, RAW: self._raw(marked[place])}
        return pa.Table.from_pylist(rows, schema=self.schema()), verdict.partial

    def _row(
        self, row: dict[str, Any], dropped: Mapping[int, tuple[Any, ...]], bad: Mapping[str, str]
    ) -> dict[str, Any]:
        place = {ROW_ID: row[ROW_ID], ORDINAL: row[ORDINAL], "split": row[SPLIT]}
        marks = {name: row[name] for name in (STAGE, REASON, SCORE)}
        repeats = None
        read_as = origin(row[ROW_ID], row[ORDINAL])
        if read_as in bad and row[STAGE] not in (READ, SIZE):
            marks = {STAGE: CONTRACT, REASON: bad[read_as], SCORE: None}
        elif row[STAGE] is None and row[ORDINAL] in dropped:
            code, repeats, score = dropped[row[ORDINAL]]
            stage, reason = DECISIONS[code]
            marks = {STAGE: stage, REASON: reason, SCORE: score}
        if marks[STAGE] is None:
            return {**place, **self.shape.finish(row)}
        return {**place, **marks, REPEATS: repeats, RAW: row[RAW] or self._raw(row)}

    def _raw(self, row: Mapping[str, Any]) -> str:
        return json.dumps({name: row[name] for name in self.form.columns}, ensure_ascii=False)


def written(columns: Sequence[str]) -> list[str]:
    """Those of the finished columns that files hold; the others are there for suites."""
    return [name for name in columns if name not in _HIDDEN]


def decided_here(block: pa.Table, decisions: pa.Table) -> dict[int, tuple[Any, ...]]:
    """Ordinal to code, repeated ordinal and score, for those decisions that are on rows of the block."""
    import numpy as np

    ordinals, own = decisions["ordinal"].to_numpy(), block[ORDINAL].to_numpy()
    if not len(ordinals) or not len(own):
        return {}
    at = np.atleast_1d(np.searchsorted(ordinals, own))
    found = at[(at < len(ordinals)) & (ordinals[np.minimum(at, len(ordinals) - 1)] == own)]
    rows = decisions.take(found).to_pylist()
    return {row["ordinal"]: (row["code"], row["repeats"], row["score"]) for row in rows}
