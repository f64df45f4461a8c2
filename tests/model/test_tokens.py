"""What the model is trained on: tokens, padding, and the loss over completions only."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import RefusedError
from jobs.rows import Row
from jobs.training.tokens import collate, encode
from tests.tiny_model import make_tiny_llama


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tokens") / "tiny")


@pytest.fixture(scope="module")
def tokenizer(directory: Path):
    from jobs.training.worker import load_tokenizer

    return load_tokenizer(directory)


def row(question: str, answer: str) -> Row:
    return Row("row-1", [{"role": "user", "content": question}, {"role": "assistant", "content": answer}])


def test_prompt_and_completion_are_the_templates_own(tokenizer) -> None:
    example = encode(row("Is it safe?", "attack"), tokenizer)
    assert tokenizer.decode(example.prompt) == "<s><|user|>Is it safe?<|end|><|assistant|>"
    assert tokenizer.decode(example.completion) == "attack<|end|>"


def test_what_cannot_be_learned_from_is_refused(tokenizer) -> None:
    with pytest.raises(RefusedError, match="row-1 does not end with a message of the assistant"):
        encode(Row("row-1", [{"role": "user", "content": "Hello?"}]), tokenizer)


def test_a_template_that_rewrites_its_prompt_is_refused(tokenizer) -> None:
    import copy

    rewriting = copy.deepcopy(tokenizer)
    rewriting.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(RefusedError, match="row-1: the chat template"):
        encode(row("Is it safe?", "attack"), rewriting)


def test_a_conversation_that_the_template_does_not_take_is_refused(tokenizer) -> None:
    import copy

    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{{ raise_exception('Conversation roles must alternate.') }}"
    with pytest.raises(RefusedError, match="row-1: the model's chat template refuses it: Conversation"):
        encode(row("Is it safe?", "attack"), strict)


def test_the_loss_is_that_of_each_row_alone_over_its_completion(directory: Path, tokenizer) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from jobs.training.objective import completion_loss

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    examples = [
        encode(row("Short?", "safe"), tokenizer),
        encode(
            row("A much longer question, with more words in it?", "an answer of several words"), tokenizer
        ),
    ]
    batch = dict(collate(examples, tokenizer.pad_token_id))
    assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["position_ids"].shape
    assert batch["labels"].shape == (2, max(len(e.completion) for e in examples))
    # On the left, so that all completions end in the last column.
    assert batch["attention_mask"][:, -1].tolist() == [1, 1]
    assert batch["input_ids"][0, 0] == tokenizer.pad_token_id

    expected = 0.0
    for example in examples:
        ids = torch.tensor([[*example.prompt, *example.completion]])
        logits = model(input_ids=ids).logits[0, len(example.prompt) - 1 : -1]
        expected += torch.nn.functional.cross_entropy(
            logits, torch.tensor(example.completion), reduction="sum"
        ).item()
    assert completion_loss(model, batch).item() == pytest.approx(expected, rel=1e-4)


def test_a_loss_that_is_no_number_ends_training(
    directory: Path, tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights would be none, too, and would be served as a success."""
    import torch
    from transformers import AutoModelForCausalLM

    from jobs.training.arguments import TrainingArguments
    from jobs.training.objective import Supervised
    from jobs.training.worker import State, Trained, _step

    monkeypatch.setattr("ray.train.torch.get_device", lambda: torch.device("cpu"))  # Ray Train is not here.
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    trained = Trained(model, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer), State())
    part = [[row("Is it safe?", "attack")]]
    loss, _ = _step(TrainingArguments(), Supervised(), trained, part, tokenizer)
    assert loss > 0
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(RefusedError, match="loss of step 1 is no number"):
        _step(TrainingArguments(), Supervised(), trained, part, tokenizer)
