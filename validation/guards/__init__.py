"""Guards: one policy file, applied by one engine to prompts, answers, streams, tool calls and batch rows.

Importing this package imports none of the packaged validators, nor anything heavy; see
:mod:`validation.guards.packaged` for those.
"""

from __future__ import annotations

from validation.guards.bodies import BodyVerdict, judge_request, judge_response
from validation.guards.coverage import explain
from validation.guards.engine import GuardContext, GuardEngine, RemoteGuards, Verdict
from validation.guards.findings import blocking_reason, only_failed
from validation.guards.placeholders import Placeholders
from validation.guards.policy import GuardPolicy, default_policy, load_policy, parse_policy
from validation.guards.segments import Slot, request_slots, response_slots, write_back
from validation.guards.stream import GuardStream

__all__ = [
    "BodyVerdict",
    "GuardContext",
    "GuardEngine",
    "GuardPolicy",
    "GuardStream",
    "Placeholders",
    "RemoteGuards",
    "Slot",
    "Verdict",
    "blocking_reason",
    "default_policy",
    "explain",
    "judge_request",
    "judge_response",
    "load_policy",
    "only_failed",
    "parse_policy",
    "request_slots",
    "response_slots",
    "write_back",
]
