"""Judge whole request and answer bodies: what the gateway, the cache and a batch row have in hand."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field

from cluster.contracts import Action, Finding
from cluster.contracts.base import Contract
from validation.guards.engine import GuardContext, GuardEngine, Verdict
from validation.guards.findings import blocking_reason, only_failed, severest
from validation.guards.placeholders import Placeholders
from validation.guards.reading import TOOL_CALL
from validation.guards.segments import Keys, Slot, path_of, request_slots, response_slots, write_back

#: What tells of a choice's tokens beside its text; none of it may survive a redaction.
_TOKEN_KEYS = ("logprobs", "token_ids", "prompt_token_ids", "prompt_logprobs")


class BodyVerdict(Contract):
    """What follows for a body."""

    action: Action | None = Field(description="The severest enforced action; None if nothing was found.")
    body: dict[str, Any] = Field(description="The body that may go on; empty if a request is blocked.")
    findings: list[Finding] = Field(default_factory=list, description="Every finding, shadow ones included.")
    blocked_choices: list[int] = Field(
        default_factory=list, description="Choices of an answer that were emptied."
    )

    @property
    def blocked(self) -> bool:
        """True if the request, or any choice of the answer, was refused."""
        return self.action is Action.BLOCK

    @property
    def failed(self) -> bool:
        """Whether it was refused only because guards could not judge it."""
        return only_failed(self.findings)

    @property
    def reason(self) -> str:
        """One sentence on what was refused; empty if nothing was."""
        return blocking_reason(self.findings)


async def judge_request(
    engine: GuardEngine,
    body: Mapping[str, Any],
    context: GuardContext,
    placeholders: Placeholders | None = None,
) -> BodyVerdict:
    """Judge every text of a request.

    :param placeholders: takes in what was redacted reversibly; without it, redactions are for good.

    Raises UsageError for a part that guards cannot judge (token ids, images).
    """
    slots = request_slots(body)
    verdicts = await _judge(engine, slots, context, placeholders)
    findings = [finding for verdict in verdicts for finding in verdict.findings]
    action = severest(findings)
    if action is Action.BLOCK:
        return BodyVerdict(action=action, body={}, findings=findings)
    changed = _changed(slots, verdicts)
    return BodyVerdict(
        action=action, body=write_back(body, changed) if changed else dict(body), findings=findings
    )


async def judge_response(
    engine: GuardEngine,
    body: Mapping[str, Any],
    context: GuardContext,
    placeholders: Placeholders | None = None,
) -> BodyVerdict:
    """Judge every choice of a complete answer, then put back what its request had redacted reversibly.

    A blocked choice is emptied and ends with ``finish_reason: content_filter``, as it would in a stream;
    of a redacted one the log probabilities go too, for they spell the tokens.
    """
    slots = response_slots(body)
    verdicts = await _judge(engine, slots, context)
    findings = [finding for verdict in verdicts for finding in verdict.findings]
    changed = _changed(slots, verdicts)
    blocked = sorted(
        {_choice(slot) for slot, verdict in zip(slots, verdicts, strict=True) if verdict.blocked}
    )
    safe = dict(body)
    if changed or blocked:
        safe = write_back(body, changed)
        for key in _TOKEN_KEYS:
            safe.pop(key, None)
        for index in {_choice_of(keys) for keys in changed} | set(blocked):
            _forget_tokens(safe["choices"][index])
        for index in blocked:
            _empty(safe["choices"][index])
    if placeholders:
        originals = {
            slot.keys: placeholders.restore(slot.segment.text, json=slot.segment.role == TOOL_CALL)
            for slot in response_slots(safe)
        }
        safe = write_back(safe, originals)
    return BodyVerdict(action=severest(findings), body=safe, findings=findings, blocked_choices=blocked)


async def _judge(
    engine: GuardEngine,
    slots: Sequence[Slot],
    context: GuardContext,
    placeholders: Placeholders | None = None,
) -> list[Verdict]:
    if placeholders is not None and engine.reversible:
        placeholders.reserve(slot.segment.text for slot in slots)
    found = await engine.check_all([slot.segment for slot in slots], context)
    across: dict[Keys, list[Finding]] = {}
    for slot, findings in zip(slots, found, strict=True):
        if slot.kind == "seam":
            for keys, finding in _across(slot, findings):
                across.setdefault(keys, []).append(finding)
    return [
        engine.verdict(slot.segment, _of_kind(slot, findings, across.get(slot.keys, [])), placeholders)
        for slot, findings in zip(slots, found, strict=True)
    ]


def _of_kind(slot: Slot, findings: list[Finding], across: list[Finding]) -> list[Finding]:
    """What is told of a key, which cannot be redacted in place, of a seam, and of a text with its share."""
    if slot.kind == "key":
        return [
            item.model_copy(update={"action": Action.BLOCK}) if item.action is Action.REDACT else item
            for item in findings
        ]
    if slot.kind == "seam":
        return [item for item in findings if item.action is Action.BLOCK and len(_shares(slot, item)) > 1]
    return findings + across


def _across(seam: Slot, findings: Sequence[Finding]) -> Iterator[tuple[Keys, Finding]]:
    """What must be redacted over a joint, as a finding in each text that has a share of it."""
    paths = {keys: path_of(keys) for _, keys in seam.parts}
    for item in findings:
        shares = _shares(seam, item) if item.action is Action.REDACT else []
        if len(shares) > 1:
            for keys, start, end in shares:
                yield keys, item.model_copy(update={"start": start, "end": end, "path": paths[keys]})


def _shares(seam: Slot, item: Finding) -> list[tuple[Keys, int, int]]:
    """The texts of a seam that a finding reaches into, and from where to where in each."""
    first = max(0, bisect_right(seam.parts, item.start, key=_start_of) - 1)
    last = bisect_left(seam.parts, item.end, key=_start_of)
    shares = []
    for index in range(first, last):
        start, keys = seam.parts[index]
        # One character parts two texts of a seam.
        end = seam.parts[index + 1][0] - 1 if index + 1 < len(seam.parts) else len(seam.segment.text)
        if item.start < end:
            shares.append((keys, max(item.start, start) - start, min(item.end, end) - start))
    return shares


def _start_of(part: tuple[int, Keys]) -> int:
    return part[0]


def _changed(slots: Sequence[Slot], verdicts: Sequence[Verdict]) -> dict[Keys, str]:
    changed: dict[Keys, str] = {}
    names: dict[str, str] = {}
    for slot, verdict in zip(slots, verdicts, strict=True):
        if verdict.blocked or verdict.text == slot.segment.text:
            continue
        changed[slot.keys] = verdict.text
        if slot.kind == "id":
            # What it links must stay linked. Nine letters and digits: some templates take nothing else.
            changed[slot.keys] = names.setdefault(slot.segment.text, f"call{len(names):05}")
    return changed


def _choice(slot: Slot) -> int:
    return _choice_of(slot.keys)


def _choice_of(keys: Keys) -> int:
    return int(keys[1])


def _forget_tokens(choice: dict[str, Any]) -> None:
    for key in _TOKEN_KEYS:
        if key in choice:
            choice[key] = None


def _empty(choice: dict[str, Any]) -> None:
    choice["finish_reason"] = "content_filter"
    if "text" in choice:
        choice["text"] = ""
    if "message" in choice:
        choice["message"] = {"role": "assistant", "content": ""}
