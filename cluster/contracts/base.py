"""The common base of all contract types."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

#: A path segment in an address: it never needs quoting in S3, SQL, a URL or a Kubernetes label.
Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$")]


class Contract(BaseModel):
    """Frozen, and strict about keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")
