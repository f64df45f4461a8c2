"""What a policy covers, printed at start-up: no path should be found to be unguarded later.

Two tables: what each guard does, and by endpoint, phase and guard what follows from a finding there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.contracts import Direction
from validation.guards.engine import GuardEngine
from validation.guards.specs import GuardSpec, PackagedSpec, StreamMode, TextSpec
from validation.guards.units import MAX_SENTENCE

#: The phases of an endpoint through which no text passes, each with why.
Phases = Mapping[Direction, str]


def coverage(engine: GuardEngine) -> list[dict[str, Any]]:
    """One row per guard: what it does to each surface, where it runs and what it costs a stream.

    ``input`` is every text of a request (messages, content parts, tool calls, tool results, tool
    descriptions, prompts), ``output`` every text of an answer; ``stream_holds`` is the longest span in
    characters that a stream may hold back for it.
    """
    modes = {spec.name: engine.policy.stream_of(spec) for spec in engine.policy.guards}
    beside = engine.beside
    late = {spec.name for spec in beside.packaged} if beside else set()
    late |= {slot.spec.name for slot in beside.inline} if beside else set()
    longest = {slot.spec.name: slot.guard.longest for slot in engine.inline}
    return [
        _row(spec, longest.get(spec.name), modes[spec.name], spec.name in late)
        for spec in engine.policy.guards
    ]


def _row(spec: GuardSpec, longest: int | None, stream: StreamMode, late: bool) -> dict[str, Any]:
    holds: int | str = longest or 0
    if isinstance(spec, PackagedSpec | TextSpec):
        holds = "everything" if spec.unit == "text" else MAX_SENTENCE
    if stream != "hold":
        holds = "everything" if stream == "end" else 0
    return {
        "guard": spec.name,
        "kind": spec.kind,
        "input": spec.action.value if spec.on != "output" else "-",
        "output": spec.action.value if spec.on != "input" else "-",
        "judges": ("beside the model" if late else "before it") if spec.on != "output" else "-",
        "mode": spec.mode,
        "on_error": spec.on_error,
        "not_roles": ",".join(spec.skip_roles) or "-",
        "runs": "guards deployment" if isinstance(spec, PackagedSpec) else "inline",
        "stream_holds": holds if spec.on != "input" else "-",
    }


def matrix(engine: GuardEngine, endpoints: Mapping[str, Phases]) -> list[dict[str, str]]:
    """One row per endpoint and phase: under each guard's name, what follows from a finding there.

    A phase that an endpoint does not have says why. ``-``: the policy does not set that guard on it.
    """
    rows = []
    for endpoint, phases in endpoints.items():
        for phase in Direction:
            why = phases.get(phase)
            cells = {spec.name: "none" if why else _cell(spec, phase) for spec in engine.policy.guards}
            rows.append({"endpoint": endpoint, "phase": f"{phase}: {why}" if why else phase.value, **cells})
    return rows


def _cell(spec: GuardSpec, phase: Direction) -> str:
    if spec.on not in ("both", phase.value):
        return "-"
    return spec.action.value if spec.mode == "enforce" else "shadow"


def explain(engine: GuardEngine, endpoints: Mapping[str, Phases] | None = None) -> str:
    """The policy's coverage as lines of text, over ``endpoints`` if there are any."""
    header = (
        f"guard policy {engine.policy.name} version {engine.policy.version} ({engine.policy.digest[:12]}), "
        f"streams: {engine.policy.stream}, input: {engine.policy.input}"
    )
    return "\n".join([header, *_table(coverage(engine)), *_table(matrix(engine, endpoints or {}))])


def _table(rows: Sequence[Mapping[str, object]]) -> list[str]:
    if not rows:
        return []
    columns = list(rows[0])
    cells = [columns, *([str(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
