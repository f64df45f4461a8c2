"""The guard policy of a batch: pinned at submission, judged by the same engine as in the gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster.contracts import PolicyDocument, Principal
from jobs.batch.rows import Answer, BatchRequest, text_of

if TYPE_CHECKING:
    from validation.guards import BodyVerdict

#: What OpenAI answers as finish_reason when a filter ended the text.
CONTENT_FILTER = "content_filter"


class BatchGuards:
    """Applies one pinned policy to requests and answers; packaged validators run in this process.

    Raises UsageError when the policy cannot be understood or a validator's package is missing.
    """

    def __init__(self, policy: PolicyDocument, principal: Principal) -> None:
        from validation.guards import GuardEngine, parse_policy
        from validation.guards.packaged import PackagedGuards

        parsed = parse_policy(policy.body, f"guard policy {policy.name}")
        packaged = PackagedGuards(parsed)
        packaged.load()
        self._engine = GuardEngine(parsed, packaged)
        self._principal = principal

    async def request(self, request: BatchRequest) -> BodyVerdict:
        """Judge every text of the prompt."""
        from validation.guards import judge_request

        context = self._engine.context(request.row_id, self._principal, request.body)
        return await judge_request(self._engine, request.body, context)

    async def answer(self, request: BatchRequest, body: dict[str, Any]) -> BodyVerdict:
        """Judge every choice of an answer."""
        from validation.guards import judge_response

        context = self._engine.context(request.row_id, self._principal, request.body)
        return await judge_response(self._engine, body, context)


def refused(request: BatchRequest, asked: BodyVerdict) -> Answer:
    """The row of a prompt that the policy blocks. Its text is not kept."""
    return Answer(
        request.with_body({}),
        "blocked",
        finish_reason=CONTENT_FILTER,
        input_findings=asked.findings,
        error_code=CONTENT_FILTER,
        error_message=asked.reason,
    )


def judged_answer(request: BatchRequest, asked: BodyVerdict, made: BodyVerdict, seconds: float) -> Answer:
    """The row of an answer; blocked if no choice of it is left."""
    choices, usage = made.body["choices"], made.body.get("usage") or {}
    blocked = len(made.blocked_choices) == len(choices)
    first = next((c for number, c in enumerate(choices) if number not in made.blocked_choices), choices[0])
    text = first["text"] if "text" in first else text_of((first.get("message") or {}).get("content"))
    return Answer(
        request,
        "blocked" if blocked else "succeeded",
        response=text,
        finish_reason=first["finish_reason"],
        prompt_tokens=usage.get("prompt_tokens") or 0,
        completion_tokens=usage.get("completion_tokens") or 0,
        body=made.body,
        input_findings=asked.findings,
        output_findings=made.findings,
        error_code=CONTENT_FILTER if blocked else "",
        error_message=made.reason if blocked else "",
        seconds=seconds,
    )
