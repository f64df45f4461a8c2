"""Digests and fingerprints: equal meaning gives equal hex, another meaning another."""

import hashlib
import random
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.contracts import Principal
from cluster.errors import UsageError
from cluster.storage import canonical_json, fingerprint, merge_row_digests, row_digest, rows_digest

ROWS = [
    {"row_id": f"r{n}", "messages": [{"role": "user", "content": f"text {n} ü"}], "label": n % 2}
    for n in range(50)
]


def test_rows_digest_does_not_depend_on_the_order_of_rows_or_keys():
    shuffled = [dict(reversed(row.items())) for row in ROWS]
    random.Random(1).shuffle(shuffled)
    assert rows_digest(ROWS) == rows_digest(shuffled)


def test_rows_digest_made_in_blocks_is_the_same():
    blocks = [ROWS[:7], ROWS[30:], ROWS[7:30]]
    parts = [row_digest(row) for block in blocks for row in block]
    assert merge_row_digests(parts) == rows_digest(ROWS)


@pytest.mark.parametrize(
    "changed",
    [
        ROWS[:-1],
        [*ROWS, ROWS[0]],
        [{**ROWS[0], "label": 2}, *ROWS[1:]],
        [{**ROWS[0], "row_id": "other"}, *ROWS[1:]],
    ],
)
def test_rows_digest_sees_every_change(changed):
    assert rows_digest(changed) != rows_digest(ROWS)


def test_rows_digest_is_what_its_documentation_says():
    first = hashlib.sha256(b'{"row_id":"0","text":null}').digest()
    second = hashlib.sha256('{"row_id":"1","text":"ü"}'.encode()).digest()
    assert rows_digest([{"row_id": "1", "text": "ü"}, {"row_id": "0", "text": None}]) == (
        hashlib.sha256(first + second).hexdigest()
    )


def test_numpy_values_count_as_python_values():
    numpy = pytest.importorskip("numpy")
    plain = {"row_id": "a", "n": 3, "x": 0.5, "v": [1, 2], "when": datetime(2026, 1, 2, tzinfo=UTC)}
    arrays = plain | {"n": numpy.int64(3), "x": numpy.float64(0.5), "v": numpy.array([1, 2])}
    assert rows_digest([plain]) == rows_digest([arrays])


def test_a_row_without_an_id_is_told():
    with pytest.raises(UsageError, match=r"no 'row_id'.*columns: text"):
        rows_digest([{"text": "a"}])


def test_another_id_column():
    assert rows_digest([{"id": 2}, {"id": 1}], id_column="id") == rows_digest(
        [{"id": 1}, {"id": 2}], id_column="id"
    )


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.text())))
def test_canonical_json_does_not_depend_on_key_order(value):
    assert canonical_json(value) == canonical_json(dict(reversed(list(value.items()))))


def test_canonical_json_of_models_paths_sets_and_bytes():
    value = {"p": Principal(key_id="k", team="t"), "path": Path("a/b"), "set": {2, 1}, "bytes": b"\x00"}
    assert canonical_json(value) == (
        b'{"bytes":{"$bytes":"00"},"p":{"key_id":"k","team":"t","tenant":"default"},"path":"a/b","set":[1,2]}'
    )
    with pytest.raises(TypeError, match="object has no canonical JSON"):
        canonical_json({"x": object()})


def test_fingerprint_depends_on_each_part():
    base = fingerprint("dataset", {"a": 1, "b": [1, 2]}, ["d1", "d2"], 1)
    assert len(base) == 16
    assert int(base, 16) >= 0
    assert base == fingerprint("dataset", {"b": [1, 2], "a": 1}, iter(["d1", "d2"]), 1)
    others = [
        fingerprint("model", {"a": 1, "b": [1, 2]}, ["d1", "d2"], 1),
        fingerprint("dataset", {"a": 1, "b": [2, 1]}, ["d1", "d2"], 1),
        fingerprint("dataset", {"a": 1, "b": [1, 2]}, ["d2", "d1"], 1),
        fingerprint("dataset", {"a": 1, "b": [1, 2]}, ["d1", "d2"], 2),
    ]
    assert len({base, *others}) == 5


def test_importing_storage_loads_neither_boto3_nor_pyarrow():
    heavy = {"boto3", "botocore", "pyarrow", "ray"}
    script = f"import sys, cluster.storage, cluster.snapshots; print({heavy} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "set()"
