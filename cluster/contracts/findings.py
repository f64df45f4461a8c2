"""What guards judge, and what they say."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from cluster.contracts.base import Contract


class Action(StrEnum):
    """What follows from a finding, mildest first."""

    FLAG = "flag"
    REDACT = "redact"
    BLOCK = "block"


class Direction(StrEnum):
    """Whether a text goes to the model or comes from it."""

    INPUT = "input"
    OUTPUT = "output"


class Segment(Contract):
    """One complete piece of text to be judged."""

    text: str = Field(description="The original text.")
    direction: Direction = Field(description="To the model or from it.")
    role: str = Field("user", description="Role of the message, or 'tool_call', 'reasoning', 'refusal'.")
    path: str = Field("", description="Where it stands in the request or answer, e.g. messages[0].content.")


class Finding(Contract):
    """One thing that one guard saw. It never carries the text itself: logs may hold findings."""

    guard: str = Field(description="Name of the guard in the policy.")
    label: str = Field(description="What was found, e.g. EMAIL_ADDRESS.")
    score: float = Field(ge=0, le=1, description="Confidence.")
    start: int = Field(ge=0, description="First code point in the original text.")
    end: int = Field(ge=0, description="One past the last code point.")
    action: Action = Field(description="What the policy says to do.")
    path: str = Field("", description="The segment's place.")
    shadow: bool = Field(False, description="True if it is only counted and not acted upon.")

    @model_validator(mode="after")
    def _span(self) -> Self:
        if self.end < self.start:
            raise ValueError(f"a finding ends at {self.end}, before it starts at {self.start}")
        return self
