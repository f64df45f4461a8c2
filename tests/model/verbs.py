"""The verbs that tests kill, each with inputs of its own, small enough to be run many times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from cluster.models import ensure_model
from tests.model.kills import Verb
from tests.model.test_evaluate import ENGINE, make_checkpoint
from tests.model.test_promote import make_checkpoint as make_weights
from tests.model.test_promote import make_evaluation

STEPS = 16


def _preprocess(folder: Path, request: pytest.FixtureRequest) -> Verb:
    request.getfixturevalue("local_ray")
    suite = {
        "name": "cells",
        "expectations": [
            {
                "type": "expect_column_values_to_be_in_set",
                "kwargs": {"column": "label", "value_set": [0, 1], "mostly": 0.6},
                "severity": "critical",
            }
        ],
    }
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite))
    for split, first in (("train", 0), ("test", 1000)):
        rows = [
            f"text {number},{7 if number % 10 == 3 else number % 2}" for number in range(first, first + 60)
        ]
        (folder / f"{split}.csv").write_text("\n".join(["text,label", *rows, ""]))
    fields = {
        "train": [str(folder / "train.csv")],
        "test": [str(folder / "test.csv")],
        "columns": {"text": "string", "label": "int64"},
        "contract": str(folder / "suite.yaml"),
        "template": {
            "prompt": "Say {text}",
            "completion": "{label}",
            "values": {"label": {"0": "no", "1": "yes"}},
        },
        "license": {"name": "CC0-1.0", "source": "made up"},
    }
    return Verb("preprocess", "dataset", fields, writes=range(1, 5))


def _finetune(folder: Path, request: pytest.FixtureRequest) -> Verb:
    request.getfixturevalue("local_ray")
    training = {
        "learning_rate": 5e-3,
        "per_device_train_batch_size": 4,
        "max_steps": STEPS,
        "save_steps": 4,
        "logging_steps": 4,
    }
    fields = {
        "dataset": str(request.getfixturevalue("dataset").ref),
        "base_model": str(ensure_model(str(request.getfixturevalue("tiny_model"))).ref),
        "training": training,
        # With dropout, so that a resumed run must draw as the killed one would have.
        "lora": {"lora_dropout": 0.1},
    }
    # From the second checkpoint on, so that there is one to resume from.
    return Verb("finetune", "checkpoint", fields, writes=range(9, 21))


def _evaluate(folder: Path, request: pytest.FixtureRequest) -> Verb:
    request.getfixturevalue("local_ray")
    dataset, model = request.getfixturevalue("dataset"), request.getfixturevalue("tiny_model")
    checkpoint = make_checkpoint("killed-judge", model, dataset, folder)
    fields = {
        "checkpoint": str(checkpoint.ref),
        "labels": ["safe", "attack"],
        "max_rows": 20,
        "engine_kwargs": ENGINE,
    }
    return Verb("evaluate", "evaluation", fields, writes=range(1, 3))


def _promote(folder: Path, request: pytest.FixtureRequest) -> Verb:
    evaluation = make_evaluation("killed-gate", make_weights("killed-gate", b"weights" * 1000))
    return Verb("promote", "promotion", {"evaluation": str(evaluation.ref)}, writes=range(1, 4))


def _batch_inference(folder: Path, request: pytest.FixtureRequest) -> Verb:
    fields = {
        "source": {"path": str(folder / "prompts.jsonl")},
        "model": request.getfixturevalue("echo_route"),
        "concurrency": 4,
        "rows_per_file": 10,
    }
    lines = [
        {
            "custom_id": f"row-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"messages": [{"role": "user", "content": f"Say {number} to jane@example.org"}]},
        }
        for number in range(40)
    ]
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return Verb("batch_inference", "batch-output", fields, writes=range(1, 10))


MAKERS = {
    "preprocess": _preprocess,
    "finetune": _finetune,
    "evaluate": _evaluate,
    "promote": _promote,
    "batch_inference": _batch_inference,
}
