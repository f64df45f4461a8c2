"""Direct preference optimisation: the loss by hand, and a real training that comes to prefer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from cluster.contracts import Manifest
from cluster.errors import RefusedError
from cluster.job import command
from cluster.storage import ArtifactStore
from jobs.finetune import FinetuneConfig, run
from jobs.rows import Preference
from jobs.training.objective import Dpo
from jobs.training.tokens import collate
from tests.model.conftest import QUESTION, make_dataset, rows
from tests.tiny_model import make_tiny_adapter, make_tiny_llama


def preferences(count: int, first: int = 0) -> list[dict]:
    """Each asks about a message; the shorter answer is the better one."""
    said = lambda role, content: [{"role": role, "content": content}]  # noqa: E731
    return [
        {
            "row_id": f"row-{number:05d}",
            "prompt": said("user", QUESTION.format(f"bread number {number}")),
            "chosen": said("assistant", "safe"),
            "rejected": said("assistant", "I do not know whether it is."),
        }
        for number in range(first, first + count)
    ]


class Scripted:
    """A model whose completions have the probabilities that it is told, with an adapter and without."""

    def __init__(self, policy: Any, reference: Any) -> None:
        self._policy, self._reference, self._enabled = policy, reference, True

    def disable_adapter(self) -> Scripted:
        return self

    def __enter__(self) -> None:
        self._enabled = False

    def __exit__(self, *_: object) -> None:
        self._enabled = True

    def __call__(self, **_: Any) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(logits=self._policy if self._enabled else self._reference)


def test_the_loss_is_the_papers() -> None:
    """One pair, one completion token of each: all of it by hand."""
    import torch

    # Probabilities of the token 0, which is the chosen answer, and of the token 1, the rejected one.
    policy = torch.tensor([[[0.8, 0.2]], [[0.6, 0.4]]]).log().requires_grad_()
    reference = torch.tensor([[[0.5, 0.5]], [[0.3, 0.7]]]).log()
    batch = {"input_ids": torch.tensor([[9, 0], [9, 1]]), "labels": torch.tensor([[0], [1]])}
    measured = Dpo(beta=0.5).loss(Scripted(policy, reference), batch)
    chosen, rejected = 0.5 * math.log(0.8 / 0.5), 0.5 * math.log(0.4 / 0.7)
    by_hand = math.log(1 + math.exp(rejected - chosen))
    assert measured.of == 1
    assert measured.loss.item() == pytest.approx(by_hand, rel=1e-5)
    assert measured.figures == pytest.approx([chosen, rejected, chosen - rejected, 1.0], rel=1e-5)
    measured.loss.backward()
    # By the chain rule: -beta * sigmoid(rejected - chosen) at the chosen token's logarithm, before softmax.
    assert policy.grad is not None
    slope = 0.5 / (1 + math.exp(chosen - rejected))
    assert policy.grad[0, 0].tolist() == pytest.approx([-slope * 0.2, slope * 0.2], rel=1e-4)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("dpo") / "tiny")


def test_what_equals_its_reference_has_the_loss_ln_2_and_an_adapter_does_not(
    tiny: Path, tmp_path: Path
) -> None:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    from jobs.training.worker import load_tokenizer

    tokenizer, dpo = load_tokenizer(tiny), Dpo(beta=0.3)
    pairs = [Preference(**row) for row in preferences(3)]
    batch = collate([e for row in pairs for e in dpo.encode(row, tokenizer)], tokenizer.pad_token_id)
    load = lambda: AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)  # noqa: E731
    fresh = get_peft_model(load(), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")).eval()
    measured = dpo.loss(fresh, dict(batch))
    assert measured.of == 3
    assert measured.loss.item() / 3 == pytest.approx(math.log(2), rel=1e-6)
    assert measured.figures == [0.0] * 4
    measured.loss.backward()
    grads = [w.grad for name, w in fresh.named_parameters() if "lora_B" in name]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads)

    # The reference is the base: log-probabilities of whole rows, each alone and unpadded.
    tuned = PeftModel.from_pretrained(load(), make_tiny_adapter(tiny, tmp_path / "lora")).eval()
    base = load().eval()

    def alone(model: Any, example: Any) -> float:
        ids = torch.tensor([[*example.prompt, *example.completion]])
        logits = model(input_ids=ids).logits[0, len(example.prompt) - 1 : -1]
        kept = torch.log_softmax(logits, -1).gather(1, torch.tensor(example.completion)[:, None])
        return float(kept.sum())

    expected = [0.0, 0.0]
    with torch.no_grad():
        for row in pairs:
            for place, example in enumerate(dpo.encode(row, tokenizer)):
                expected[place] += 0.3 * (alone(tuned, example) - alone(base, example))
    assert abs(expected[0] - expected[1]) > 0.1
    assert dpo.loss(tuned, dict(batch)).figures[:2] == pytest.approx(expected, rel=1e-3)


def wanted(dataset: Manifest, model: Path, name: str, **changes: Any) -> FinetuneConfig:
    training = {
        "learning_rate": 3e-4,
        "per_device_train_batch_size": 4,
        "max_steps": 10,
        "save_steps": 5,
        "logging_steps": 1,
    }
    fields = {"method": "dpo", "dpo": {"beta": 0.2}, "training": training} | changes
    return FinetuneConfig(name=name, dataset=str(dataset.ref), base_model=str(model), **fields)


@pytest.mark.integration
def test_two_workers_learn_to_prefer(
    local_ray: None, artifacts: ArtifactStore, tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset = make_dataset("tiny-preferences", preferences(16), preferences(7, first=100))
    told = list[dict[str, Any]]()
    done = run(wanted(dataset, tiny_model, "prefers", validation_split="test"), on_step=told.append)
    manifest = artifacts.open(done.artifact)
    steps = [json.loads(line) for line in artifacts.read(manifest, "training.jsonl").splitlines()]
    assert [step["step"] for step in steps] == list(range(1, 11))
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    margins = [step["reward_margin"] for step in steps]
    assert margins[0] == 0
    assert 0 < margins[2] < margins[5] < margins[9]
    assert margins[9] > 0.5
    assert steps[-1]["reward_accuracy"] == 1
    assert done.summary["valid_loss"] < math.log(2) - 0.1
    assert (done.summary["method"], done.summary["beta"]) == ("dpo", 0.2)
    assert told[-1]["reward_margin"] == steps[-1]["reward_margin"]
    assert manifest.counts["samples_seen"] == 10 * 8  # Pairs.
    assert "reward margin" in capfd.readouterr().out
    # A split without preferences is told before anything starts.
    imitated = make_dataset("tiny-shield", rows(64), rows(40, first=1000))
    with pytest.raises(RefusedError, match="has no column prompt, chosen, rejected"):
        run(wanted(imitated, tiny_model, "imitates"))


def test_supervised_configurations_mean_what_they_did(capfd: pytest.CaptureFixture[str]) -> None:
    """Else a training that was killed before an upgrade would not be found and resumed after it."""
    fields = {"name": "x", "dataset": "latest:y", "base_model": "demo"}
    plain = FinetuneConfig(**fields).meaning()
    assert not {"method", "dpo"} & plain.keys()
    dpo = FinetuneConfig(**fields, method="dpo").meaning()
    assert {name: dpo[name] for name in dpo.keys() - plain.keys()} == {"method": "dpo", "dpo": {"beta": 0.1}}
    words = [word for name, value in fields.items() for word in (f"--{name}", value)]
    assert command(FinetuneConfig, run, [*words, "--method", "dpo", "--lora.lora_dropout", "0.1"]) == 2
    assert "without dropout" in capfd.readouterr().err
