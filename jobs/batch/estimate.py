"""What a batch will cost, before it starts: tokens from a sample of its rows, money by a price."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import MantaError, RefusedError, UsageError
from cluster.storage import ArtifactStore
from jobs.batch.progress import clock
from jobs.batch.rows import BatchRequest, text_of

SAMPLED_ROWS = 200
CHARACTERS_PER_TOKEN = 4.0
#: A larger vocabulary costs seconds and hundreds of MB to read.
_LARGEST_TOKENIZER = 16 * 1024 * 1024


class PriceConfig(BaseModel):
    """What the model's tokens cost, in whatever currency; as price lists have it, by the million."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input_per_million_tokens: float = Field(ge=0, description="Money for a million tokens of prompts.")
    output_per_million_tokens: float = Field(ge=0, description="Money for a million tokens of answers.")

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """Money for so many tokens."""
        money = input_tokens * self.input_per_million_tokens + output_tokens * self.output_per_million_tokens
        return money / 1e6


@dataclass(frozen=True)
class Estimate:
    """Of the rows still to be asked. Answers are taken to be as long as they may get: an upper bound."""

    rows: int
    prompt_tokens: int
    completion_tokens: int
    #: How prompt tokens were counted, in words.
    counted: str
    #: At the rate of this batch's last version; None if there is none of this model and engine.
    seconds: float | None = None
    cost: float | None = None

    def line(self) -> str:
        """One line for the terminal."""
        time = f"about {clock(self.seconds)}" if self.seconds is not None else "time unknown until it runs"
        money = f", at most {self.cost:.6g} in money" if self.cost is not None else ""
        return (
            f"{self.rows} rows to ask: about {self.prompt_tokens:,} prompt tokens ({self.counted}),"
            f" at most {self.completion_tokens:,} to generate, {time}{money}"
        )

    def figures(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


class Sample:
    """Sees every row to be asked once, and keeps a few hundred of their texts."""

    def __init__(self) -> None:
        self.rows = self.characters = self.completion_tokens = 0
        self._texts: list[str] = []
        self._chance = random.Random(0)  # noqa: S311 - equal rows give an equal estimate.

    def add(self, request: BatchRequest) -> None:
        """Count one normalised row."""
        text = _text(request)
        self.rows += 1
        self.characters += len(text)
        self.completion_tokens += int(request.body["max_tokens"]) * int(request.body.get("n") or 1)
        if len(self._texts) < SAMPLED_ROWS:
            self._texts.append(text)
        elif (place := self._chance.randrange(self.rows)) < SAMPLED_ROWS:
            self._texts[place] = text

    def estimate(
        self,
        count: Callable[[str], int] | None,
        price: PriceConfig | None,
        last: Mapping[str, Any] | None = None,
    ) -> Estimate:
        """What all rows come to.

        :param count: tokens of a text; characters / 4 without.
        :param last: the summary of the last batch of this name.
        """
        characters = sum(map(len, self._texts))
        if count is None or not characters:
            ratio, counted = 1 / CHARACTERS_PER_TOKEN, "a quarter of the characters"
        else:
            ratio = sum(map(count, self._texts)) / characters
            counted = f"the model's tokenizer on {len(self._texts)} rows"
        prompt_tokens = round(self.characters * ratio)
        rate = (last or {}).get("rows_per_s")
        return Estimate(
            rows=self.rows,
            prompt_tokens=prompt_tokens,
            completion_tokens=self.completion_tokens,
            counted=counted,
            seconds=round(self.rows / rate, 1) if rate else None,
            cost=price.cost(prompt_tokens, self.completion_tokens) if price else None,
        )


def refuse_cost(estimate: Estimate, max_cost: float | None) -> None:
    """Raises RefusedError if it may cost more than that, UsageError if nobody knows what it costs."""
    if max_cost is None:
        return
    if estimate.cost is None:
        raise UsageError(
            "max_cost is set but the model has no price: set price.input_per_million_tokens and"
            " price.output_per_million_tokens; nothing was run."
        )
    if estimate.cost > max_cost:
        raise RefusedError(
            f"The batch may cost up to {estimate.cost:.6g} ({estimate.rows} rows, about"
            f" {estimate.prompt_tokens:,} prompt tokens, at most {estimate.completion_tokens:,} to generate),"
            f" more than max_cost={max_cost:g}: ask fewer rows, lower max_tokens or raise max_cost;"
            " nothing was run."
        )


def tokenizer_of(artifacts: ArtifactStore, model: str) -> Callable[[str], int] | None:
    """Counts tokens as the model does; None if its artifact has no tokenizer that is quick to read."""
    try:
        for manifest in artifacts.lineage(model):
            for file in manifest.files:
                if file.path.rpartition("/")[2] == "tokenizer.json" and file.bytes <= _LARGEST_TOKENIZER:
                    return _counter(artifacts.read(manifest, file.path))
    except MantaError:
        pass  # No artifact of ours, or storage has forgotten it: the estimate says how it was counted.
    return None


def _counter(tokenizer_json: bytes) -> Callable[[str], int] | None:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    except Exception:  # The library raises bare exceptions for files of newer versions.
        return None
    return lambda text: len(tokenizer.encode(text).ids)


def _text(request: BatchRequest) -> str:
    if request.endpoint == "completions":
        return str(request.body.get("prompt", ""))
    return "\n".join(text_of(message.get("content")) for message in request.body.get("messages") or ())
