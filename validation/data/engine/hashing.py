"""128-bit hashes of rows: equal exactly when pandas calls the rows duplicates of each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_KEYS = ("manta-gate-one--", "manta-gate-two--")
_ODD = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)
_NULL = 0x632BE59BD9B4E019


def row_hashes(rows: pd.DataFrame) -> Any:
    """Two 64-bit numbers for each row, mixed apart from each other: a collision needs 128 equal bits.

    Raises TypeError when a value cannot be hashed, such as a list, as pandas does.
    """
    import numpy as np

    both: Any = np.empty((len(rows), 2), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for half in (0, 1):
            mixed: Any = np.full(len(rows), half + 1, dtype=np.uint64)
            for position in range(rows.shape[1]):
                mixed = _mix(mixed * np.uint64(_ODD[half]) ^ _column(rows.iloc[:, position], half), half)
            both[:, half] = mixed
    return both


def grouped(hashes: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The distinct hashes in order, and how often each occurs."""
    import numpy as np

    if not len(hashes):
        return hashes, np.zeros(0, dtype=np.int64)
    ordered = hashes[np.lexsort((hashes[:, 1], hashes[:, 0]))]
    starts = np.flatnonzero(np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)]))
    return ordered[starts], np.diff(np.append(starts, len(ordered)))


def contained(hashes: Any, distinct: Any) -> Any:
    """Which hashes are among ``distinct``, which :func:`grouped` has ordered."""
    import numpy as np

    found: Any = np.zeros(len(hashes), dtype=bool)
    first: Any = np.searchsorted(distinct[:, 0], hashes[:, 0], side="left")
    last = np.searchsorted(distinct[:, 0], hashes[:, 0], side="right")
    # More than one turn only where first halves collide.
    for turn in range(int((last - first).max(initial=0))):
        at: Any = first + turn
        open_ = at < last
        found[open_] |= distinct[at[open_], 1] == hashes[open_, 1]
    return found


def _mix(values: Any, half: int) -> Any:
    import numpy as np

    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27 + half))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _column(column: pd.Series, half: int) -> Any:
    import numpy as np

    null = column.isna().to_numpy(dtype=bool)
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iufbmM":
        values = column.to_numpy()
        if values.dtype.kind == "f":
            values = values.astype(np.float64) + 0.0  # Minus zero equals zero.
        elif values.dtype.kind in "iub":
            values = values.astype(np.int64 if values.dtype.kind == "i" else np.uint64)
        hashed = values.view(np.uint64).copy()
    else:
        objects = column.to_numpy(dtype=object)
        if null.any():
            objects = objects.copy()
            objects[null] = ""
        hashed = _objects(objects, half)
    hashed[null] = _NULL
    return hashed


def _objects(values: Any, half: int) -> Any:
    import numpy as np
    import pandas as pd

    kinds = {type(value) for value in values}
    if kinds <= {str}:
        return pd.util.hash_array(values, hash_key=_KEYS[half], categorize=False).copy()
    for kind in kinds:
        if kind.__hash__ is None:
            raise TypeError(
                f"unhashable type: '{kind.__module__}.{kind.__name__}'".replace("'builtins.", "'")
            )
    # Values of one Arrow column are equal when they read the same.
    texts = np.array([f"{value!r}" for value in values], dtype=object)
    return pd.util.hash_array(texts, hash_key=_KEYS[half], categorize=False).copy()
