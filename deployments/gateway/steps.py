"""The steps of a request before a model is asked, each one function on typed values.

The order is the pipeline's: :mod:`deployments.gateway.pipeline`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from cluster.budgets import budgets_of
from cluster.contracts import ApiKey, PromptTemplate, Route, Target
from cluster.contracts.request import COMPLETION_TOKENS, Body, ChatBody, CompletionBody, EmbeddingBody
from deployments.gateway.answer import Answer
from deployments.gateway.args import GatewayArgs
from deployments.gateway.call import Call, Estimate
from deployments.gateway.dialect import TypedBody
from deployments.gateway.errors import ApiError, unknown_model
from deployments.gateway.guarding import judge_input
from deployments.gateway.record import CLIENT_LEFT, RequestRecord
from deployments.gateway.templates import fill, find_template
from deployments.gateway.view import View
from validation.guards import GuardEngine

#: Fields that the gateway answers to, or sets itself.
_NOT_THE_ENGINES = {"stream", "stream_options", "model", "user"}
#: Where guards see the variables of a prompt template; the engine does not.
_VARIABLES = "prompt_variables"


def authenticate(authorization: str | None, view: View) -> ApiKey:
    """The key of who asks. Raises ApiError 401."""
    scheme, _, secret = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise ApiError(
            401,
            "You didn't provide an API key: send it as 'Authorization: Bearer KEY'.",
            code="invalid_api_key",
        )
    key = view.key(secret.strip())
    if key is None:
        raise ApiError(401, "Incorrect API key provided.", code="invalid_api_key")
    if key.expires_at is not None and key.expires_at <= datetime.now(UTC):
        raise ApiError(401, "This API key has expired.", code="invalid_api_key")
    return key


def may_use(key: ApiKey, route: Route) -> bool:
    """Whether a key may use a model: a tuned one if it is its team's, and its base or itself is allowed."""
    if route.team is not None and route.team != key.team:
        return False
    return key.models is None or route.model in key.models or route.base in key.models


def find_route(view: View, key: ApiKey, model: str) -> Route:
    """The route of a public model name. Raises ApiError 404."""
    route = view.routes.get(model)
    if route is None or not may_use(key, route):
        raise _away(view, key, model) or unknown_model(model)
    return route


def _away(view: View, key: ApiKey, model: str) -> ApiError | None:
    """What to say of a model that the key's team tuned, by its name, and that has no route."""
    parts = model.split(":")
    if model in view.routes or len(parts) != 5 or (parts[0], parts[2]) != ("ft", key.team):
        return None
    base = view.routes.get(parts[1])
    if base is None or not may_use(key, base):
        why = f"its base model `{parts[1]}` is not"
    else:
        why = f"it was deleted, never made, or `{parts[1]}` has other weights than those it was tuned from"
    return ApiError(
        404, f"The model `{model}` is not served now: {why}.", code="model_not_found", param="model"
    )


def bound_output(body: Body | EmbeddingBody, key: ApiKey, route: Route, args: GatewayArgs) -> int | None:
    """Most tokens of each choice if the request names no number; None for what is bounded by itself.

    Raises ApiError 400 for a request that asks for too much.
    """
    if isinstance(body, EmbeddingBody):
        return None  # Its type bounds the inputs, and it generates nothing.
    if body.choices > args.max_choices:
        raise ApiError(
            400,
            f"This request asks for {body.choices} choices; at most {args.max_choices} are allowed.",
            param="n",
        )
    bounds = [most for most in (args.max_output_tokens, key.limits.max_output_tokens) if most is not None]
    for field in ("max_tokens", "max_completion_tokens"):
        if bounds and (getattr(body, field, None) or 0) > min(bounds):
            raise ApiError(400, f"'{field}' may be at most {min(bounds)}.", param=field)
    if _named_tokens(body) is not None:
        return None
    if route.price is not None and any(budgets_of(key.limits)):
        bounds = bounds or [args.budgeted_output_tokens]
    if isinstance(body, CompletionBody):
        return min([*bounds, COMPLETION_TOKENS])
    return min(bounds, default=None)


def _named_tokens(body: Body) -> int | None:
    wanted: int | None = getattr(body, "max_completion_tokens", None)
    return body.max_tokens if wanted is None else wanted


def estimate_tokens(raw: bytes, body: Body | EmbeddingBody, bound: int | None, args: GatewayArgs) -> Estimate:
    """Four bytes of the body for each token, and all tokens that it asks for.

    :param bound: what :func:`bound_output` says.
    """
    prompt = len(raw) // 4
    if isinstance(body, EmbeddingBody):
        return Estimate(prompt=prompt, answer=0, most=0)
    most = bound if (wanted := _named_tokens(body)) is None else wanted
    if most is None:
        return Estimate(prompt=prompt, answer=body.choices * args.assumed_output_tokens)
    likely = most if wanted is not None else min(most, args.assumed_output_tokens)
    return Estimate(prompt=prompt, answer=body.choices * likely, most=body.choices * most)


