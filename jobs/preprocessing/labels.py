"""Labels and feedback from elsewhere, joined to rows by their id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import RefusedError
from jobs.preprocessing.files import SourceFile, find_files, source_file
from jobs.preprocessing.reading import read_tables
from jobs.preprocessing.rows import REASON, ROW_ID, ColumnType, RowFormat

if TYPE_CHECKING:
    import pyarrow as pa


class Labels(BaseModel):
    """A labelling export or feedback, whose rows merge with the sources' by row id."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: tuple[str, ...] = Field(
        min_length=1, description="Files: paths, s3:// addresses, folders or globs."
    )
    id_column: str = Field("row_id", description="Their column that holds row ids.")
    columns: tuple[str, ...] = Field(
        min_length=1,
        description="Declared columns that they hold; the sources need not. A row without a label keeps its "
        "own values, or null; of several labels of a row the last one counts.",
    )
    latest_by: str | None = Field(
        None,
        description="Their column of times (or of text that sorts alike) whose greatest value says which of "
        "several labels of a row is the last; else the order of files and lines says it.",
    )

    def files(self) -> list[SourceFile]:
        """The files. Raises NotFoundError if there are none."""
        found = [address for source in self.source for address in find_files(source)]
        return [source_file(address, number, None) for number, address in enumerate(found)]

    def read(self, files: Sequence[SourceFile], columns: Mapping[str, ColumnType], num_cpus: float) -> Any:
        """Reference to a table of all labels, which every worker can look into: some million of them."""
        import ray

        kinds: dict[str, ColumnType] = {self.id_column: "string"}
        kinds |= {self.latest_by: "string"} if self.latest_by else {}
        form = RowFormat(kinds | {name: columns[name] for name in self.columns}, self.id_column)
        return ray.remote(num_cpus=num_cpus)(read_labels).remote(files, form, self.columns, self.latest_by)


def read_labels(
    files: Sequence[SourceFile], form: RowFormat, columns: Sequence[str], latest_by: str | None
) -> pa.Table:
    """All labels, the one that counts first of each row's. Raises RefusedError for a line that is none."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    tables = [table for file in files for table in read_tables(file, form)]
    broken = [reason for table in tables for reason in table[REASON].drop_null().to_pylist()]
    if broken:
        raise RefusedError(f"labels: {broken[0]}")
    table = pa.concat_tables(tables)
    order = np.arange(len(table))
    if latest_by:  # Rows without a time first, and of equal times the later line last.
        table = table.append_column("_place", pa.array(order))
        keys = [(latest_by, "ascending"), ("_place", "ascending")]
        order = pc.sort_indices(table, sort_keys=keys, null_placement="at_start").to_numpy()
    # Looking up finds the first of equal ids.
    return table.select([ROW_ID, *columns]).take(order[::-1]).combine_chunks()


def joined(rows: list[dict[str, Any]], labels: pa.Table) -> int:
    """Give rows the values of their labels; how many have one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    names = [name for name in labels.column_names if name != ROW_ID]
    ids = pa.array([row[ROW_ID] for row in rows], pa.string())
    places = pc.index_in(ids, value_set=labels[ROW_ID])
    found = labels.select(names).take(places.drop_null()).to_pylist()
    values = iter(found)
    for row, place in zip(rows, places.to_pylist(), strict=True):
        if place is not None:
            row.update(next(values))
    return len(found)
