"""Limits on rows' length in a model's own tokens."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from validation.data.tokens import FILE, TokenCounter
from validation.data.verdict import Rule, Verdict


class Length(Rule):
    """Rows that are too short or too long for a model; the marks of a chat template are not counted."""

    model: str = Field(
        description="Whose tokens are counted: demo, a directory, s3://..., a Hugging Face id, or the "
        "address of a model artifact."
    )
    min_tokens: int | None = Field(None, ge=1, description="Fewest tokens of a row.")
    max_tokens: int | None = Field(None, ge=1, description="Most tokens of a row.")

    @model_validator(mode="after")
    def _limited(self) -> Self:
        if self.min_tokens is None and self.max_tokens is None:
            raise ValueError("give min_tokens, max_tokens or both")
        return self

    def verdict(self, tokens: int) -> Verdict | None:
        """What is said of a row with so many tokens."""
        if self.min_tokens is not None and tokens < self.min_tokens:
            return Verdict("too_few_tokens", tokens)
        if self.max_tokens is not None and tokens > self.max_tokens:
            return Verdict("too_many_tokens", tokens)
        return None


@cache
def counter(tokenizer: Any) -> TokenCounter:
    """Counts in tokens of a ``tokenizer.json``, given as a reference to its bytes; made once in a process."""
    import ray

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / FILE).write_bytes(ray.get(tokenizer))
        return TokenCounter(folder)
