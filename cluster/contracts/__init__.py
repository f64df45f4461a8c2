"""The types that the rooms share. They hold data; behaviour lives in the rooms.

This package imports nothing but pydantic, so that the gateway, a client and a job can all read it.
"""

from cluster.contracts.artifact import (
    ArtifactInput,
    ArtifactRef,
    CodeRevision,
    FileEntry,
    Manifest,
    Tombstone,
)
from cluster.contracts.findings import Action, Direction, Finding, Segment
from cluster.contracts.handle import (
    ModelReplica,
    StreamItem,
    UpstreamError,
    UpstreamRequest,
)
from cluster.contracts.key import KeyRecord, KeyTerms
from cluster.contracts.model import ModelRef, adapter_id, engine_model_id
from cluster.contracts.principal import Principal
from cluster.contracts.run import Lease, RunRecord, RunState
from cluster.contracts.snapshot import (
    ApiKey,
    FormerSecret,
    KeyLimits,
    PolicyDocument,
    PromptMessage,
    PromptTemplate,
    Route,
    Snapshot,
    Target,
)

__all__ = [
    "Action",
    "ApiKey",
    "ArtifactInput",
    "ArtifactRef",
    "CodeRevision",
    "Direction",
    "FileEntry",
    "Finding",
    "FormerSecret",
    "KeyLimits",
    "KeyRecord",
    "KeyTerms",
    "Lease",
    "Manifest",
    "ModelRef",
    "ModelReplica",
    "PolicyDocument",
    "Principal",
    "PromptMessage",
    "PromptTemplate",
    "Route",
    "RunRecord",
    "RunState",
    "Segment",
    "Snapshot",
    "StreamItem",
    "Target",
    "Tombstone",
    "UpstreamError",
    "UpstreamRequest",
    "adapter_id",
    "engine_model_id",
]
