"""A guard policy: one versioned YAML file that says what is judged, how, and what follows.

The file is strict: an unknown key, an unknown kind or a wrong type is refused with one sentence. A
policy is known by its name and by the SHA-256 of its canonical content, defaults written out.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from cluster.contracts import Action, Direction, PolicyDocument
from cluster.contracts.base import Slug
from cluster.errors import UsageError
from cluster.settings import describe_validation_error

POLICIES = Path(__file__).parent / "policies"
DEFAULT = "default"

PiiEntity = Literal[
    "EMAIL_ADDRESS",
    "CREDIT_CARD",
    "PHONE_NUMBER",
    "IBAN_CODE",
    "US_SSN",
    "IP_ADDRESS",
    "PASSPORT",
    "CRYPTO_ADDRESS",
]
#: Every PII entity that our own patterns know.
PII_ENTITIES: tuple[PiiEntity, ...] = get_args(PiiEntity)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which only true and false are booleans: ``on`` is a key here, not a truth."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own protocol
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF")
)


class _Spec(BaseModel):
    """What every guard of a policy has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Slug = Field(description="Name of the guard, unique in its policy; findings and metrics carry it.")
    on: Literal["input", "output", "both"] = Field(
        description="Judge what goes to the model, comes from it, or both."
    )
    mode: Literal["enforce", "shadow"] = Field(
        "enforce", description="shadow: findings are told, nothing follows."
    )
    timeout_s: float = Field(5.0, gt=0, le=300, description="Seconds until a judgement counts as failed.")
    on_error: Literal["closed", "open"] = Field(
        "closed", description="A guard that fails blocks (closed) or only flags (open)."
    )
    threshold: float = Field(0.0, ge=0, le=1, description="Findings with a lower score are dropped.")
    skip_roles: tuple[str, ...] = Field((), description="Roles of messages that this guard does not judge.")

    def action_at(self, score: float) -> Action:
        """What follows from a finding of that score."""
        action: Action = self.action  # type: ignore[attr-defined]  # each kind says which it may have
        return action

    def covers(self, direction: Direction, role: str) -> bool:
        """Whether this guard judges a text of that direction and role."""
        return self.on in ("both", direction.value) and role not in self.skip_roles


class PiiSpec(_Spec):
    """Personal data with a recognisable form, by pattern and checksum."""

    kind: Literal["pii"] = Field(description="Our own PII patterns.")
    action: Action = Field(Action.REDACT, description="What follows from a finding.")
    entities: tuple[PiiEntity, ...] = Field(PII_ENTITIES, min_length=1, description="Entities to look for.")


class SecretsSpec(_Spec):
    """Credentials with a recognisable form."""

    kind: Literal["secrets"] = Field(description="Our own patterns of keys and tokens.")
    action: Action = Field(Action.BLOCK, description="What follows from a finding.")


class InjectionSpec(_Spec):
    """Attempts to override the instructions: a heuristic."""

    kind: Literal["injection"] = Field(description="Our own weighted phrases.")
    action: Literal[Action.BLOCK, Action.FLAG] = Field(
        Action.BLOCK, description="What follows; there is no part to redact."
    )
    threshold: float = Field(
        0.5, gt=0, le=1, description="Sum of weights at which a text counts as an attempt."
    )


class InjectionModelSpec(_Spec):
    """Attempts to override the instructions: a small trained classifier."""

    kind: Literal["injection_model"] = Field(description="Our own classifier; see its model card.")
    action: Literal[Action.BLOCK, Action.FLAG] = Field(
        Action.BLOCK, description="What follows from a score of block_threshold; there is no part to redact."
    )
    threshold: float = Field(0.76, gt=0, le=1, description="Score at which a text is flagged.")
    block_threshold: float = Field(0.95, gt=0, le=1, description="Score at which the action follows.")

    @model_validator(mode="after")
    def _input_only(self) -> InjectionModelSpec:
        if self.on != "input":
            raise ValueError("on must be input, as the classifier judges complete texts only")
        if self.block_threshold < self.threshold:
            raise ValueError("block_threshold is below threshold, at which a text is only flagged")
        return self

    def action_at(self, score: float) -> Action:
        """A score below ``block_threshold`` only flags."""
        return self.action if score >= self.block_threshold else Action.FLAG


class LengthSpec(_Spec):
    """A limit to a text's length."""

    kind: Literal["length"] = Field(description="Counts characters.")
    action: Literal[Action.BLOCK, Action.FLAG] = Field(
        Action.BLOCK, description="What follows; there is no part to redact."
    )
    max_characters: int = Field(ge=1, description="Most characters (code points) that one text may have.")


