"""CI for data: what must hold of a dataset version, or of one's own files, whoever made them.

    pytest tests/data --dataset s3://bucket/team/dataset/name/fingerprint [--reference ...] [--suite ...]

``--dataset`` is an artifact's address, or a path or ``s3://`` address of Parquet, JSON Lines or CSV files: a
file, a glob, or a folder, which may have train/ and test/. ``--suite`` is a shipped suite's name or a file,
``--reference`` a profile.json or a dataset with one, which a suite's parameters may tell of too. Of files
without a column ``row_id`` (a text) a row is called ``<file>:<number>``, and what needs ids, a manifest or a
profile is skipped. With ``--dataset`` only these run. Without it they are skipped: there is nothing to see.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import numpy as np
import pytest

from cluster.errors import MantaError
from tests.data.pointed import Pointed, open_dataset, open_reference, question, with_parts
from validation.data import ExpectationReport, Suite, load_suite
from validation.data.drift import compare_profiles
from validation.data.gate import gate
from validation.data.previous import Previous
from validation.data.profile import Profile
from validation.data.report import Severity
from validation.data.schema import CONVERSATIONS, SUMMARY_KEY, refuse_schema

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

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
    if not dataset.identified:
        pytest.skip("these files have no column row_id: they are judged by --suite, and make no dataset yet")
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


@dataclass
class Looked:
    """What one reading of all rows tells: 16 bytes a row, and a few wrong rows of each kind."""

    #: By split, 8 bytes of a hash of each row's id, and of what it asks, in the rows' order.
    ids: dict[str, NDArray[np.uint64]]
    questions: dict[str, NDArray[np.uint64]]
    #: What is wrong with how many rows, and a few of them.
    wrong: Counter[str]
    examples: dict[str, list[tuple[str, Any]]]

    def told(self, what: str) -> str:
        return f"{self.wrong[what]} rows, such as {self.examples.get(what)}: {what}"


NO_ANSWER = "does not end with the assistant's answer to something"
NO_MESSAGE, NO_TEXT, NO_ID = "has an empty message", "holds nothing", "has no id"


def _faults(row: dict[str, Any], *, conversations: bool) -> Iterator[str]:
    if row["row_id"] is None:
        yield NO_ID
    if not conversations:
        if not any(str(value or "").strip() for name, value in row.items() if name != "row_id"):
            yield NO_TEXT
        return
    messages = row["messages"] or []
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        yield NO_ANSWER
    elif not all((message["content"] or "").strip() for message in messages):
        yield NO_MESSAGE


@pytest.fixture(scope="module")
def looked(dataset: Pointed) -> Looked:
    """All rows, read once."""
    ids: dict[str, array[int]] = {split: array("Q") for split in dataset.splits}
    questions: dict[str, array[int]] = {split: array("Q") for split in dataset.splits}
    found = Looked({}, {}, Counter(), {})
    conversations = dataset.conversations
    for split, row in dataset.rows():
        ids[split].append(_hash64(str(row["row_id"]).encode()))
        questions[split].append(_hash64(question(row)))
        for fault in _faults(row, conversations=conversations):
            found.wrong[fault] += 1
            if found.wrong[fault] <= SHOWN:
                found.examples.setdefault(fault, []).append((split, row["row_id"]))
    found.ids |= {split: np.array(hashes, np.uint64) for split, hashes in ids.items()}
    found.questions |= {split: np.array(hashes, np.uint64) for split, hashes in questions.items()}
    return found


def _hash64(key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")


def names_of(dataset: Pointed, split: str, numbers: NDArray[np.int64]) -> list[Any]:
    """The ids of a few rows by their numbers in the split."""
    wanted = set(numbers.tolist())
    found = {n: row["row_id"] for n, (_, row) in enumerate(dataset.rows(split)) if n in wanted}
    return [found[number] for number in numbers.tolist()]


def test_no_message_is_empty_and_each_conversation_ends_with_an_answer(
    dataset: Pointed, looked: Looked
) -> None:
    if not dataset.conversations:
        pytest.skip("these are texts, not conversations")
    assert not looked.wrong[NO_ANSWER], looked.told(NO_ANSWER)
    assert not looked.wrong[NO_MESSAGE], looked.told(NO_MESSAGE)


def test_no_text_is_empty(dataset: Pointed, looked: Looked) -> None:
    if dataset.conversations:
        pytest.skip("these are conversations, not texts")
    assert not looked.wrong[NO_TEXT], looked.told(NO_TEXT)


def test_row_ids_are_unique(dataset: Pointed, looked: Looked) -> None:
    if not dataset.identified:
        pytest.skip("these files have no column row_id")
    assert not looked.wrong[NO_ID], looked.told(NO_ID)
    whole = np.concatenate(list(looked.ids.values()))
    unique, counts = np.unique(whole, return_counts=True)
    examples = [
        name
        for split, ids in looked.ids.items()
        for name in names_of(dataset, split, np.flatnonzero(np.isin(ids, unique[counts > 1][:SHOWN]))[:SHOWN])
    ]
    told = list(dict.fromkeys(examples))[:SHOWN]
    assert not told, f"{len(whole) - len(unique)} rows repeat an id, such as {told}"


def test_nothing_asked_in_test_is_asked_in_train(dataset: Pointed, looked: Looked) -> None:
    if "test" not in dataset.splits or "train" not in dataset.splits:
        pytest.skip(f"there is only {', '.join(dataset.splits)}: nothing can leak")
    train, test = looked.questions["train"], looked.questions["test"]
    leaked = np.flatnonzero(np.isin(train, test))
    if len(leaked):
        sources = np.array([int(np.argmax(test == train[n])) for n in leaked[:SHOWN]])
        names = names_of(dataset, "train", leaked[:SHOWN]), names_of(dataset, "test", sources)
        pytest.fail(f"{len(leaked)} rows of train are in test, such as {list(zip(*names, strict=True))}")


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
    try:
        drift = compare_profiles(dataset.profile(reference.spec), reference)
    except MantaError as problem:
        pytest.fail(f"{dataset.address} cannot be compared with the reference: {problem}", pytrace=False)
    large = [f"{c.column}: PSI {c.psi:.3f}, JS {c.js_distance:.3f}" for c in drift.beyond("moderate")]
    assert not large, (
        f"large drift of {'; '.join(large)} ({drift.reference_rows} rows before, {drift.rows} now)"
    )


def test_the_suite_holds(request: pytest.FixtureRequest, dataset: Pointed) -> None:
    name = request.config.getoption("--suite")
    if name is None:
        pytest.skip("no suite to judge by: give --suite, a shipped one's name or a file")
    suite = named("--suite", name, load_suite)
    reference = request.config.getoption("--reference")
    profile = named("--reference", reference, open_reference) if reference else None
    previous = Previous(reference, profile) if profile else None
    # A suite for one's own files knows their columns; it gets others if it names them.
    wanted = None if dataset.own is None else asked_of(suite)
    request.getfixturevalue("ray_data")
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    files = [(split, file) for split, found in dataset.splits.items() for file in found]

    def rows(batch: dict[str, Any]) -> Iterator[pa.Table]:
        for number in batch["id"]:
            split, file = files[number]
            yield from (with_parts(table, split, wanted) for table in dataset.file_tables(file))

    # A task a file: ``read_parquet`` would start workers to look at the files, and cut few rows into many
    # blocks. It asks for less than the gate, so that Ray Data does not fuse the two, and a large file's
    # blocks are judged by many.
    numbers = ray.data.range(len(files), override_num_blocks=len(files))
    read = numbers.map_batches(rows, batch_size=1, num_cpus=0.25)
    try:
        report = gate(read, suite, num_cpus=0.5, previous=previous)
    except MantaError as problem:
        pytest.fail(f"--suite: {problem}", pytrace=False)
    missed = [e for severity in get_args(Severity) for e in report.missed(severity)]
    told = [told_of(e) for e in missed]
    if not report.success:
        lines = [f"suite {suite.name} refuses the {report.rows} rows:", *told]
        pytest.fail("\n  ".join(lines), pytrace=False)
    for line in told:
        warnings.warn(f"suite {suite.name}: {line}", stacklevel=1)


def asked_of(suite: Suite) -> set[str]:
    """The columns that a suite's expectations name."""
    keys = ("column", "column_A", "column_B", "column_list")
    named_by = [e["kwargs"].get(key) or [] for e in suite.document["expectations"] for key in keys]
    return {name for found in named_by for name in ([found] if isinstance(found, str) else found)}


def told_of(expectation: ExpectationReport) -> str:
    """An expectation that does not hold: how severe it is, how many rows, and a few of them."""
    rows = ", ".join(str(example["row_id"]) for example in expectation.examples[:SHOWN])
    return f"{expectation.severity}: {expectation.describe()}{', such as ' + rows if rows else ''}"
