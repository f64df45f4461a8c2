"""Our own guards: cheap enough for the gateway's process."""

from __future__ import annotations

from collections.abc import Callable

from validation.guards.inline.ban_list import ban_list_guard, competitors_guard
from validation.guards.inline.injection import InjectionGuard
from validation.guards.inline.injection_model import InjectionModelGuard
from validation.guards.inline.json_schema import json_schema_check
from validation.guards.inline.length import LengthGuard
from validation.guards.inline.pii import pii_guard
from validation.guards.inline.profanity import profanity_guard
from validation.guards.inline.regex import RegexGuard
from validation.guards.inline.secrets import secrets_guard
from validation.guards.inline.sql import sql_check
from validation.guards.inline.system_prompt import SystemPromptGuard
from validation.guards.inline.topics import TopicsGuard
from validation.guards.inline.web import web_guard
from validation.guards.scan import Hit, InlineGuard
from validation.guards.specs import (
    BanListSpec,
    CompetitorsSpec,
    InjectionModelSpec,
    InjectionSpec,
    InlineSpec,
    JsonSchemaSpec,
    LengthSpec,
    PiiSpec,
    ProfanitySpec,
    RegexSpec,
    SecretsSpec,
    SqlSpec,
    SystemPromptSpec,
    TopicsSpec,
    WebSpec,
)


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
        case RegexSpec():
            return RegexGuard(spec.patterns, spec.label, spec.ignore_case, spec.longest)
        case CompetitorsSpec():
            return competitors_guard(spec.names)
        case TopicsSpec():
            return TopicsGuard(spec.topics, spec.at_least)
        case ProfanitySpec():
            return profanity_guard(spec.groups, spec.more, spec.allowed)
        case WebSpec():
            return web_guard(spec.checks, spec.allowed_hosts)
        case SystemPromptSpec():
            return SystemPromptGuard(spec.words)


def build_check(spec: JsonSchemaSpec | SqlSpec) -> Callable[[str], list[Hit]]:
    """What judges a complete text as that entry of a policy says."""
    match spec:
        case JsonSchemaSpec():
            return json_schema_check(spec.json_schema, spec.fenced)
        case SqlSpec():
            return sql_check(spec.statements, spec.tables, spec.dialect, spec.where == "fenced")


__all__ = ["build_check", "build_guard"]