class BanListSpec(_Spec):
    """Words and phrases that must not appear."""

    kind: Literal["ban_list"] = Field(
        description="Whole words, whatever their case, accents and look-alikes."
    )
    action: Action = Field(Action.BLOCK, description="What follows from a finding.")
    words: tuple[Annotated[str, StringConstraints(min_length=1, max_length=80, pattern=r"\S")], ...] = Field(
        min_length=1, max_length=20_000, description="Words or phrases of up to 80 characters."
    )


class PackagedSpec(_Spec):
    """A Guardrails AI validator from a package; it never runs in the gateway's own process."""

    kind: Literal["guardrails"] = Field(description="A Guardrails AI validator.")
    action: Action = Field(Action.BLOCK, description="What follows from a finding.")
    validator: str = Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$",
        description="module:Class, e.g. guardrails_ai.profanity_free:ProfanityFree.",
    )
    arguments: dict[str, Any] = Field(default_factory=dict, description="The validator's own arguments.")
    metadata: dict[str, Any] = Field(default_factory=dict, description="The metadata that it is called with.")
    unit: Literal["sentence", "text"] = Field(
        "sentence",
        description="What it judges at a time. text: a stream is held back until its end.",
    )


GuardSpec = Annotated[
    PiiSpec | SecretsSpec | InjectionSpec | InjectionModelSpec | LengthSpec | BanListSpec | PackagedSpec,
    Field(discriminator="kind"),
]


class GuardPolicy(BaseModel):
    """The whole policy, as it stands in its file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = Field(1, description="Version of this schema.")
    name: Slug = Field(description="Name by which routes and keys call it.")
    version: int = Field(ge=1, description="The policy's own version, raised with each change.")
    description: str = Field("", description="What it is for.")
    record_text: Literal["none", "redacted"] = Field(
        "none",
        description="Whether audit and traffic records may hold what the guards let through, redacted.",
        exclude_if=lambda value: value == "none",  # Policies from before this field keep their digests.
    )
    guards: tuple[GuardSpec, ...] = Field(min_length=1, description="The guards; all of them judge.")

    @model_validator(mode="after")
    def _unique(self) -> GuardPolicy:
        names = [guard.name for guard in self.guards]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two guards are named {twice[0]}")
        return self

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON of the policy, defaults included."""
        body = json.dumps(
            self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        )
        return hashlib.sha256(body.encode()).hexdigest()

    def document(self) -> PolicyDocument:
        """The policy as a snapshot publishes it; :func:`parse_policy` reads its body."""
        return PolicyDocument(name=self.name, digest=self.digest, body=self.model_dump(mode="json"))

    def guard(self, name: str) -> GuardSpec:
        """The guard of that name. Raises UsageError if there is none."""
        for guard in self.guards:
            if guard.name == name:
                return guard
        raise UsageError(f"guard policy {self.name} has no guard {name}.")


def parse_policy(body: Any, where: str = "the guard policy") -> GuardPolicy:
    """Read a policy from the content of its file.

    Raises UsageError with one sentence that names every wrong field.
    """
    if not isinstance(body, dict):
        raise UsageError(f"{where}: expected a mapping with name, version and guards.")
    try:
        # Strict JSON reads enumerations and tuples, and still refuses "5" where a number belongs.
        return GuardPolicy.model_validate_json(json.dumps(body), strict=True)
    except TypeError:
        raise UsageError(
            f"{where}: it holds a value that JSON has no form for, such as an unquoted date."
        ) from None
    except ValidationError as error:
        raise UsageError(describe_validation_error(error, where)) from None


def load_policy(name_or_path: str | Path | None = None) -> GuardPolicy:
    """Read a policy: a shipped one by name, or a YAML file by path; without either, the default.

    Raises UsageError if there is none, or if it is wrong.
    """
    name = str(name_or_path or DEFAULT)
    path = Path(name) if "/" in name or name.endswith((".yaml", ".yml")) else POLICIES / f"{name}.yaml"
    try:
        body = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        known = ", ".join(sorted(file.stem for file in POLICIES.glob("*.yaml")))
        raise UsageError(
            f"guard policy {name}: no such policy; name a YAML file or one of {known}."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"guard policy {name} cannot be read: {getattr(error, 'strerror', None) or 'it is no UTF-8'}."
        ) from None
    except yaml.YAMLError as error:
        raise UsageError(f"guard policy {name} is no YAML: {' '.join(str(error).split())}.") from None
    return parse_policy(body, f"guard policy {name}")


@cache
def default_policy() -> GuardPolicy:
    """The shipped policy, for whoever names none."""
    return load_policy(DEFAULT)
