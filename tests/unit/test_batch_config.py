"""A batch's configuration: the shipped files, and which of its fields decide what is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.job.config import parse_config, read_yaml
from jobs.batch_inference import BatchInferenceConfig

DEMO = Path(__file__).parents[2] / "jobs" / "configs" / "demo"
PRICE = {"input_per_million_tokens": 1, "output_per_million_tokens": 2}


def config(**fields: Any) -> BatchInferenceConfig:
    """Of a batch; engine, if it is of importance, is named."""
    return BatchInferenceConfig.model_validate(
        {"name": "n", "source": {"path": "a.csv"}, "model": "m"} | fields
    )


@pytest.mark.parametrize("file", ["batch_inference.yaml", "compare.yaml"])
def test_the_shipped_files_are_configurations(file: str) -> None:
    read = parse_config(BatchInferenceConfig, [], read_yaml(DEMO / file), "test")
    assert set(read.compare) == ({"prompt-shield"} if file == "compare.yaml" else set())


def test_models_to_compare_are_words_on_the_command_line() -> None:
    words = ["--name", "n", "--source.path", "a.csv", "--model", "a", "--compare", "b,c"]
    words += ["--comparison.labels", "yes,no", "--output.formats", "jsonl"]
    read = parse_config(BatchInferenceConfig, words, {}, "test")
    assert (read.compare, read.comparison.labels, read.output.formats) == (
        ["b", "c"],
        ["yes", "no"],
        ["jsonl"],
    )


def test_batches_from_before_formats_and_comparisons_keep_their_address() -> None:
    assert config(engine="warm").meaning().keys() == {"name", "source", "engine", "sampling"}
    source = {"path", "split", "messages_column", "prompt_column", "prompt_template", "system_prompt"}
    assert config().meaning()["source"].keys() == {*source, "id_column", "limit"}
    dedicated = config(engine="dedicated", dedicated={"concurrency": 2})
    assert dedicated.meaning()["dedicated"] == {"engine_kwargs": {}}


@pytest.mark.parametrize(
    "fields",
    [
        {"compare": ["b"]},
        {"comparison": {"labels": ["yes", "no"]}, "price": PRICE},
        {"source": {"path": "a.csv", "expected_column": "right"}},
        {"dedicated_from_tokens": 1},
        {"output": {"formats": ["parquet", "parquet"]}},
    ],
)
def test_how_answers_are_judged_and_where_they_are_made_is_not_what_they_are(fields: dict[str, Any]) -> None:
    assert config(engine="warm", **fields).meaning() == config(engine="warm").meaning()
