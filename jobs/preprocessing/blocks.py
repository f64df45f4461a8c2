"""What blocks tell the driver, and how Ray is used without a word of its own."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from jobs.preprocessing.account import Tally
from jobs.preprocessing.reading import BLOCK_BYTES, READ
from jobs.preprocessing.rows import (
    GATE,
    ORDINAL,
    REASON,
    STAGE,
    SUMMARY,
    WHOLE_FILE,
    is_copy,
    line_of,
    rows_by_file,
)

if TYPE_CHECKING:
    import pyarrow as pa


class Told(NamedTuple):
    """What a marked block tells the driver."""

    first: int
    tally: Tally
    #: Place and sentence of the first line that cannot be read, and of a file.
    broken: tuple[int, str] | None
    broken_file: tuple[int, str] | None


def told_by(block: pa.Table) -> Told:
    """What a marked block has to say."""
    import pyarrow.compute as pc

    tally, broken = Tally(), dict[bool, tuple[int, str]]()
    for summary in block[SUMMARY].drop_null().to_pylist():
        tally.add(Tally.from_bytes(summary))
    # Not in the summary: a part's rows get the number of their file when they are loaded.
    tally.files.update(rows_by_file(block[ORDINAL]))
    unread = block.select([ORDINAL, REASON]).filter(pc.equal(block[STAGE], READ).fill_null(False))
    for number, reason in zip(unread[ORDINAL].to_pylist(), unread[REASON].to_pylist(), strict=True):
        of_file = line_of(number) == WHOLE_FILE
        broken[of_file] = min(broken.get(of_file, (number, reason)), (number, reason))
    first = pc.min(block[ORDINAL]).as_py() if len(block) else 0
    return Told(first, tally, broken.get(False), broken.get(True))


def partials_of(block: pa.Table) -> list[bytes]:
    """What a marked block adds to the contract's verdict: Ray Data may have made one block of several."""
    partials: list[bytes] = block[GATE].drop_null().to_pylist()
    return partials


def without(block: pa.Table, stages: set[str], *, copies: bool = True) -> pa.Table:
    """The rows that were not refused at one of the stages, with or without the copies of augmentation."""
    import pyarrow as pa
    import pyarrow.compute as pc

    block = block.filter(pc.invert(pc.is_in(block[STAGE], pa.array(sorted(stages), pa.string()))))
    if copies:
        return block
    return block.filter(pa.array([not is_copy(n) for n in block[ORDINAL].to_pylist()], pa.bool_()))


def quiet() -> None:
    """The job has progress lines of its own, and blocks that are small enough to share the work out."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # What fails is raised; these would tell it before, with the traceback of what is a user's mistake.
    for name in ("ray.data.exceptions", "ray.data._internal.execution.streaming_executor_state"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    # Else it comes in a wrapping that loses its cause on the way from the worker.
    context.raise_original_map_exception = True
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
