"""What a judge of text says, and how a pipeline answers to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from validation.data.documents import Document


class Verdict(NamedTuple):
    """Why a document does not pass."""

    #: A short stable code, such as ``dup_line_frac``: quarantine and card count by it.
    reason: str
    #: The figure that broke the rule's limit; None where the rule has none.
    score: float | None = None


class Judge(Protocol):
    """Says of one document after another whether it passes. Holds no state that a document changes."""

    @property
    def name(self) -> str:
        """The stage or rule that it stands for."""
        ...

    def judge(self, document: Document) -> Verdict | None:
        """None if the document passes."""
        ...


class Rule(BaseModel):
    """What every rule of a pipeline says about rows that break it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Literal["warn", "drop", "fail"] = Field(
        "drop",
        description="A row that breaks the rule: warn only counts it, drop puts it into quarantine, "
        "fail ends the job (unless mostly allows it).",
    )
    mostly: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of rows that must pass; with fewer the job fails, unless the action is warn.",
    )
