"""The gate's passes in this process, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

    from validation.data.engine.rounds import Runner


def over_blocks(blocks: Sequence[pa.Table]) -> Runner:
    """Runs passes over these blocks, one after the other."""
    return lambda wanted: (wanted.run(wanted.block(table)) for table in blocks)
