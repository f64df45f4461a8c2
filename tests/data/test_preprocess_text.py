"""Preprocessing of plain corpora: every stage, every kind of file, and input that is bad."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import random
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import RefusedError, UsageError
from cluster.job.config import read_yaml
from cluster.runs import RunRepository
from cluster.settings import load_settings
from cluster.storage import ObjectStore
from jobs.preprocess import PreprocessConfig, run
from jobs.preprocessing.pipeline import Pipeline
from tests.data.test_preprocess import Preprocess, preprocess  # noqa: F401 - a fixture

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("local_ray")]

RECIPE = Path(__file__).parents[2] / "jobs" / "configs" / "preprocess_text.yaml"
THINGS = re.findall(
    r"\w+",
    "river stone cloud garden engine letter window bridge market valley harvest lantern forest captain "
    "school winter morning village doctor painter mountain harbour kitchen journey answer teacher",
)
JOINS = re.findall(r"\w+", "of the and to that have with be near under behind above for from into beside")


def prose(number: int, sentences: int = 8) -> str:
    """English words in sentences, others for each number."""
    rng, found = random.Random(number), []
    for _ in range(sentences):
        words = [word for _ in range(7) for word in (rng.choice(JOINS), rng.choice(THINGS))]
        found.append(f"The {rng.choice(THINGS)} was {' '.join(words)}.")
    return " ".join(found)


def jsonl(texts: list[str]) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


class Corpus:
    """Runs the shipped recipe, changed by fields, in this process."""

    def __init__(self, preprocess: Preprocess) -> None:  # noqa: F811
        self.at = preprocess

    def __call__(self, *sources: str, **fields: Any) -> dict[str, int]:
        values = read_yaml(RECIPE) | {"name": self.at.name, "train": list(sources), "num_cpus": 2} | fields
        self.result = run(PreprocessConfig.model_validate(values))
        manifest = self.at.manifest
        assert manifest is not None
        counts = manifest.counts
        came_in = counts["input"] + counts.get("augmented", 0)
        assert came_in == counts["train"] + counts["test"] + counts["quarantined"]
        return counts

    def apart(self) -> dict[int, tuple[str, str]]:
        return {row["line"]: (row["stage"], row["reason"]) for row in self.at.made("quarantine")}


@pytest.fixture
def corpus(preprocess: Preprocess) -> Corpus:  # noqa: F811
    return Corpus(preprocess)


PLAIN = {"language": None, "quality": {}, "duplicates": {"exact": {}}, "split": {"test_fraction": 0}}


def test_the_shipped_recipe_says_of_each_row_why_it_went(corpus: Corpus) -> None:
    near = prose(5).replace(".", ", they said.", 1)
    texts = [
        *(prose(number) for number in range(40)),
        # Wherever the card cuts the row, it cuts an address.
        "jane.doe.of.the.long.name@mail.some.example.org " * 15
        + "Dies ist ein deutscher Text über den Fluss und die Stadt, in der niemand mehr wohnen wollte. " * 9,
        "This is a note about the weather in the garden, and it is much too short to be a document.",
        f"{prose(7, 1)}\n" * 30,
        prose(3) + " ",
        near,
        prose(50) + " Write to jane.doe@example.org about it.",
    ]
    train = corpus.at.file("a.jsonl", jsonl(texts) + '{"text": 5}\n')
    counts = corpus(train, split={"test_fraction": 0.2})
    assert counts["input"] == 47
    apart = corpus.apart()
    assert apart[41] == ("language", "language_de")
    assert apart[42] == ("quality", "gopher_short_doc")
    assert apart[43][0] == "quality"
    assert apart[44] == ("exact_duplicates", "repeats an earlier row")
    (alike,) = {6, 45} & set(apart)  # Of the two the one stays that is in test, else the first.
    assert apart[alike][0] == "near_duplicates"
    assert apart[47][0] == "read"
    assert set(apart) == {41, 42, 43, 44, alike, 47}
    rows = {row["line"]: row for row in corpus.at.made("quarantine")}
    assert rows[44]["repeats"] == f"{train} line 4"
    assert rows[alike]["repeats"] == f"{train} line {51 - alike}"
    assert rows[42]["score"] < 50
    kept = [row["text"] for row in corpus.at.made("train") + corpus.at.made("test")]
    assert any("Write to <EMAIL_ADDRESS> about" in text for text in kept)
    assert not any("jane.doe" in text for text in kept)
    assert corpus.at.manifest
    for page in ("card.md", "card.html", "docs.html"):
        shown = corpus.at.artifacts.read(corpus.at.manifest, page).decode()
        assert not re.search(r"jane|example\.o", shown)
        assert page == "docs.html" or "EMAIL" in shown
    checks = corpus.at.checks()
    assert checks["masked"] == {"EMAIL_ADDRESS": 1}
    assert checks["dropped"]["language"] == {"language_de": 1}
    (language,) = (rule for rule in checks["rules"] if rule["rule"] == "language")
    assert (language["judged"], language["broken"], language["success"]) == (46, 1, True)


def test_warned_rows_stay_and_are_counted_and_too_many_fail(corpus: Corpus) -> None:
    texts = [prose(number) for number in range(20)] + [
        f"The door of house number {number} is red." for number in range(5)
    ]
    train = corpus.at.file("a.jsonl", jsonl(texts))
    quality = {"gopher_quality": {"action": "warn"}}
    repeated = corpus.at.file("b.jsonl", jsonl(texts[:1]))
    duplicates = {"exact": {"action": "warn"}, "near": {}}
    counts = corpus(train, repeated, **PLAIN | {"quality": quality, "duplicates": duplicates})
    assert corpus.apart() == {1: ("near_duplicates", corpus.at.made("quarantine")[0]["reason"])}
    assert counts["quarantined"] == 1
    checks = corpus.at.checks()
    warned = {"quality": {"gopher_short_doc": 5}, "exact_duplicates": {"repeats an earlier row": 1}}
    assert checks["warned"] == warned
    # What only warns leaves its rows to the next stage.
    judged = {rule["rule"]: (rule["judged"], rule["broken"]) for rule in checks["rules"]}
    assert judged["exact_duplicates"] == judged["near_duplicates"] == (26, 1)
    for rule, words in (
        ({"action": "fail"}, "quality/gopher_quality [5 of 25 rows do not pass; 1 must]"),
        ({"mostly": 0.9}, "quality/gopher_quality [5 of 25 rows do not pass; 0.9 must]"),
    ):
        values = read_yaml(RECIPE) | PLAIN | {"quality": {"gopher_quality": rule}}
        with pytest.raises(Exception, match="rules refuse the 25 rows") as caught:
            run(PreprocessConfig.model_validate(values | {"name": corpus.at.name + "-f", "train": [train]}))
        assert words in str(caught.value)


def test_files_of_every_kind_make_the_same_data(corpus: Corpus, store: ObjectStore) -> None:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import CompressedOutputStream

    texts = [prose(number, 2) for number in range(30)]
    rows = [{"id": f"r{number:03d}", "text": text} for number, text in enumerate(texts)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    fields = PLAIN | {"columns": {"id": "string", "text": "string"}, "id_column": "id"}

    def at(name: str) -> str:
        return str(corpus.at.folder / name)

    datasets.Dataset.from_list(rows).save_to_disk(at("saved"), num_shards=2)
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(at("dict"))
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=7)
    store.put(f"raw/{corpus.at.name}/a.parquet", sink.getvalue())
    with CompressedOutputStream(at("a.jsonl.zst"), "zstd") as stream:
        stream.write(lines.encode())
    sources = {
        "plain": [corpus.at.file("a.jsonl", lines)],
        "gz": [
            corpus.at.file(
                "b.jsonl.gz", gzip.compress(lines[:5000].encode()) + gzip.compress(lines[5000:].encode())
            )
        ],
        "bz2": [corpus.at.file("c.jsonl.bz2", bz2.compress(lines.encode()))],
        "zst": [at("a.jsonl.zst")],
        "saved": [at("saved")],
        "s3": [store.uri(f"raw/{corpus.at.name}/")],
    }
    digests = {}
    for kind, addresses in sources.items():
        assert corpus(*addresses, **fields)["train"] == 30, kind
        manifest = corpus.at.manifest
        assert manifest is not None
        digests[kind] = manifest.data_digest
    assert len(set(digests.values())) == 1, digests
    with pytest.raises(Exception, match="holds a DatasetDict: name the folder of one of its splits"):
        corpus(at("dict"), **fields)


def test_text_files_are_documents_or_hold_one_a_line(corpus: Corpus) -> None:
    (corpus.at.folder / "books").mkdir()
    corpus.at.file("books/a.txt", "One line.\nAnother line.\n")
    corpus.at.file("books/b.txt", "A third line.\n\xe9".encode("latin-1"))
    assert corpus(str(corpus.at.folder / "books"), **PLAIN)["train"] == 3
    assert corpus(str(corpus.at.folder / "books"), text_rows="file", **PLAIN)["train"] == 1
    assert [row["text"] for row in corpus.at.made("train")] == ["One line.\nAnother line."]
    assert [row["reason"].rsplit("/")[-1] for row in corpus.at.made("quarantine")] == [
        "b.txt line 1: byte 15 is not UTF-8."
    ]


def test_a_row_of_50_mb_is_kept_apart(corpus: Corpus) -> None:
    huge = json.dumps({"text": "x" * 50 * 2**20})
    texts = [prose(number, 2) for number in range(4)]
    train = corpus.at.file("a.jsonl", jsonl(texts[:2]) + huge + "\n" + jsonl(texts[2:]))
    counts = corpus(train, broken_lines="fail", **PLAIN)
    assert (counts["train"], counts["quarantined"]) == (4, 1)
    (row,) = corpus.at.made("quarantine")
    assert (row["line"], row["stage"], row["score"]) == (3, "size", len(huge) + 1)
    assert len(row["raw"]) <= 1000


def test_a_file_that_changes_under_the_job_fails_it(
    corpus: Corpus, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, mark = f"{corpus.at.name}/raw.jsonl", Pipeline.mark
    store.put(key, jsonl([prose(number, 2) for number in range(3)]).encode())

    def change_and_mark(*arguments: Any) -> None:
        store.put(key, jsonl([prose(number, 2) for number in range(4)]).encode())
        mark(*arguments)

    monkeypatch.setattr(Pipeline, "mark", change_and_mark)
    with pytest.raises(RefusedError) as caught:
        corpus(store.uri(key), **PLAIN)
    assert str(caught.value) == (
        f"{store.uri(key)} has changed since the job began and took its fingerprint: run the job again."
    )
    assert corpus.at.manifest is None


def test_mixed_schemas_between_files(corpus: Corpus) -> None:
    first = corpus.at.file("a.jsonl", '{"text": "good one", "extra": 1}\n{"text": {"deep": 1}}\n')
    second = corpus.at.file("b.csv", "id,text\n1,from a table\n")
    counts = corpus(first, second, **PLAIN)
    assert (counts["train"], counts["quarantined"]) == (2, 1)
    other = corpus.at.file("c.csv", "id,body\n1,x\n")
    with pytest.raises(Exception, match=r"c\.csv has no column text: it has body, id"):
        corpus(first, other, **PLAIN)


def test_evaluation_sets_stay_out_and_lengths_are_in_tokens(corpus: Corpus, tmp_path: Path) -> None:
    from tests.tiny_model import make_tiny_llama

    question = "Which of the seven old towers near the northern harbour fell down first during that storm?"
    corpus.at.file("quiz.jsonl", json.dumps({"question": question}) + "\n")
    texts = [prose(0, 2), f"A page says: {question} Nobody knows.", prose(2, 60)]
    counts = corpus(
        corpus.at.file("a.jsonl", jsonl(texts)),
        **PLAIN
        | {
            "contamination": {"against": [str(corpus.at.folder / "quiz.jsonl")], "columns": ["question"]},
            "length": {"model": str(make_tiny_llama(tmp_path / "tiny-llama")), "max_tokens": 1000},
        },
    )
    assert counts["train"] == 1
    assert corpus.apart() == {2: ("contamination", "in_quiz"), 3: ("length", "too_many_tokens")}


def test_labels_are_joined_by_row_id(corpus: Corpus) -> None:
    rows = [{"id": f"r{number}", "text": prose(number, 2), "stars": 1} for number in range(6)]
    train = corpus.at.file("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    first = corpus.at.file("l1.csv", "row,stars,topic\nr1,3,trains\nr2,4,ships\nr9,5,nobody\n")
    last = corpus.at.file("l2.csv", "row,stars,topic\nr2,5,planes\n")
    fields = PLAIN | {
        "columns": {"id": "string", "text": "string", "stars": "int64", "topic": "string"},
        "id_column": "id",
        "labels": {"source": [first, last], "id_column": "row", "columns": ["stars", "topic"]},
    }
    assert corpus(train, **fields)["train"] == 6
    found = {row["row_id"]: (row["stars"], row["topic"]) for row in corpus.at.made("train")}
    assert found["r0"] == (1, None)
    assert (found["r1"], found["r2"]) == ((3, "trains"), (5, "planes"))
    assert corpus.result.summary["labelled"] == 2


def test_only_new_files_are_looked_at_again(
    corpus: Corpus, capsys: pytest.CaptureFixture[str], store: ObjectStore
) -> None:
    files = [corpus.at.file(f"{n}.jsonl", jsonl([prose(n * 9 + m, 2) for m in range(9)])) for n in range(3)]
    fields = PLAIN | {"incremental": True, "broken_lines": "fail"}
    broken = corpus.at.file("broken.jsonl", '{"text": 1}\n')
    with pytest.raises(Exception, match="text is 1, not a string"):
        corpus(files[0], broken, **fields)  # What was done of a failed run stays.
    assert "2 files: 0 marked by an earlier run, 2 to mark now" in capsys.readouterr().out
    corpus(*files[:2], **fields)
    assert "2 files: 1 marked by an earlier run, 1 to mark now" in capsys.readouterr().out
    # In another order, so that files have other numbers.
    counts = corpus(files[2], *files[:2], **fields)
    assert "3 files: 2 marked by an earlier run, 1 to mark now" in capsys.readouterr().out
    grown = corpus.at.manifest
    assert grown is not None
    # By these `manta gc` knows which parts are still of use.
    parts = json.loads(corpus.at.artifacts.read(grown, "parts.json"))
    assert len([corpus.at.artifacts.open(part) for part in parts]) == 3
    corpus(files[2], *files[:2], **fields | {"incremental": False, "description": "another version"})
    assert corpus.at.manifest is not None
    assert corpus.at.manifest.ref != grown.ref
    assert (corpus.at.manifest.data_digest, corpus.at.manifest.counts) == (grown.data_digest, counts)
    # Equal data has not drifted; what a version says of itself is beside it.
    assert corpus.result.summary["previous"] == str(grown.ref)
    assert corpus.result.summary["drift"] == "stable"
    assert corpus.result.summary["schema"] == {"row_id": "string", "text": "string"}
    names = {file.path for file in corpus.at.manifest.files}
    assert names >= {"profile.json", "card.md", "card.html", "docs.html", "checks.json"}
    corpus(*files, **fields | {"max_row_bytes": 10**6})
    assert "3 files: 0 marked by an earlier run, 3 to mark now" in capsys.readouterr().out


def test_a_version_is_held_against_the_one_before(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    kwargs = {"min_value": {"$PARAMETER": "previous_input_rows * 0.5"}}
    contract = [{"type": "expect_table_row_count_to_be_between", "kwargs": kwargs}]
    suite = corpus.at.file("many.json", json.dumps({"name": "many", "expectations": contract}))
    fields = PLAIN | {"contract": suite, "final": "documents-drift", "incremental": True}
    first = corpus.at.file("first.jsonl", jsonl([prose(number, 2) for number in range(60)]))
    corpus(first, **fields)
    suites = corpus.at.checks()["suites"]
    assert [len(suites[gate]["left_out"]) for gate in ("contract", "final")] == [1, 3]
    assert "suite many does not judge expect_table_row_count_to_be_between" in capsys.readouterr().out
    before = corpus.at.manifest
    assert before is not None
    second = corpus.at.file("second.jsonl", jsonl([prose(number, 2) for number in range(100, 110)]))
    corpus(first, second, **fields)  # What is kept of the first file's contract is no answer to this one.
    suites = corpus.at.checks()["suites"]
    assert [suites[gate]["left_out"] for gate in ("contract", "final")] == [[], []]
    assert suites["contract"]["expectations"][0]["kwargs"]["min_value"] == 30
    assert suites["final"]["expectations"][2]["kwargs"]["min_value"] == 48
    assert corpus.at.manifest is not None
    docs = corpus.at.artifacts.read(corpus.at.manifest, "docs.html").decode()
    assert f"previous_text_characters_partition, of {before.ref}" in docs
    long = corpus.at.file("long.jsonl", jsonl([prose(number, 9) for number in range(200, 260)]))
    with pytest.raises(RefusedError, match=r"expect_column_kl_divergence_to_be_less_than\(text.characters\)"):
        corpus(long, **fields)
    few = corpus.at.file("few.jsonl", jsonl([prose(1, 2)]))
    with pytest.raises(RefusedError, match="suite many refuses the 1 row:"):
        corpus(few, **fields)


def test_a_contract_judges_all_of_a_part(corpus: Corpus) -> None:
    # More rows than a block takes, so that Ray Data joins blocks; the last break the contract.
    rows = [{"text": f"row {number}", "n": int(number >= 20_000)} for number in range(20_100)]
    train = corpus.at.file("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    kwargs = {"column": "n", "max_value": 0}
    entry = {"type": "expect_column_values_to_be_between", "kwargs": kwargs, "severity": "critical"}
    suite = corpus.at.file("c.json", json.dumps({"name": "c", "expectations": [entry]}))
    fields = PLAIN | {
        "columns": {"text": "string", "n": "int64"},
        "contract": suite,
        "duplicates": {"exact": None},
    }
    with pytest.raises(Exception, match="suite c refuses the 20100 rows"):
        corpus(train, **fields, incremental=True)
    assert corpus.at.manifest is None


def test_what_a_contract_saw_of_personal_data_is_told_masked(corpus: Corpus) -> None:
    texts = [f"{prose(number, 2)} Write to jane{number}.doe@example.org." for number in range(4)]
    train = corpus.at.file("a.jsonl", jsonl([*texts, f"short jane.doe@example.org {'x ' * 300}"]))
    fields = PLAIN | {"personal_data": {}, "max_row_bytes": 500}
    entries = {
        name: {"type": f"expect_{name}", "kwargs": {"column": "text", **kwargs}, "severity": "warning"}
        for name, kwargs in {
            "column_values_to_be_unique": {},
            "column_distinct_values_to_be_in_set": {"value_set": ["x"]},
            "column_values_to_be_in_set": {"value_set": ["x"]},
        }.items()
    }
    unique = entries.pop("column_values_to_be_unique")
    again = corpus.at.file("u.json", json.dumps({"name": "u", "expectations": [unique]}))
    with pytest.raises(UsageError, match="suite u looks again at text after personal_data"):
        corpus(train, **fields, contract=again)
    suite = corpus.at.file("c.json", json.dumps({"name": "c", "expectations": list(entries.values())}))
    counts = corpus(train, **fields, contract=suite)
    assert (counts["train"], counts["quarantined"]) == (4, 1)
    checks = corpus.at.checks()
    assert len(checks["suites"]["contract"]["expectations"][1]["examples"]) == 4
    (apart,) = corpus.at.made("quarantine")
    assert (apart["stage"], apart["raw"][:30]) == ("size", '{"text": "short <EMAIL_ADDRESS')
    assert len(corpus.result.summary["warnings"]) == 2
    for told in (checks, apart, corpus.result.summary):
        assert "doe@example" not in json.dumps(told)


def shout(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A hook for augmentation."""
    return [{**row, "text": row["text"].upper()}]


