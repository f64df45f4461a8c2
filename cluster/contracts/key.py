"""API keys as the control plane keeps them; gateways get them as :class:`ApiKey` in a snapshot."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AwareDatetime, Field, StringConstraints, field_validator

from cluster.contracts.base import Contract, Slug
from cluster.contracts.snapshot import KeyLimits, Scope

#: No half surrogates, which no snapshot could hold: the pattern makes pydantic read it as Unicode.
ModelName = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]


class KeyTerms(Contract):
    """What is agreed when a key is made."""

    id: Slug = Field(description="Public id, safe to log; never given to a second key.")
    owner: str = Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$", description="Who answers for it.")
    team: Slug = Field(description="The team that it belongs to.")
    tenant: Slug = Field("default", description="The tenant that it belongs to.")
    models: list[ModelName] | None = Field(
        None, min_length=1, description="Public names of the models that it may use; all if absent."
    )
    policy: Slug | None = Field(None, description="Guard policy that overrides the route's.")
    limits: KeyLimits = Field(default_factory=KeyLimits, description="How much it may use.")
    scopes: list[Scope] = Field(default_factory=list, description="What it may do beyond using models.")
    expires_at: AwareDatetime | None = Field(None, description="Time from which on it is refused.")

    @field_validator("expires_at")
    @classmethod
    def _in_the_calendar(cls, value: datetime | None) -> datetime | None:
        try:
            return None if value is None else value.astimezone(UTC)
        except OverflowError:
            raise ValueError("no such time in UTC") from None


class KeyRecord(KeyTerms):
    """A key on record. Its secret is nowhere."""

    created_at: datetime = Field(description="UTC time at which it was made.")
    rotated_at: datetime | None = Field(None, description="UTC time at which it last got a new secret.")
    former_until: datetime | None = Field(
        None, description="UTC time until which the secret before that is good; never was if absent."
    )
    revoked_at: datetime | None = Field(None, description="UTC time at which it was revoked.")

    @property
    def terms(self) -> KeyTerms:
        """What is agreed, without what came of it."""
        return KeyTerms(**{name: getattr(self, name) for name in KeyTerms.model_fields})
