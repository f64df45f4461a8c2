"""CI for data: what must hold of a dataset version, whoever made it.

    pytest tests/data --dataset s3://bucket/team/dataset/name/fingerprint [--reference ...] [--suite ...]

``--dataset`` is an artifact's address, a folder with train/ and test/, or a Parquet file; ``--reference`` a
profile.json or a dataset with one; ``--suite`` a shipped suite's name or a file. With ``--dataset`` only
these run. Without it they are skipped: there is nothing to look at.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from cluster.errors import MantaError
from tests.data.pointed import Pointed, open_dataset, open_reference, question, with_parts
from validation.data.drift import compare_profiles
from validation.data.profile import Profile
from validation.data.schema import CONVERSATIONS, SUMMARY_KEY, refuse_schema
from validation.data.suite import load_suite

pytestmark = pytest.mark.dataset

SHOWN = 5
Found = TypeVar("Found")


def named(option: str, address: str, read: Callable[[str], Found]) -> Found:
    """What an option names; what cannot be opened ends the run with one sentence."""
    try:
        return read(address)
    except (MantaError, OSError) as error:
        pytest.exit(f"{option}: {error}", returncode=2)


@pytest.fixture(scope="module")
def dataset(request: pytest.FixtureRequest) -> Pointed:
    """What ``--dataset`` names."""
    address = request.config.getoption("--dataset")
    if address is None:
        pytest.skip("no dataset to look at: give --dataset, an artifact's address or a path")
    return named("--dataset", address, open_dataset)


@pytest.fixture(scope="module")
def reference(request: pytest.FixtureRequest, dataset: Pointed) -> Profile:
    """What ``--reference`` names."""
    address = request.config.getoption("--reference")
    if address is None:
        pytest.skip("nothing to compare with: give --reference, a profile.json or a dataset that has one")
    return named("--reference", address, open_reference)


@pytest.fixture(scope="module")
def ray_data(dataset: Pointed) -> Iterator[None]:
    """Ray's cluster if RAY_ADDRESS names one, else a small one of this process."""
    import ray

    started = not ray.is_initialized()
    if started:
        ray.init(os.environ.get("RAY_ADDRESS") or "local", log_to_driver=False)
    yield
    if started:
        ray.shutdown()


def test_every_file_has_the_columns_that_training_reads(dataset: Pointed) -> None:
    for file, columns in dataset.schemas().items():
        needed = CONVERSATIONS if dataset.conversations else {"row_id": "string"}
        refuse_schema(columns, needed, file, "training")
        texts = [name for name, kind in columns.items() if kind == "string" and name != "row_id"]
        assert dataset.conversations or texts, f"{file} has neither messages nor any text: {columns}"


def test_the_schema_is_the_recorded_one(dataset: Pointed) -> None:
    recorded = (dataset.manifest.summary if dataset.manifest else {}).get(SUMMARY_KEY)
    if recorded is None:
        pytest.skip("no schema was recorded with this dataset")
    for file, columns in dataset.schemas().items():
        refuse_schema(columns, recorded, file, "its manifest")


def test_no_split_is_empty_and_the_counts_are_the_manifests(dataset: Pointed) -> None:
    counts = {split: dataset.count(split) for split in dataset.splits}
    assert counts, f"{dataset.address} has no split"
    assert all(counts.values()), f"a split has no row: {counts}"
    if dataset.manifest is not None:
        recorded = {split: dataset.manifest.counts.get(split) for split in counts}
        assert counts == recorded, "the files hold other numbers of rows than the manifest says"


def test_no_message_is_empty_and_each_conversation_ends_with_an_answer(dataset: Pointed) -> None:
    wrong = []
    if not dataset.conversations:
        pytest.skip("these are texts, not conversations")
    for split, row in dataset.rows():
        messages = row["messages"] or []
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            wrong.append((split, row["row_id"], "does not end with the assistant's answer to something"))
        elif not all((message["content"] or "").strip() for message in messages):
            wrong.append((split, row["row_id"], "has an empty message"))
    assert not wrong, f"{len(wrong)} rows, such as {wrong[:SHOWN]}"