def tokens_used(estimate: Estimate, answer: Answer, status: int) -> Estimate:
    """Tokens that an answer which ended with ``status`` counts for.

    Engines behind a URL tell them at the end only, so nobody knows what was generated for who went away
    before: the estimate, but not less than came. Of an answer that failed only what came counts.
    """
    if known := int(answer.usage.get("total_tokens") or 0):
        prompt = int(answer.usage.get("prompt_tokens") or 0)
        return Estimate(prompt=prompt, answer=known - prompt)
    if status in (200, CLIENT_LEFT):
        return Estimate(prompt=estimate.prompt, answer=max(estimate.answer, answer.pieces))
    return Estimate(prompt=estimate.prompt if answer.pieces else 0, answer=answer.pieces)


def for_the_engine(body: Body | EmbeddingBody, bound: int | None) -> dict[str, Any]:
    """What was said, without what is null: templates tell an absent field from one that is none.

    A text completion names its bound; of a chat it goes beside the body (``UpstreamRequest.output_bound``).
    """
    said = body.model_dump(exclude_unset=True, exclude_none=True, exclude=_NOT_THE_ENGINES)
    if bound is not None and isinstance(body, CompletionBody):
        said["max_tokens"] = bound
    return said


def put_prompt(
    body: Body | EmbeddingBody, upstream: dict[str, Any], view: View, record: RequestRecord
) -> tuple[dict[str, Any], PromptTemplate | None]:
    """The request with the template that it names before its messages, and that template.

    Raises ApiError 404 for one that is not published, 400 for variables that are not the template's.
    """
    if not isinstance(body, ChatBody) or body.prompt is None:
        return upstream, None
    template = find_template(view.prompts, body.prompt)
    record.prompt = template.ref
    messages = [*fill(template, body.prompt), *upstream["messages"]]
    others = {name: value for name, value in upstream.items() if name != "prompt"}
    return others | {"messages": messages}, template


async def guard_input(call: Call[TypedBody]) -> Call[TypedBody]:
    """Judge every text of the request; redact what the policy redacts.

    Raises ApiError 400 with code ``content_filter`` for what the policy blocks. With a policy that judges in
    parallel, what cannot change the request judges it later: ``call.unjudged``.
    """
    said = call.upstream_body
    if isinstance(call.body, ChatBody) and call.body.prompt is not None:
        # What a client puts into a template's system message is no less the client's.
        said = said | {_VARIABLES: call.body.prompt.variables}
    body = await judge_input(call.engine.before, said, call.context, call.record, call.placeholders)
    if (variables := body.pop(_VARIABLES, None)) != said.get(_VARIABLES):
        body = await _fill_again(call, body, variables)
    if call.engine.beside is not None:
        return replace(call, upstream_body=body, unjudged=dict(said))
    call.record.judged = body
    return replace(call, upstream_body=body)


async def _fill_again(
    call: Call[TypedBody], body: dict[str, Any], variables: dict[str, Any]
) -> dict[str, Any]:
    """The request with its template filled with what was left of the variables.

    Guards may skip the role of the message that they stand in.
    """
    assert isinstance(call.body, ChatBody)
    assert call.body.prompt is not None
    assert call.template is not None
    filled = fill(call.template, call.body.prompt.model_copy(update={"variables": variables}))
    judged = await judge_input(
        call.engine.before, {"messages": filled}, call.context, call.record, call.placeholders
    )
    return body | {"messages": [*judged["messages"], *body["messages"][len(filled) :]]}


async def guard_input_beside(call: Call[Body] | Call[EmbeddingBody], beside: GuardEngine) -> None:
    """The rest of the verdict on a request whose model has begun. Raises as :func:`guard_input` does."""
    await judge_input(beside, call.unjudged, call.context, call.record)
    call.unjudged.clear()  # One verdict, however many replicas are asked.
    call.record.judged = call.upstream_body


def users_of(body: Body | EmbeddingBody) -> tuple[str, ...]:
    """Ids of end users that the client named."""
    named = (body.safety_identifier if isinstance(body, Body) else None, body.user)
    return tuple(dict.fromkeys(filter(None, named)))


def choose_target(targets: Sequence[Target]) -> Target:
    """One of the targets, by weight. Raises ApiError 503 if all weights are 0."""
    weights = [target.weight for target in targets]
    if not any(weights):
        raise ApiError(
            503, "No target of this model takes traffic now.", kind="server_error", retry_after_s=5
        )
    return random.choices(targets, weights)[0]  # noqa: S311  (spreads load, protects nothing)
