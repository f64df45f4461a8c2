"""The evaluation sets that a dataset must not hold parts of, read into one index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cluster.errors import RefusedError
from jobs.preprocessing.files import SourceFile, find_files, source_file
from jobs.preprocessing.reading import read_tables
from jobs.preprocessing.rows import REASON, RowFormat
from validation.data.contamination import Contamination, EvaluationIndex

if TYPE_CHECKING:
    from collections.abc import Iterator


class Against(Contamination):
    """Rows that share runs of words with evaluation sets."""

    against: tuple[str, ...] = Field(
        min_length=1, description="Files of the evaluation sets: paths, s3:// addresses, folders or globs."
    )
    columns: tuple[str, ...] = Field(
        ("text",), min_length=1, description="Their columns that hold text: questions, passages, answers."
    )

    def files(self) -> list[SourceFile]:
        """The evaluation sets' files. Raises NotFoundError if there are none."""
        found = [address for source in self.against for address in find_files(source)]
        return [source_file(address, number, None) for number, address in enumerate(found)]

    def read_index(
        self, files: Sequence[SourceFile], num_cpus: float, progress: Callable[[str], None]
    ) -> Any:
        """Reference to the index of the files, which tasks make, one for each file."""
        import ray

        task = ray.remote(num_cpus=num_cpus)(_index)
        parts = [task.remote(self, file) for file in files]
        index, told = ray.remote(num_cpus=num_cpus, num_returns=2)(_merged).remote(*parts)
        progress(ray.get(told))
        return index


def _index(rule: Against, file: SourceFile) -> EvaluationIndex:
    form = RowFormat(dict.fromkeys(rule.columns, "string"))

    def texts() -> Iterator[str]:
        for table in read_tables(file, form):
            broken = table[REASON].drop_null().to_pylist()
            if broken:
                raise RefusedError(f"contamination: {broken[0]}")
            for name in rule.columns:
                yield from table[name].drop_null().to_pylist()

    return rule.index({Path(file.address).name.partition(".")[0]: texts()})


def _merged(*parts: EvaluationIndex) -> tuple[EvaluationIndex, str]:
    whole = EvaluationIndex.merge(parts)
    return whole, whole.told
