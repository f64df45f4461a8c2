"""Sampling parameters: the same keys, with the same types, on every row.

Ray Data turns rows into Arrow, which fills keys that a row lacks with None; a None among vLLM's sampling
parameters stops its engine without a word. So every row carries every parameter that any row carries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.errors import UsageError
from cluster.settings import describe_validation_error
from jobs.batch.rows import BatchRequest


class SamplingConfig(BaseModel):
    """Defaults for rows that do not say otherwise; the names are OpenAI's and vLLM's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_tokens: int = Field(256, ge=1, description="Most tokens to generate a row.")
    temperature: float = Field(0.0, ge=0, le=2, description="0 takes the likeliest token each time.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling.")
    top_k: int = Field(0, ge=-1, description="Only the k likeliest tokens; 0 for all.")
    min_p: float = Field(0.0, ge=0, le=1, description="Least probability relative to the likeliest token.")
    presence_penalty: float = Field(0.0, ge=-2, le=2, description="Penalty on tokens that occurred.")
    frequency_penalty: float = Field(0.0, ge=-2, le=2, description="Penalty by how often a token occurred.")
    repetition_penalty: float = Field(
        1.0, gt=0, description="Multiplicative penalty on tokens that occurred."
    )
    min_tokens: int = Field(0, ge=0, description="Least tokens to generate a row.")
    ignore_eos: bool = Field(
        False, description="Go on to max_tokens whatever the model says; for benchmarks."
    )
    seed: int | None = Field(None, description="Seed of sampling.")
    stop: list[str] | None = Field(None, description="Texts that end the generation.")


class RequestConfig(BaseModel):
    """Fields of OpenAI's request beside sampling, for all rows; the warm engine takes them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    response_format: dict[str, Any] | None = Field(None, description="As OpenAI's: json_schema, json_object.")
    tools: list[dict[str, Any]] | None = Field(None, description="Functions that the model may call.")
    tool_choice: str | dict[str, Any] | None = Field(None, description="none, auto, required or a function.")
    parallel_tool_calls: bool | None = Field(None, description="Whether it may call several at once.")

    def fill(self, request: BatchRequest) -> dict[str, Any]:
        """The row's body with what it lacks of these; a completion has no tools."""
        given = self.model_dump(exclude_none=True)
        if request.endpoint == "completions":
            given = {key: value for key, value in given.items() if key == "response_format"}
        return {**given, **{key: value for key, value in request.body.items() if value is not None}}


#: Keys of a request body that are neither sampling nor the prompt, and mean nothing to a plain generation.
_NEUTRAL = {"messages", "prompt", "model", "n"}


def normalise(body: Mapping[str, Any], defaults: SamplingConfig) -> dict[str, Any]:
    """The body with every sampling parameter stated, typed and within its bounds.

    None means absent, and ``max_completion_tokens`` is ``max_tokens``. Raises ValueError in words.
    """
    kept = {key: value for key, value in body.items() if value is not None and key != "stream"}
    limit = kept.pop("max_completion_tokens", None)
    if limit is not None:
        kept["max_tokens"] = limit
    if isinstance(kept.get("stop"), str):
        kept["stop"] = [kept["stop"]]
    own = {key: kept.pop(key) for key in list(kept) if key in SamplingConfig.model_fields}
    try:
        sampling = SamplingConfig.model_validate({**defaults.model_dump(), **own})
    except ValidationError as error:
        raise ValueError(describe_validation_error(error, "sampling").rstrip(".")) from None
    return {**kept, **sampling.model_dump(exclude_none=True)}


def prepared(request: BatchRequest, fill: RequestConfig | None, defaults: SamplingConfig) -> BatchRequest:
    """The row as engines take it. Raises UsageError that names it if a parameter is wrong."""
    try:
        return request.with_body(normalise(fill.fill(request) if fill else request.body, defaults))
    except ValueError as error:
        raise UsageError(f"Row {request.custom_id}: {error}; nothing was run.") from None


def engine_parameters(body: Mapping[str, Any], row_id: str, *, seed: bool, stop: bool) -> dict[str, Any]:
    """vLLM's sampling parameters from a normalised body.

    ``seed`` and ``stop`` say whether any row of the batch has one: then all get one, so that keys agree.
    """
    wanted = {key: value for key, value in body.items() if key in SamplingConfig.model_fields}
    if seed:
        wanted.setdefault("seed", int.from_bytes(hashlib.sha256(row_id.encode()).digest()[:4], "big"))
    if stop:
        wanted.setdefault("stop", [])
    return wanted


def unsupported(body: Mapping[str, Any]) -> list[str]:
    """Keys that a plain generation cannot honour; the warm engine can."""
    known = _NEUTRAL | set(SamplingConfig.model_fields)
    return sorted(key for key in body if key not in known) + (["n"] if body.get("n", 1) != 1 else [])
