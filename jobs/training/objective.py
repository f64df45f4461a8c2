"""What a step learns: to imitate answers (``supervised``), or to prefer one answer to another (``dpo``).

DPO is a loss in the same loop, and not TRL's trainer: one way to train, which resumes at the very row,
computes logits of completions only, and takes the mean over all workers. The reference model is the base
itself, with the adapter switched off: no second copy of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from cluster.contracts import Manifest
from cluster.storage import ArtifactStore
from jobs.rows import Preference, Row, read_preferences, read_rows
from jobs.training.tokens import IGNORED, Example, encode
from validation.data.schema import CONVERSATIONS, PREFERENCES, Columns

if TYPE_CHECKING:
    import torch

_READER = "fine-tuning"
_Row = TypeVar("_Row")


@dataclass(frozen=True)
class Measured:
    """Of one forward pass."""

    #: A sum, not a mean, so that passes and workers add up.
    loss: torch.Tensor
    #: What the mean is taken over: completion tokens, or preferences.
    of: int
    #: Sums of the objective's figures.
    figures: list[float]


class Objective(Protocol[_Row]):
    """A way to learn from rows of one kind."""

    #: Columns that a dataset must have.
    columns: ClassVar[Columns]
    #: Whether the model drops out while it learns.
    dropout: ClassVar[bool]
    #: Names of what is told of each step beside its loss; means.
    figures: ClassVar[tuple[str, ...]]

    def read(self, artifacts: ArtifactStore, dataset: Manifest, split: str) -> list[_Row]:
        """All rows of a split in row-id order; raises what :func:`jobs.rows.read_rows` does."""
        ...

    def encode(self, row: _Row, tokenizer: Any) -> list[Example]:
        """A row's tokens; if one of its examples is too long, the row is. Raises RefusedError."""
        ...

    def loss(self, model: Any, batch: dict[str, torch.Tensor]) -> Measured:
        """Of the examples of some rows, row by row."""
        ...


@dataclass(frozen=True)
class Supervised(Objective[Row]):
    """Cross-entropy of completion tokens."""

    columns = CONVERSATIONS
    dropout = True
    figures = ()

    def read(self, artifacts: ArtifactStore, dataset: Manifest, split: str) -> list[Row]:
        """See :class:`Objective`."""
        return read_rows(artifacts, dataset, split, _READER)

    def encode(self, row: Row, tokenizer: Any) -> list[Example]:
        """See :class:`Objective`."""
        return [encode(row, tokenizer)]

    def loss(self, model: Any, batch: dict[str, torch.Tensor]) -> Measured:
        """See :class:`Objective`."""
        return Measured(completion_loss(model, batch), int((batch["labels"] != IGNORED).sum()), [])


@dataclass(frozen=True)
class Dpo(Objective[Preference]):
    """Direct preference optimisation (Rafailov et al. 2023) with the sigmoid loss.

    The model is a PEFT model. Nothing drops out: noise between the two models would look like preference.
    """

    beta: float

    columns = PREFERENCES
    dropout = False
    figures = ("chosen_reward", "rejected_reward", "reward_margin", "reward_accuracy")

    def read(self, artifacts: ArtifactStore, dataset: Manifest, split: str) -> list[Preference]:
        """See :class:`Objective`."""
        return read_preferences(artifacts, dataset, split, _READER)

    def encode(self, row: Preference, tokenizer: Any) -> list[Example]:
        """See :class:`Objective`; the chosen one first."""
        return [encode(answered, tokenizer) for answered in row.answered]

    def loss(self, model: Any, batch: dict[str, torch.Tensor]) -> Measured:
        """See :class:`Objective`."""
        import torch

        policy = completion_logprobs(model, batch)
        with torch.no_grad(), model.disable_adapter():
            reference = completion_logprobs(model, batch)
        rewards = self.beta * (policy - reference)
        chosen, rejected = rewards[0::2], rewards[1::2]
        margins = (chosen - rejected).detach()
        figures = [chosen.sum(), rejected.sum(), margins.sum(), (margins > 0).sum()]
        loss = -torch.nn.functional.logsigmoid(chosen - rejected).sum()
        return Measured(loss, len(margins), [float(figure.item()) for figure in figures])


def completion_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum of the cross-entropy over completion tokens."""
    return _cross_entropy(model, batch, "sum")


def completion_logprobs(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(rows,): logarithm of the probability of each row's completion after its prompt."""
    return -_cross_entropy(model, batch, "none").view(batch["labels"].shape).sum(-1)


def _cross_entropy(model: Any, batch: dict[str, torch.Tensor], reduction: str) -> torch.Tensor:
    """Over completion tokens, with logits of no other tokens.

    Indices and not a number for ``logits_to_keep``: they make a contiguous copy. A slice would be multiplied
    row by row, against an output layer copied for each (37 % of a step's CPU time instead of 10 %).
    """
    import torch

    labels = batch["labels"]
    last, ends = batch["input_ids"].shape[1], labels.shape[1]
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    # The token before predicts: one place to the left of the labels.
    kept = torch.arange(last - ends - 1, last - 1, device=labels.device)
    logits = model(**inputs, logits_to_keep=kept, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(),
        labels.reshape(-1),
        ignore_index=IGNORED,
        reduction=reduction,
    )
