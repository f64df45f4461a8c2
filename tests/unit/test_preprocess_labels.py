"""Which of several labels a row gets; no Ray."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.preprocessing.labels import Labels, joined, read_labels
from jobs.preprocessing.rows import ROW_ID, RowFormat


def test_of_several_labels_the_latest_counts_wherever_it_stands(tmp_path: Path) -> None:
    noon = datetime(2026, 11, 1, 12, tzinfo=UTC)
    times = [noon + timedelta(microseconds=1), noon, noon - timedelta(days=1), None, noon, noon]
    ids, scores = ["a", "a", "b", "b", "c", "c"], [1.0, 0.25, 0.0, 0.5, 0.1, 0.2]
    pq.write_table(pa.table({"id": ids, "time": times, "score": scores}), tmp_path / "labels.parquet")
    labels = Labels(source=(str(tmp_path),), id_column="id", columns=("score",), latest_by="time")
    form = RowFormat({"id": "string", "time": "string", "score": "float64"}, "id")
    table = read_labels(labels.files(), form, labels.columns, labels.latest_by)
    found = [{ROW_ID: row_id} for row_id in ("a", "b", "c", "d")]
    assert joined(found, table) == 3
    assert [row.get("score") for row in found] == [1.0, 0.0, 0.2, None]
