"""How long each guard took over one request and its answer."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from cluster.contracts import Direction


@dataclass(slots=True)
class GuardTimes:
    """Seconds by direction and guard, over all texts that it judged.

    Of our own guards the time that they were at work; of packaged ones the time that a text waited for their
    answer, so what they judge at the same time counts once for each text.
    """

    input: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    output: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def of(self, direction: Direction) -> dict[str, float]:
        """By guard; to be added to."""
        return self.input if direction is Direction.INPUT else self.output
