"""Our own guards: patterns cheap enough for the gateway's process."""

from __future__ import annotations

from validation.guards.inline.ban_list import ban_list_guard
from validation.guards.inline.injection import InjectionGuard
from validation.guards.inline.injection_model import InjectionModelGuard
from validation.guards.inline.length import LengthGuard
from validation.guards.inline.pii import pii_guard
from validation.guards.inline.secrets import secrets_guard
from validation.guards.policy import (
    BanListSpec,
    InjectionModelSpec,
    InjectionSpec,
    LengthSpec,
    PiiSpec,
    SecretsSpec,
)
from validation.guards.scan import InlineGuard

InlineSpec = PiiSpec | SecretsSpec | InjectionSpec | InjectionModelSpec | LengthSpec | BanListSpec


def build_guard(spec: InlineSpec) -> InlineGuard:
    """The guard that a policy's entry describes."""
    match spec:
        case PiiSpec():
            return pii_guard(spec.entities)
        case SecretsSpec():
            return secrets_guard()
        case InjectionSpec():
            return InjectionGuard(spec.threshold)
        case InjectionModelSpec():
            return InjectionModelGuard(spec.threshold)
        case LengthSpec():
            return LengthGuard(spec.max_characters)
        case BanListSpec():
            return ban_list_guard(spec.words)


__all__ = ["InlineSpec", "build_guard"]
