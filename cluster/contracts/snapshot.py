"""What the control plane publishes to gateways: numbered, immutable, complete.

A gateway refuses fields that it does not know, for it might let through what they forbid. So a field that
came after the first release of its schema is left out while it says nothing: a gateway that is not upgraded
yet goes on reading snapshots until one makes use of that field (a key's limits, bound of output and budgets,
its scopes, its expiry, the secret before a rotation, a route's price, the price of its training, its team),
and then keeps the last that it understood: revocations do not reach it. Upgrade gateways first.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from cluster.contracts.base import Contract, Slug


def _is_absent(value: object) -> bool:
    return value is None


#: An amount of money in the settings' currency. Written as text: a float is not what was meant.
Money = Annotated[Decimal, Field(max_digits=15, decimal_places=6, allow_inf_nan=False)]
#: What a key may do beyond using models: ``admin`` is the gateway's admin API, over all keys.
Scope = Literal["admin"]


def _is_empty(value: list[Any]) -> bool:
    return not value


class Price(Contract):
    """What a model's tokens cost, in the settings' currency; as price lists have it, by the million."""

    input_per_million_tokens: Money = Field(ge=0, description="Money for a million tokens of prompts.")
    output_per_million_tokens: Money = Field(ge=0, description="Money for a million tokens of answers.")
    training_per_million_tokens: Money | None = Field(
        None,
        ge=0,
        description="Money for a million tokens that it is tuned on, each epoch's; nothing if absent.",
        exclude_if=_is_absent,
    )

    def cost(self, input_tokens: int, output_tokens: int) -> Decimal:
        """Money for so many tokens, exactly."""
        million = (
            input_tokens * self.input_per_million_tokens + output_tokens * self.output_per_million_tokens
        )
        return million.scaleb(-6)


class KeyLimits(Contract):
    """How much one key may use; the gateway says how exactly its replicas keep to it together."""

    requests_per_minute: int | None = Field(None, ge=1, description="Requests a minute; all if absent.")
    tokens_per_minute: int | None = Field(
        None, ge=1, description="Tokens of prompts and answers a minute; all if absent."
    )
    concurrent_requests: int | None = Field(
        None, ge=1, description="Requests at work at once; all if absent."
    )
    max_output_tokens: int | None = Field(
        None, ge=1, description="Tokens of one answer; any if absent.", exclude_if=_is_absent
    )
    budget_day: Money | None = Field(
        None, ge=0, description="Money a day in UTC; any if absent.", exclude_if=_is_absent
    )
    budget_month: Money | None = Field(
        None, ge=0, description="Money a calendar month in UTC; any if absent.", exclude_if=_is_absent
    )


class FormerSecret(Contract):
    """The secret before a rotation, while it is still good."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the secret.")
    valid_until: AwareDatetime = Field(description="UTC time from which on it is refused.")


class ApiKey(Contract):
    """A key, known by its hash only."""

    id: str = Field(description="Public id, safe to log.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the secret.")
    team: Slug = Field(description="The team that it belongs to.")
    tenant: Slug = Field("default", description="The tenant that it belongs to.")
    models: list[str] | None = Field(None, description="Models that it may use; all if absent.")
    policy: str | None = Field(None, description="Guard policy that overrides the route's.")
    limits: KeyLimits = Field(
        default_factory=KeyLimits,
        description="How much it may use.",
        exclude_if=lambda limits: limits == KeyLimits(),
    )
    scopes: list[Scope] = Field(
        default_factory=list, description="What it may do beyond using models.", exclude_if=_is_empty
    )
    expires_at: AwareDatetime | None = Field(
        None, description="UTC time from which on it is refused.", exclude_if=_is_absent
    )
    former: FormerSecret | None = Field(
        None, description="The secret before it was rotated, for a while.", exclude_if=_is_absent
    )
    revoked: bool = Field(False, description="True once it must be refused.")


class Target(Contract):
    """One upstream behind a route: a Serve application, or an OpenAI-compatible URL elsewhere."""

    application: str | None = Field(None, description="Serve application, reached by its handle.")
    deployment: str | None = Field(None, description="Name of that application's ingress deployment.")
    base_url: str | None = Field(None, description="OpenAI-compatible URL of a model elsewhere.")
    model: str = Field(description="The name that the engine sees: base, or base:adapter-v7.")
    model_version: str | None = Field(None, description="Registry's name@version, if it is registered.")
    digest: str | None = Field(None, description="Data digest of the weights.")
    weight: int = Field(100, ge=0, le=100, description="Share of traffic in percent.")


class Route(Contract):
    """A public model name."""

    model: str = Field(description="The name that clients send.")
    targets: list[Target] = Field(min_length=1, description="Where requests go, by weight.")
    policy: str = Field("default", description="Guard policy by name.")
    created_at: datetime = Field(description="When the route was made; /v1/models shows it.")
    owned_by: str = Field("manta", description="Team that owns it.")
    price: Price | None = Field(
        None, description="What its tokens cost; nothing if absent.", exclude_if=_is_absent
    )
    team: Slug | None = Field(
        None, description="The one team whose keys may use it; all if absent.", exclude_if=_is_absent
    )
    base: str | None = Field(
        None,
        description="Public name of the model that it was tuned from; a key that may use that may use it.",
        exclude_if=_is_absent,
    )


class PolicyDocument(Contract):
    """A guard policy as published."""

    name: Slug = Field(description="Name by which routes and keys call it.")
    digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the canonical body.")
    body: dict[str, Any] = Field(description="The policy file's content.")


class PromptMessage(Contract):
    """One message of a prompt template."""

    role: Literal["system", "developer", "user", "assistant"] = Field(description="Who says it.")
    content: str = Field(description="Text with {{variables}}.")


class PromptTemplate(Contract):
    """One version of a prompt as MLflow's prompt registry keeps it; versions never change."""

    name: str = Field(min_length=1, max_length=256, description="Name in the registry.")
    version: int = Field(ge=1, description="Version in the registry.")
    messages: list[PromptMessage] = Field(min_length=1, description="What stands before a chat's messages.")
    aliases: list[str] = Field(default_factory=list, description="The registry's aliases of this version.")

    @property
    def ref(self) -> str:
        """name@version."""
        return f"{self.name}@{self.version}"


class Snapshot(Contract):
    """All that a gateway needs. The newest number wins; a gateway keeps its last good one."""

    schema_version: Literal[1] = Field(1, description="Version of this schema.")
    number: int = Field(ge=1, description="Rises by one with each publication.")
    created_at: datetime = Field(description="UTC time of publication.")
    created_by: str = Field(description="Who published it.")
    keys: list[ApiKey] = Field(default_factory=list, description="Known API keys.")
    routes: list[Route] = Field(default_factory=list, description="Public models.")
    policies: list[PolicyDocument] = Field(default_factory=list, description="Guard policies.")
    prompts: dict[str, PromptTemplate] = Field(
        default_factory=dict, description="Prompt templates by name@version."
    )
