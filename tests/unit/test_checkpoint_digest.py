"""Equal trainings have equal digests; other weights, losses or configurations have others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.finetune import checkpoint_digest

HISTORY = [
    {"step": 1, "loss": 2.5, "samples_seen": 8, "elapsed_s": 0.4},
    {"step": 2, "loss": 1.5, "samples_seen": 16, "elapsed_s": 0.9},
]
CONFIG = {"r": 8, "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "default/model/a/0"}


@pytest.fixture
def digest(tmp_path: Path):
    def make(history=HISTORY, weights: bytes = b"weights", **config) -> str:
        (tmp_path / "adapter_model.safetensors").write_bytes(weights)
        (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG | config))
        return checkpoint_digest(tmp_path, history)

    return make


def test_how_long_it_took_and_how_a_set_is_written_do_not_count(digest) -> None:
    slower = [record | {"elapsed_s": record["elapsed_s"] * 7} for record in HISTORY]
    same = digest(slower, target_modules=["v_proj", "q_proj"], base_model_name_or_path="other/model/a/0")
    assert same == digest()


def test_what_was_trained_counts(digest) -> None:
    others = [
        digest(weights=b"other"),
        digest(r=16),
        digest(target_modules=["q_proj"]),
        digest([HISTORY[0], HISTORY[1] | {"loss": 1.4}]),
        digest([HISTORY[0], HISTORY[1] | {"samples_seen": 17}]),
        digest(HISTORY[:1]),
    ]
    assert len({digest(), *others}) == len(others) + 1
