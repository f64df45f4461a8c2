"""Names of models: one function maps the registry's to the engine's."""

from __future__ import annotations

from typing import Self

from pydantic import Field

from cluster.contracts.base import Contract, Slug


class ModelRef(Contract):
    """A registered model version, written ``name@version`` in registry, artifacts and routes."""

    name: Slug = Field(description="Registered model name.")
    version: int = Field(ge=1, description="Registered version.")

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``name@version``. Raises ValueError when the text has another form."""
        name, _, version = text.partition("@")
        if not version.isdigit():
            raise ValueError(f"{text!r} is no model version: expected <name>@<number>")
        return cls(name=name, version=int(version))


def adapter_id(ref: ModelRef) -> str:
    """The immutable name of an adapter version; engines cache adapters by name for ever."""
    return f"{ref.name}-v{ref.version}"


def engine_model_id(base: str, adapter: ModelRef | None = None) -> str:
    """The name that the engine sees: ``base``, or ``base:adapter-v7`` for an adapter on it."""
    return base if adapter is None else f"{base}:{adapter_id(adapter)}"