def test_no_text_is_empty(dataset: Pointed) -> None:
    if dataset.conversations:
        pytest.skip("these are conversations, not texts")
    empty = [
        (split, row["row_id"])
        for split, row in dataset.rows()
        if not any(str(value or "").strip() for name, value in row.items() if name != "row_id")
    ]
    assert not empty, f"{len(empty)} rows hold nothing, such as {empty[:SHOWN]}"


def test_row_ids_are_unique(dataset: Pointed) -> None:
    seen, repeated, nameless = set[str](), list[str](), 0
    for _, row in dataset.rows():
        identity = row["row_id"]
        nameless += identity is None
        if identity in seen:
            repeated.append(identity)
        seen.add(identity)
    assert not nameless, f"{nameless} rows have no id"
    assert not repeated, f"{len(repeated)} rows repeat an id, such as {repeated[:SHOWN]}"


def test_nothing_asked_in_test_is_asked_in_train(dataset: Pointed) -> None:
    if "test" not in dataset.splits or "train" not in dataset.splits:
        pytest.skip(f"there is only {', '.join(dataset.splits)}: nothing can leak")
    held_out = {question(row): row["row_id"] for _, row in dataset.rows("test")}
    asked = ((question(row), row["row_id"]) for _, row in dataset.rows("train"))
    leaked = [(identity, held_out[key]) for key, identity in asked if key in held_out]
    assert not leaked, f"{len(leaked)} rows of train are in test, such as {leaked[:SHOWN]}"


def test_the_profile_is_that_of_the_rows(dataset: Pointed) -> None:
    if dataset.profile_json is None:
        pytest.skip("no profile.json came with this dataset")
    told = Profile.from_json(dataset.profile_json)
    # Columns that only the job saw cannot be measured again.
    columns = next(with_parts(table, split) for split, table in dataset.tables()).column_names
    spec = told.spec.model_copy(
        update={
            "texts": [c for c in told.spec.texts if c in columns],
            "numbers": {c: e for c, e in told.spec.numbers.items() if c in columns},
            "categories": [c for c in told.spec.categories if c in columns],
        }
    )
    found = dataset.profile(spec)
    assert (found.rows, found.splits) == (told.rows, told.splits)
    for part in ("histograms", "categories", "tokens"):
        for name, value in getattr(found, part).items():
            assert value == getattr(told, part)[name], f"the profile's {part} of {name} are of other rows"


def test_drift_from_the_reference_is_not_large(dataset: Pointed, reference: Profile) -> None:
    drift = compare_profiles(dataset.profile(reference.spec), reference)
    large = [f"{c.column}: PSI {c.psi:.3f}, JS {c.js_distance:.3f}" for c in drift.beyond("moderate")]
    assert not large, (
        f"large drift of {'; '.join(large)} ({drift.reference_rows} rows before, {drift.rows} now)"
    )


def test_the_suite_holds(request: pytest.FixtureRequest, dataset: Pointed) -> None:
    name = request.config.getoption("--suite")
    if name is None:
        pytest.skip("no suite to judge by: give --suite, a shipped one's name or a file")
    suite = load_suite(name)
    request.getfixturevalue("ray_data")
    import ray.data

    from validation.data.gate import gate

    ray.data.DataContext.get_current().enable_progress_bars = False
    parts = [
        ray.data.read_parquet(files, filesystem=dataset.filesystem).map_batches(
            with_parts, fn_kwargs={"split": split}, batch_format="pyarrow", batch_size=None
        )
        for split, files in dataset.splits.items()
    ]
    report = gate(parts[0].union(*parts[1:]).materialize(), suite, num_cpus=0.5)
    assert report.success, f"suite {suite.name}: {'; '.join(e.describe() for e in report.failed)}"
