"""A policy tried on texts whose labels are known: what each guard finds of what it should, and should not.

One JSON object a line, in one of three forms; ``label`` says what the text is, and without one it is
``unlabelled``:

    {"text": "...", "label": "attack", "direction": "input", "role": "user", "system": "..."}
    {"messages": [...], "label": "benign"}
    {"body": {...}, "label": "benign"}

A text is judged as a user's message, or, with ``direction: output``, as a part of an answer to a request with
the system prompt ``system``. The others are OpenAI requests, of which every text is judged (a line of a batch
is one, too). A guard finds a line if it has a finding there, shadow ones included; one that fails does not.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cluster.contracts import Action, Direction, Finding, Segment
from cluster.contracts.base import Contract
from cluster.errors import MantaError, NotFoundError, UsageError
from cluster.settings import describe_validation_error
from validation.guards.bodies import judge_request
from validation.guards.engine import GuardContext, GuardEngine
from validation.guards.findings import GUARD_ERROR

UNLABELLED = "unlabelled"
#: The row that stands for all guards together.
ANY = "(any)"


class Line(BaseModel):
    """One line of a trial's file."""

    # Lines of other tools carry more (an id, a source): only what is read here is strict.
    model_config = ConfigDict(extra="ignore", frozen=True)

    text: str | None = Field(None, description="A text to judge.")
    direction: Literal["input", "output"] = Field("input", description="Where the text goes.")
    role: str | None = Field(None, description="Its role; user, or assistant of an output.")
    system: str = Field("", description="The system prompt of the request that an output answers.")
    messages: list[dict[str, Any]] | None = Field(None, description="Messages of a chat request to judge.")
    body: dict[str, Any] | None = Field(None, description="An OpenAI request to judge.")
    label: str = Field(UNLABELLED, min_length=1, max_length=80, description="What it is.")

    @model_validator(mode="after")
    def _one(self) -> Line:
        if sum(form is not None for form in (self.text, self.messages, self.body)) != 1:
            raise ValueError("it needs one of text, messages and body")
        return self


class Cell(Contract):
    """What one guard (or all together) did with the texts of one label."""

    guard: str = Field(description="Name of the guard; (any) for all of them.")
    mode: str = Field(description="enforce or shadow; empty for all of them.")
    label: str = Field(description="The texts' label.")
    benign: bool = Field(description="Whether what is found is a false positive.")
    texts: int = Field(description="How many there are.")
    found: int = Field(description="In how many it found something, shadow findings included.")
    blocked: int = Field(description="How many it refused, or, in shadow, would have refused.")
    redacted: int = Field(description="In how many it redacted (or would have), and refused nothing.")
    failed: int = Field(description="On how many it failed.")

    @property
    def share(self) -> float:
        """The share of texts that it found: recall, or false positives."""
        return self.found / self.texts if self.texts else 0.0


class Trial(Contract):
    """The whole result."""

    policy: str = Field(description="Name of the policy.")
    version: int = Field(description="Its version.")
    digest: str = Field(description="Its digest.")
    texts: int = Field(description="Lines judged.")
    recall: float | None = Field(description="Share found of what is not benign; None without any.")
    false_positive_rate: float | None = Field(description="Share found of what is benign; None without any.")
    failed: int = Field(description="Lines on which a guard failed.")
    cells: list[Cell] = Field(description="By guard and label.")


@dataclass(slots=True)
class _Counts:
    """Lines by guard and label."""

    found: Counter[tuple[str, str]] = field(default_factory=Counter)
    blocked: Counter[tuple[str, str]] = field(default_factory=Counter)
    redacted: Counter[tuple[str, str]] = field(default_factory=Counter)
    failed: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, guard: str, label: str, findings: list[Finding]) -> None:
        """One line's findings of a guard."""
        place = (guard, label)
        self.failed[place] += any(item.label == GUARD_ERROR for item in findings)
        actions = {item.action for item in findings if item.label != GUARD_ERROR}
        self.found[place] += bool(actions)
        self.blocked[place] += Action.BLOCK in actions
        self.redacted[place] += Action.REDACT in actions and Action.BLOCK not in actions


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a trial's file; blank ones are left out.

    Raises NotFoundError, or UsageError with the number of a line that cannot be read.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, raw in enumerate(file, 1):
                if raw.strip():
                    yield _line(raw, f"{path}, line {number}")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise NotFoundError(f"The file {path} does not exist.") from None
    except UnicodeDecodeError:
        raise UsageError(f"The file {path} is no UTF-8.") from None
    except OSError as error:
        raise UsageError(f"The file {path} cannot be read: {error.strerror}.") from None