#: Rows that break the second are known at the end of the pass only, when copies of them were made.
CAME_IN = {
    "name": "came-in",
    "expectations": [
        {"type": "expect_table_row_count_to_equal", "kwargs": {"value": 60}},
        {"type": "expect_column_values_to_be_unique", "kwargs": {"column": "key", "mostly": 0.8}},
    ],
}


def test_augmented_rows_and_groups(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"text": prose(number, 2), "author": f"a{number % 10}", "key": max(number, 9)} for number in range(60)
    ]
    train = corpus.at.file("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    fields = PLAIN | {
        "columns": {"text": "string", "author": "string", "key": "int64"},
        "contract": corpus.at.file("came-in.yaml", json.dumps(CAME_IN)),
        "split": {"test_fraction": 0.4, "group": "author"},
        "augment": "tests.data.test_preprocess_text:shout",
    }
    counts = corpus(train, **fields)
    kept, held_out = corpus.at.made("train"), corpus.at.made("test")
    assert {row["author"] for row in kept}.isdisjoint({row["author"] for row in held_out})
    copies = [row for row in kept if row["row_id"].endswith("#1")]
    assert counts["input"] == 60
    assert len(copies) == len(kept) / 2
    # The ten rows of one key, one of each author, and what was made of those of train.
    apart = corpus.at.made("quarantine")
    assert {row["reason"] for row in apart} == {"expect_column_values_to_be_unique(key)"}
    assert len({row["row_id"].partition("#")[0] for row in apart}) == 10
    assert counts["augmented"] - len(copies) == len(apart) - 10 > 0
    said = capsys.readouterr().out
    assert f"60 rows read and {counts['augmented']} made of them by augment, of 1 file" in said
    assert "suite came-in passed: 2 of 2 expectations hold for 60 rows" in said
    assert corpus.at.manifest is not None
    card = corpus.at.artifacts.read(corpus.at.manifest, "card.md").decode()
    assert f"| augmented | {counts['augmented']} |" in card
    assert all(row["text"].isupper() for row in copies)
    assert not any(row["text"].isupper() for row in held_out)


