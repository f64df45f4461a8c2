"""What findings mean together: which are new, which is the severest, what is cut out and what is told."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Iterable, Sequence

from cluster.contracts import Action, Finding
from validation.guards.redact import Span
from validation.guards.scan import Hit

#: Label of a finding that stands for a guard that failed.
GUARD_ERROR = "GUARD_ERROR"
_SEVERITY = {Action.FLAG: 1, Action.REDACT: 2, Action.BLOCK: 3}


def not_within(hits: Iterable[Hit], known: Iterable[Hit]) -> list[Hit]:
    """Those of ``hits`` that tell more than a known one of their label does."""
    # By label, the starts of what is known in order, and how far what starts there or before reaches: to
    # compare each with each takes minutes on a text that is full of findings.
    reach: dict[str, tuple[list[int], list[int]]] = {}
    for past in sorted(known, key=lambda hit: hit.start):
        starts, ends = reach.setdefault(past.label, ([], []))
        starts.append(past.start)
        ends.append(max(past.end, ends[-1]) if ends else past.end)

    def within(hit: Hit) -> bool:
        starts, ends = reach.get(hit.label, ((), ()))
        before = bisect_right(starts, hit.start)
        return before > 0 and hit.end <= ends[before - 1]

    return [hit for hit in hits if not within(hit)]


def finding_order(finding: Finding) -> tuple[int, int, str, str]:
    """Sort key: place first."""
    return finding.start, finding.end, finding.guard, finding.label


def severest(findings: Sequence[Finding]) -> Action | None:
    """The severest action among findings that are enforced."""
    return max((item.action for item in findings if not item.shadow), key=_SEVERITY.__getitem__, default=None)


def redactions(findings: Sequence[Finding], reversible: Container[str] = ()) -> list[Span]:
    """What enforced findings say must be cut out; of guards named in ``reversible``, not for good."""
    return [
        Span(item.start, item.end, item.label, item.guard in reversible)
        for item in findings
        if item.action is Action.REDACT and not item.shadow
    ]


def only_failed(findings: Sequence[Finding]) -> bool:
    """Whether something is blocked, and all of it because a guard failed."""
    labels = {item.label for item in findings if item.action is Action.BLOCK and not item.shadow}
    return labels == {GUARD_ERROR}


def blocking_reason(findings: Sequence[Finding]) -> str:
    """One sentence for the client: which guard refused what and where, never the text itself."""
    for item in findings:
        if item.action is Action.BLOCK and not item.shadow:
            where = f" in {item.path}" if item.path else ""
            if item.label == GUARD_ERROR:
                return f"Guard {item.guard} could not judge the text{where}, so it was refused."
            return f"Guard {item.guard} refused the text{where}: {item.label}."
    return ""
