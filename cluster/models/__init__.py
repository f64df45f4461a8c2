"""Weights: from where they are published into storage, and from storage onto the nodes that serve them."""

from cluster.models.cache import local_copy
from cluster.models.sources import ensure_model, find_model

__all__ = ["ensure_model", "find_model", "local_copy"]
