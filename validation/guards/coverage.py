"""What a policy covers, printed at start-up: no path should be found to be unguarded later."""

from __future__ import annotations

from typing import Any

from validation.guards.engine import GuardEngine
from validation.guards.specs import GuardSpec, PackagedSpec, TextSpec
from validation.guards.units import MAX_SENTENCE


def coverage(engine: GuardEngine) -> list[dict[str, Any]]:
    """One row per guard: what it does to each surface, where it runs and what it costs a stream.

    ``input`` is every text of a request (messages, content parts, tool calls, tool results, tool
    descriptions, prompts), ``output`` every text of an answer; ``stream_holds`` is the longest span in
    characters that a stream may hold back for it.
    """
    longest = {slot.spec.name: slot.guard.longest for slot in engine.inline}
    return [_row(spec, longest.get(spec.name)) for spec in engine.policy.guards]


def _row(spec: GuardSpec, longest: int | None) -> dict[str, Any]:
    holds: int | str = longest or 0
    if isinstance(spec, PackagedSpec | TextSpec):
        holds = "everything" if spec.unit == "text" else MAX_SENTENCE
    return {
        "guard": spec.name,
        "kind": spec.kind,
        "input": spec.action.value if spec.on != "output" else "-",
        "output": spec.action.value if spec.on != "input" else "-",
        "mode": spec.mode,
        "on_error": spec.on_error,
        "not_roles": ",".join(spec.skip_roles) or "-",
        "runs": "guards deployment" if isinstance(spec, PackagedSpec) else "inline",
        "stream_holds": holds if spec.on != "input" else "-",
    }


def explain(engine: GuardEngine) -> str:
    """The coverage matrix as lines of text."""
    rows = coverage(engine)
    header = (
        f"guard policy {engine.policy.name} version {engine.policy.version} ({engine.policy.digest[:12]})"
    )
    columns = list(rows[0])
    cells = [columns, *([str(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
    return "\n".join([header, *lines])