def _line(raw: str, where: str) -> Line:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise UsageError(f"{where}: expected one JSON object a line.") from None
    try:
        return Line.model_validate(value)
    except ValidationError as error:
        raise UsageError(describe_validation_error(error, where, Line)) from None


async def run_trial(engine: GuardEngine, lines: Iterable[Line], benign: Iterable[str]) -> Trial:
    """Judge every line; what is found in those labelled ``benign`` is a false positive.

    Raises UsageError for a request that guards cannot judge, or if there is no line.
    """
    counts = _Counts()
    texts: Counter[str] = Counter()
    for number, line in enumerate(lines, 1):
        findings = await _judged(engine, line, number)
        texts[line.label] += 1
        for guard in engine.policy.guards:
            counts.add(guard.name, line.label, [item for item in findings if item.guard == guard.name])
        counts.add(ANY, line.label, findings)
    if not texts:
        raise UsageError("There is no line to judge.")
    return _result(engine, counts, texts, frozenset(benign))


async def _judged(engine: GuardEngine, line: Line, number: int) -> list[Finding]:
    context = GuardContext(request_id=f"line {number}", system_text=line.system)
    if line.text is not None:
        role = line.role or ("user" if line.direction == "input" else "assistant")
        segment = Segment(text=line.text, direction=Direction(line.direction), role=role)
        return await engine.check(segment, context)
    body: Mapping[str, Any] = line.body if line.body is not None else {"messages": line.messages}
    try:
        return (await judge_request(engine, body, context)).findings
    except MantaError as error:
        raise UsageError(f"Text {number}: {error}") from None


def _result(engine: GuardEngine, counts: _Counts, texts: Counter[str], benign: frozenset[str]) -> Trial:
    policy = engine.policy
    modes = {ANY: "", **{guard.name: guard.mode for guard in policy.guards}}
    cells = [
        Cell(
            guard=guard,
            mode=mode,
            label=label,
            benign=label in benign,
            texts=texts[label],
            found=counts.found[guard, label],
            blocked=counts.blocked[guard, label],
            redacted=counts.redacted[guard, label],
            failed=counts.failed[guard, label],
        )
        for guard, mode in modes.items()
        for label in sorted(texts, key=lambda name: (name in benign, name))
    ]
    together = [cell for cell in cells if cell.guard == ANY]
    return Trial(
        policy=policy.name,
        version=policy.version,
        digest=policy.digest,
        texts=texts.total(),
        recall=_share([cell for cell in together if not cell.benign and cell.label != UNLABELLED]),
        false_positive_rate=_share([cell for cell in together if cell.benign]),
        failed=sum(cell.failed for cell in together),
        cells=cells,
    )


def _share(cells: list[Cell]) -> float | None:
    texts = sum(cell.texts for cell in cells)
    return sum(cell.found for cell in cells) / texts if texts else None


def table(trial: Trial) -> str:
    """The result as lines of text."""
    head = ["guard", "mode", "label", "texts", "found", "", "blocked", "redacted", "failed"]
    rows = [head]
    for cell in trial.cells:
        kind = "" if cell.label == UNLABELLED else "false positives" if cell.benign else "recall"
        numbers = [str(cell.blocked), str(cell.redacted), str(cell.failed)]
        rows.append([cell.guard, cell.mode, cell.label, str(cell.texts), f"{cell.share:.1%}", kind, *numbers])
    widths = [max(len(row[index]) for row in rows) for index in range(len(head))]
    lines = [
        "  ".join(item.ljust(width) for item, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    said = [f"guard policy {trial.policy} version {trial.version} ({trial.digest[:12]}), {trial.texts} texts"]
    for name, share in (("recall", trial.recall), ("false positives", trial.false_positive_rate)):
        if share is not None:
            said.append(f"{name} {share:.1%}")
    return "\n".join([*lines, ", ".join(said)])
