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

    def files(self) -> list[SourceFile]:
        """The files. Raises NotFoundError if there are none."""
        found = [address for source in self.source for address in find_files(source)]
        return [source_file(address, number, None) for number, address in enumerate(found)]

    def read(self, files: Sequence[SourceFile], columns: Mapping[str, ColumnType], num_cpus: float) -> Any:
        """Reference to a table of all labels, which every worker can look into: some million of them."""
        import ray

        kinds: dict[str, ColumnType] = {self.id_column: "string"}
        form = RowFormat(kinds | {name: columns[name] for name in self.columns}, self.id_column)
        return ray.remote(num_cpus=num_cpus)(_read).remote(files, form, self.columns)


def _read(files: Sequence[SourceFile], form: RowFormat, columns: Sequence[str]) -> pa.Table:
    import pyarrow as pa

    tables = [table for file in files for table in read_tables(file, form)]
    broken = [reason for table in tables for reason in table[REASON].drop_null().to_pylist()]
    if broken:
        raise RefusedError(f"labels: {broken[0]}")
    table = pa.concat_tables(tables).select([ROW_ID, *columns])
    # Looking up finds the first of equal ids.
    return table.take(list(range(len(table) - 1, -1, -1))).combine_chunks()


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
