"""What a demo did, written down after every step: the report is made from this and from manifests alone."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import NotFoundError, UsageError


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StepRecord(_Record):
    """One step."""

    name: str = Field(description="The step's name.")
    title: str = Field(description="What it does, for readers.")
    seconds: float = Field(description="How long it took.")
    state: Literal["done", "found", "failed"] = Field(description="Found: an equal run had done it before.")
    outcome: str = Field("", description="Its result in a few words, or why it failed.")
    artifact: str | None = Field(None, description="Address of what it made.")
    summary: dict[str, Any] = Field(default_factory=dict, description="The job's own figures.")
    log: str | None = Field(None, description="Where its whole log is.")


class ChatRecord(_Record):
    """One chat through the gateway. Texts are stored as shown: with secrets masked."""

    title: str = Field(description="What it is there to show.")
    model: str = Field(description="Public model name.")
    sent: str = Field(description="What the client sent, with secrets masked.")
    seen: str | None = Field(None, description="What the model was given, where that is known.")
    answer: str = Field("", description="What came back, streamed.")
    status: int = Field(200, description="HTTP status.")
    error: str | None = Field(None, description="The gateway's error message.")
    error_code: str | None = Field(None, description="The gateway's error code.")
    finish_reason: str | None = Field(None, description="Why the text ended.")
    chunks: int = Field(0, description="Stream events with text.")
    first_token_s: float | None = Field(None, description="Seconds to the first text.")
    seconds: float = Field(0.0, description="Seconds to the end.")
    request_id: str | None = Field(None, description="x-request-id.")
    guards: list[dict[str, Any]] = Field(
        default_factory=list, description="Findings that the gateway reports."
    )


class DemoRecord(_Record):
    """One run of the demo."""

    id: str = Field(description="Time stamp that names this run.")
    started_at: datetime = Field(description="UTC start.")
    ended_at: datetime | None = Field(None, description="UTC end of the last step so far.")
    machine: dict[str, str] = Field(default_factory=dict, description="CPUs, memory, platform, Python.")
    steps: list[StepRecord] = Field(default_factory=list, description="Steps in order.")
    chats: list[ChatRecord] = Field(default_factory=list, description="Chats in order.")

    def artifact(self, step: str) -> str | None:
        """Address of what a step made; None if it has made nothing."""
        return next((done.artifact for done in self.steps if done.name == step), None)

    def save(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(self.model_dump_json(indent=1), encoding="utf-8")
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a record. Raises NotFoundError or UsageError."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise NotFoundError(f"{path}: no such demo record; `manta demo` writes one.") from None
        except ValueError as error:
            raise UsageError(f"{path} is no demo record: {' '.join(str(error).split())[:200]}.") from None
