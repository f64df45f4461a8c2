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
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cluster.contracts import PolicyDocument
from cluster.contracts.base import Slug
from cluster.errors import UsageError
from cluster.settings import describe_validation_error
from validation.guards.specs import GuardSpec, StreamMode

POLICIES = Path(__file__).parent / "policies"
DEFAULT = "default"


class _Loader(yaml.SafeLoader):
    """Safe YAML in which only true and false are booleans: ``on`` is a key here, not a truth."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own protocol
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF")
)


class GuardPolicy(BaseModel):
    """The whole policy, as it stands in its file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = Field(1, description="Version of this schema.")
    name: Slug = Field(description="Name by which routes and keys call it.")
    version: int = Field(ge=1, description="The policy's own version, raised with each change.")
    description: str = Field("", description="What it is for.")
    stream: StreamMode = Field(
        "hold",
        description="What a streamed answer waits for. hold: what a finding could still span. stream_first: "
        "nothing, but it is cut off at a finding. end: everything was judged.",
    )
    input: Literal["before", "parallel"] = Field(
        "before",
        description="When a request is judged. parallel: while the model begins, whose first token waits for "
        "the verdict; guards that redact always judge before.",
    )
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

    @property
    def tag(self) -> str:
        """Which policy this is, in one line: ``name@version;sha256=digest``."""
        return f"{self.name}@{self.version};sha256={self.digest}"

    def stream_of(self, guard: GuardSpec) -> StreamMode:
        """The mode of streams that a guard of this policy works in."""
        return guard.stream or self.stream

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
    except ValidationError as error:
        raise UsageError(describe_validation_error(error, where, GuardPolicy)) from None
    except (TypeError, ValueError, RecursionError):
        raise UsageError(
            f"{where}: it holds a value that JSON has no form for, such as an unquoted date."
        ) from None


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
    except (ValueError, RecursionError):
        raise UsageError(f"guard policy {name}: it holds a value that cannot be read.") from None
    except yaml.YAMLError as error:
        raise UsageError(f"guard policy {name} is no YAML: {' '.join(str(error).split())}.") from None
    return parse_policy(body, f"guard policy {name}")


@cache
def default_policy() -> GuardPolicy:
    """The shipped policy, for whoever names none."""
    return load_policy(DEFAULT)
