"""Who asks."""

from __future__ import annotations

from pydantic import Field

from cluster.contracts.base import Contract, Slug


class Principal(Contract):
    """The identity on every typed request, run and manifest."""

    key_id: str = Field(description="Public id of the API key or, for jobs, of the submitting user.")
    team: Slug = Field(description="Owner of storage, budgets and routes; first part of every address.")
    tenant: Slug = Field("default", description="Isolation boundary above teams.")
