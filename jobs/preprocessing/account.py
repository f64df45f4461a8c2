"""What becomes of rows, counted: each block tells its tally, and tallies add up."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from validation.data.verdict import Rule

Action = Literal["warn", "drop", "fail"]


@dataclass(frozen=True)
class Tolerance:
    """What a rule of a stage leads to, and which share of the rows must pass it."""

    stage: str
    rule: str
    action: Action
    mostly: float

    @classmethod
    def of(cls, stage: str, rule: str, given: Rule) -> Tolerance:
        """By a rule's configuration; one that fails the job does so at the first row, unless it says else."""
        strict = given.action == "fail" and "mostly" not in given.model_fields_set
        return cls(stage, rule, given.action, 1.0 if strict else given.mostly)

    @property
    def key(self) -> str:
        """Its name in a tally."""
        return f"{self.stage}/{self.rule}" if self.rule != self.stage else self.stage


@dataclass
class Tally:
    """Counts by names. The names are those of stages, rules and reasons, never those of rows."""

    #: By rule: rows that it judged, and rows that broke it, whatever followed.
    judged: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    #: By stage and reason: rows that were refused, and rows that were only warned about.
    dropped: Counter[str] = field(default_factory=Counter)
    warned: Counter[str] = field(default_factory=Counter)
    #: Rows by what happened to them: read, augmented, labelled, masked.
    rows: Counter[str] = field(default_factory=Counter)
    #: Rows that were read, by the number of their file.
    files: Counter[str] = field(default_factory=Counter)
    #: Personal data that was masked, by entity.
    entities: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        """Take in another block."""
        for name, counter in vars(self).items():
            counter.update(vars(other)[name])

    def to_bytes(self) -> bytes:
        """For a column of a block."""
        return json.dumps(vars(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Tally:
        """What :meth:`to_bytes` gave."""
        return cls(**{name: Counter(counts) for name, counts in json.loads(data).items()})

    def too_many(self, rule: Tolerance) -> str | None:
        """Why the rule ends the job, in words; None if it does not."""
        judged, broken = self.judged[rule.key], self.broken[rule.key]
        if rule.action == "warn" or not broken or not judged or (judged - broken) / judged >= rule.mostly:
            return None
        return f"{rule.key} [{broken} of {judged} rows do not pass; {rule.mostly:.6g} must]"

    @property
    def counts(self) -> dict[str, int]:
        """For a manifest: rows that were read, and those that augmentation made of them."""
        made = self.rows["augmented"]
        return {"input": self.rows["read"], **({"augmented": made} if made else {})}

    @property
    def came_in(self) -> str:
        """The same in words."""
        made = self.rows["augmented"]
        return f"{many(self.rows['read'])} read{f' and {made} made of them by augment' if made else ''}"

    def told_of(self, stage: str, rules: Sequence[Tolerance]) -> str:
        """What a stage that looks at rows alone did, in one line."""
        on = [rule for rule in rules if rule.stage == stage]
        parts = []
        for action, words in (("drop", "dropped"), ("fail", "refused"), ("warn", "told of, and kept")):
            found = {rule.rule: self.broken[rule.key] for rule in on if rule.action == action}
            if found:
                by_rule = ", ".join(f"{rule} {rows}" for rule, rows in found.items() if rows)
                named = f" ({by_rule})" if by_rule and list(found) != [stage] else ""
                parts.append(f"{many(sum(found.values()))} {words}{named}")
        if stage == "personal_data":
            masked = ", ".join(f"{entity} {times}" for entity, times in self.entities.most_common())
            parts.insert(0, f"{many(self.rows['masked'])} changed{f' ({masked})' if masked else ''}")
        return f"{stage}: {', '.join(parts)}, of {many(self.judged[on[0].key])} judged"

    def report(self, rules: list[Tolerance]) -> dict[str, Any]:
        """For checks.json: by rule, and by stage and reason."""
        return {
            "rules": [
                {
                    "rule": rule.key,
                    "action": rule.action,
                    "mostly": rule.mostly,
                    "judged": self.judged[rule.key],
                    "broken": self.broken[rule.key],
                    "success": self.too_many(rule) is None,
                }
                for rule in rules
            ],
            "dropped": nested(self.dropped),
            "warned": nested(self.warned),
            "masked": dict(self.entities),
        }


def many(number: int, noun: str = "row") -> str:
    """``1 row``, ``2 rows``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def name(stage: str, reason: str) -> str:
    """Of a stage's reason in a tally."""
    return f"{stage}\t{reason}"


def nested(counts: Counter[str]) -> dict[str, dict[str, int]]:
    """Stage to reason to number, the commonest first."""
    stages: dict[str, dict[str, int]] = {}
    for key, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        stage, _, reason = key.partition("\t")
        stages.setdefault(stage, {})[reason] = count
    return stages
