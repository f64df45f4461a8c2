"""The tokens that a model is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.errors import RefusedError
from jobs.rows import Row

if TYPE_CHECKING:
    import torch

#: Labels that cross_entropy leaves out.
IGNORED = -100


@dataclass(frozen=True)
class Example:
    """Token ids of the prompt as the chat template ends it, and of the completion after it."""

    prompt: list[int]
    completion: list[int]


def encode(row: Row, tokenizer: Any) -> Example:
    """Tokens of one row by the model's own chat template.

    Raises RefusedError if the last message is not the assistant's, the template takes no such conversation,
    or it does not put a completion behind its prompt.
    """
    from jinja2 import TemplateError

    if len(row.messages) < 2 or row.messages[-1]["role"] != "assistant":
        raise RefusedError(
            f"Row {row.row_id} does not end with a message of the assistant: nothing can be learned from it."
        )
    try:
        prompt = tokenizer.apply_chat_template(
            row.messages[:-1], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        whole = tokenizer.apply_chat_template(row.messages, tokenize=True, return_dict=False)
    except TemplateError as error:  # Of many models: roles that do not alternate.
        raise RefusedError(f"Row {row.row_id}: the model's chat template refuses it: {error}") from None
    if whole[: len(prompt)] != prompt or len(whole) == len(prompt):
        raise RefusedError(
            f"Row {row.row_id}: the chat template's prompt is not the beginning of the whole conversation, "
            "so that the completion cannot be told apart; use a template that only appends."
        )
    return Example(list(prompt), list(whole[len(prompt) :]))


def collate(examples: Sequence[Example], pad_token_id: int) -> Mapping[str, torch.Tensor]:
    """One forward pass: everything padded on the left, so that completions end together.

    ``input_ids``, ``attention_mask`` and ``position_ids`` are (rows, longest row); ``labels`` are
    (rows, longest completion) and stand for the last columns.
    """
    import torch

    rows = [[*example.prompt, *example.completion] for example in examples]
    width = max(len(row) for row in rows)
    ends = max(len(example.completion) for example in examples)
    ids = torch.tensor([[pad_token_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    labels = torch.tensor(
        [[IGNORED] * (ends - len(example.completion)) + example.completion for example in examples]
    )
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
        "labels": labels,
    }
