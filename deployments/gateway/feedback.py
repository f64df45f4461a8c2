"""``POST /v1/feedback``: what users think of an answer, joined to it later by the request's id.

Who may rate what needs no look-up, which would stand in the way and tell strangers what exists: feedback is
kept under the team of the key that brought it, and only ever joined with requests of that team. Feedback on
another team's request, or on one that never was, is accepted and joins with nothing.
"""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from starlette.responses import JSONResponse

from cluster.contracts import ApiKey, Direction, Segment
from cluster.records import line, subject_hash
from deployments.gateway.audit import moment
from deployments.gateway.errors import ApiError, from_validation, guard_unavailable
from deployments.gateway.limits import Limiter
from deployments.gateway.sink import RecordSink
from deployments.gateway.view import View
from validation.guards import GuardContext, GuardEngine, only_failed

MAX_BYTES = 64 * 1024
#: What answers' ids begin with; the rest is the request's id.
_ANSWER_IDS = ("chatcmpl-", "cmpl-", "resp_", "msg_")
LabelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
LabelValue = Annotated[str, StringConstraints(max_length=512)]


class FeedbackBody(BaseModel):
    """What is sent. Bounds are those of OpenAI's metadata where it has the like."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    request_id: str = Field(pattern=r"^[A-Za-z0-9._:-]{1,140}$")
    score: float | None = Field(None, ge=0, le=1)
    rating: Literal["up", "down"] | None = None
    comment: str | None = Field(None, max_length=4096)
    labels: dict[LabelName, LabelValue] = Field(default_factory=dict, max_length=16)
    user: str | None = Field(None, max_length=512)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.score is not None and self.rating is not None:
            raise ValueError("'score' and 'rating' say the same: send one of them")
        if self.value is None and not self.comment and not self.labels:
            raise ValueError("feedback says nothing: send a score, a rating, a comment or labels")
        return self

    @property
    def value(self) -> float | None:
        """The score, 0 to 1."""
        return self.score if self.rating is None else float(self.rating == "up")

    @property
    def request(self) -> str:
        """The request's id, also if the answer's was sent."""
        for prefix in _ANSWER_IDS:
            if self.request_id.startswith(prefix):
                return self.request_id.removeprefix(prefix)
        return self.request_id


class Feedback:
    """Takes feedback in."""

    def __init__(self, sink: RecordSink, limiter: Limiter) -> None:
        self._sink, self._limiter = sink, limiter

    async def take(self, raw: bytes, request_id: str, key: ApiKey, view: View) -> JSONResponse:
        """Judge and keep one feedback; it counts as a request of its key.

        Raises ApiError: 400 for what is no feedback or what the guards block, 429, and 503 while nothing can
        be kept.
        """
        with self._limiter.admit(key):
            body = parse_feedback(raw)
            engine = view.guards(key)
            context = GuardContext(request_id=request_id)
            comment = await _judged(engine, body.comment, "comment", context)
            labels = {
                name: await _judged(engine, value, f"labels.{name}", context)
                for name, value in body.labels.items()
            }
            feedback_id = f"fb_{uuid.uuid4().hex}"
            row = {
                "request_id": body.request,
                "time": moment(datetime.now(UTC)),
                "key_id": key.id,
                "team": key.team,
                "tenant": key.tenant,
                "users": [subject_hash("user", key.team, body.user)] if body.user else [],
                "feedback_id": feedback_id,
                "score": body.value,
                "comment": comment,
                "labels": [{"name": name, "value": value} for name, value in labels.items()],
            }
            if not self._sink.put("feedback", line("feedback", row)):
                raise ApiError(
                    503,
                    "Feedback cannot be kept now: try again.",
                    kind="server_error",
                    retry_after_s=30,
                )
        answer = {"id": feedback_id, "object": "feedback", "request_id": body.request}
        return JSONResponse(answer, status_code=202)


def parse_feedback(raw: bytes) -> FeedbackBody:
    """The typed body. Raises ApiError 400 naming the first thing that is wrong."""
    try:
        content: Any = json.loads(raw)
    except (ValueError, RecursionError):
        raise ApiError(400, "We could not parse the JSON body of your request.") from None
    if not isinstance(content, dict):
        raise ApiError(400, "The JSON body of your request must be an object.")
    try:
        return FeedbackBody.model_validate(content)
    except ValidationError as error:
        raise from_validation(error) from None


async def _judged(engine: GuardEngine, text: str | None, path: str, context: GuardContext) -> str | None:
    """What the guards leave of a text. Raises ApiError 400 for what they block, 503 if one cannot judge."""
    if not text:
        return None
    segment = Segment(text=text, direction=Direction.INPUT, path=path)
    verdict = await engine.judge(segment, context)
    if verdict.blocked and only_failed(verdict.findings):
        raise guard_unavailable(verdict.reason)
    if verdict.blocked:
        raise ApiError(
            400, "Your feedback was blocked by a guard.", code="content_filter", param=path.partition(".")[0]
        )
    return verdict.text