def stumble(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A hook that fails at a row."""
    raise ValueError(f"{row['text'][:3]} is odd")


def test_a_mistake_of_the_hook_is_one_sentence(corpus: Corpus) -> None:
    hooks = "tests.data.test_preprocess_text"
    train = corpus.at.file("a.jsonl", json.dumps({"id": "r1", "text": prose(1, 2)}) + "\n")
    fields = PLAIN | {"columns": {"id": "string", "text": "string"}, "id_column": "id"}
    fields |= {"contract": None, "template": None}
    error = corpus.at.refused("", 2, train=[train], augment=f"{hooks}:stumble", **fields)
    sentence = f"augment {hooks}:stumble: ValueError: The is odd, raised for row r1."
    assert error == f"error: {sentence}"
    (record,) = RunRepository(load_settings().database_url).list("preprocess", limit=1)
    assert record.message == sentence
    # What is known beforehand is told before a row is read: this file could not be.
    broken = corpus.at.file("b.jsonl", "{broken\n")
    error = corpus.at.refused("", 2, train=[broken], augment=f"{hooks}:whisper", **fields)
    assert error.endswith("has no attribute 'whisper'; write package.module:function.")
    (record,) = RunRepository(load_settings().database_url).list("preprocess", limit=1)
    assert record.message == error.removeprefix("error: ")


def test_a_copy_never_takes_the_id_of_another_row(corpus: Corpus) -> None:
    ids = ["x#1", "y", "x"]
    rows = [{"id": row_id, "text": prose(number, 2)} for number, row_id in enumerate(ids)]
    train = corpus.at.file("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    fields = PLAIN | {"columns": {"id": "string", "text": "string"}, "id_column": "id"}
    with pytest.raises(RefusedError, match="a copy is called 'x#1', and so is another row"):
        corpus(train, **fields, augment="tests.data.test_preprocess_text:shout")
    assert corpus(train, **fields)["train"] == 3


def die_once(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Kills the worker that it runs in, once."""
    word = Path(row["text"].split()[0])
    if word.exists():
        word.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return []


def test_a_worker_killed_in_mid_pass_costs_no_row(corpus: Corpus) -> None:
    word = corpus.at.file("word", "")
    texts = [prose(number, 2) for number in range(50)]
    train = corpus.at.file("a.jsonl", jsonl([*texts[:25], f"{word} is here", *texts[25:]]))
    counts = corpus(train, augment="tests.data.test_preprocess_text:die_once", **PLAIN)
    assert not Path(word).exists()
    assert counts["train"] == counts["input"] == 51


def test_rows_make_the_same_data_however_they_are_split(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [prose(number % 90, 3) for number in range(120)]
    rows = [json.dumps({"id": f"r{n:03d}", "text": text}) + "\n" for n, text in enumerate(texts)]
    fields = read_yaml(RECIPE) | {"columns": {"id": "string", "text": "string"}, "id_column": "id"}
    fields |= {"language": None, "quality": {}, "split": {"test_fraction": 0.3}}
    one = corpus.at.file("a.jsonl", "".join(rows))
    many = [
        corpus.at.file(f"b{part}.jsonl", "".join(rows[at : at + 47]))
        for part, at in enumerate(range(0, 120, 47))
    ]
    counts = corpus(one, **{k: v for k, v in fields.items() if k not in ("name", "train")})
    first = corpus.at.manifest
    assert counts["duplicates"] >= 30
    again = corpus(*many, **{k: v for k, v in fields.items() if k not in ("name", "train")})
    assert corpus.at.manifest is not None
    assert first is not None
    assert again == counts
    assert corpus.at.manifest.data_digest == first.data_digest
