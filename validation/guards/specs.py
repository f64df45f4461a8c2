"""What a policy says of each kind of guard: one strict model a kind.

Each has a ``kind``, by which the policy's file chooses it; :mod:`validation.guards.inline` builds the guard.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from cluster.contracts import Action, Direction
from cluster.contracts.base import Slug

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
ProfanityGroup = Literal["swearing", "slurs", "sexual"]
#: Every part of our own list of profanities.
PROFANITY_GROUPS: tuple[ProfanityGroup, ...] = get_args(ProfanityGroup)
WebCheck = Literal["script", "image", "any_image", "link"]
Statement = Literal["SELECT", "INSERT", "UPDATE", "DELETE", "MERGE"]
#: hold: what a finding could still span is held back, nothing unchecked leaves. stream_first: text leaves at
#: once, and the answer is cut off at a finding. end: everything is held until it was judged as a whole.
StreamMode = Literal["hold", "stream_first", "end"]
#: A word or phrase, as lists have them.
Phrase = Annotated[str, StringConstraints(min_length=1, max_length=80, pattern=r"\S")]
_LABEL = r"^[A-Z][A-Z0-9_]{0,39}$"


class Spec(BaseModel):
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
    stream: StreamMode | None = Field(None, description="Another mode of streams than the policy's.")

    @property
    def changes(self) -> bool:
        """Whether it may block or redact; a guard in shadow, or one that flags, changes nothing."""
        action: Action = self.action  # type: ignore[attr-defined]  # each kind says which it may have
        return self.mode == "enforce" and action is not Action.FLAG

    def action_at(self, score: float) -> Action:
        """What follows from a finding of that score."""
        action: Action = self.action  # type: ignore[attr-defined]  # each kind says which it may have
        return action

    def covers(self, direction: Direction, role: str) -> bool:
        """Whether this guard judges a text of that direction and role."""
        return self.on in ("both", direction.value) and role not in self.skip_roles


class ReversibleSpec(Spec):
    """A guard whose redactions of a request may be undone in its answer."""

    reversible: bool = Field(
        False,
        description="With action redact: the model sees <EMAIL_1>, the client gets the original back.",
    )

    @model_validator(mode="after")
    def _redacts(self) -> Self:
        action: Action = self.action  # type: ignore[attr-defined]  # each kind says which it may have
        if self.reversible and (action is not Action.REDACT or self.on == "output"):
            raise ValueError("reversible needs action redact, on input or both")
        return self


class PiiSpec(ReversibleSpec):
    """Personal data with a recognisable form, by pattern and checksum."""

    kind: Literal["pii"] = Field(description="Our own PII patterns.")
    action: Action = Field(Action.REDACT, description="What follows from a finding.")
    entities: tuple[PiiEntity, ...] = Field(PII_ENTITIES, min_length=1, description="Entities to look for.")


class SecretsSpec(Spec):
    """Credentials with a recognisable form."""

    kind: Literal["secrets"] = Field(description="Our own patterns of keys and tokens.")
    action: Action = Field(Action.BLOCK, description="What follows from a finding.")


class InjectionSpec(Spec):
    """Attempts to override the instructions: a heuristic."""

    kind: Literal["injection"] = Field(description="Our own weighted phrases.")
    action: Literal[Action.BLOCK, Action.FLAG] = Field(
        Action.BLOCK, description="What follows; there is no part to redact."
    )
    threshold: float = Field(
        0.5, gt=0, le=1, description="Sum of weights at which a text counts as an attempt."
    )


class InjectionModelSpec(Spec):
    """Attempts to override the instructions: a small trained classifier."""

    kind: Literal["injection_model"] = Field(description="Our own classifier; see its model card.")
    action: Literal[Action.BLOCK, Action.FLAG] = Field(
        Action.BLOCK, description="What follows from a score of block_threshold; there is no part to redact."
    )
    threshold: float = Field(0.48, gt=0, le=1, description="Score at which a text is flagged.")
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


class LengthSpec(Spec):
    """A limit to a text's length."""

    kind: Literal["length"] = Field(description="Counts characters.")
    action: Literal[Action.BLOCK, Action.FLAG] = Field(
        Action.BLOCK, description="What follows; there is no part to redact."
    )
    max_characters: int = Field(ge=1, description="Most characters (code points) that one text may have.")


class BanListSpec(Spec):
    """Words and phrases that must not appear."""

    kind: Literal["ban_list"] = Field(
        description="Whole words, whatever their case, accents and look-alikes."
    )
    action: Action = Field(Action.BLOCK, description="What follows from a finding.")
    words: tuple[Phrase, ...] = Field(
        min_length=1, max_length=20_000, description="Words or phrases of up to 80 characters."
    )


class RegexSpec(ReversibleSpec):
    """A user's own patterns, by an engine that takes linear time whatever the pattern."""

    kind: Literal["regex"] = Field(description="RE2 patterns (no look-around, no back-references).")
    action: Action = Field(Action.BLOCK, description="What follows from a finding.")
    patterns: tuple[Annotated[str, StringConstraints(min_length=1, max_length=2_000)], ...] = Field(
        min_length=1, max_length=200, description="RE2 patterns; they read the normalised text."
    )
    label: str = Field("PATTERN", pattern=_LABEL, description="Label of its findings.")
    ignore_case: bool = Field(False, description="Whether A matches a.")
    longest: int = Field(
        200, ge=1, le=4_000, description="Characters of the longest match; a stream is held by twice as many."
    )

    @field_validator("patterns")
    @classmethod
    def _compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        from validation.guards.inline.regex import compiled

        for pattern in patterns:
            compiled(pattern, ignore_case=False)
        return patterns


class CompetitorsSpec(Spec):
    """Names of competitors, however they are joined ("Acme Cloud", "acme-cloud", "AcmeCloud's")."""

    kind: Literal["competitors"] = Field(description="A list of names; it knows no other ones.")
    action: Action = Field(Action.REDACT, description="What follows from a finding.")
    names: tuple[Phrase, ...] = Field(min_length=1, max_length=5_000, description="Names.")


class TopicsSpec(Spec):
    """Topics, by key phrases that stand near one another. It counts phrases and understands nothing."""

    kind: Literal["topics"] = Field(description="Key phrases by topic.")
    action: Literal[Action.BLOCK, Action.FLAG] = Field(
        Action.FLAG, description="What follows; there is no part to redact."
    )
    topics: dict[Slug, Annotated[tuple[Phrase, ...], Field(min_length=1, max_length=2_000)]] = Field(
        min_length=1, max_length=100, description="Key phrases by topic: words, whatever case and accents."
    )
    at_least: int = Field(
        2, ge=1, le=50, description="Different phrases of a topic within 2,000 characters that make it one."
    )

    @model_validator(mode="after")
    def _enough(self) -> TopicsSpec:
        for topic, phrases in self.topics.items():
            if len(set(phrases)) < self.at_least:
                raise ValueError(f"topic {topic} has fewer than at_least ({self.at_least}) phrases")
        return self


class ProfanitySpec(Spec):
    """Swearing, slurs and sexual words: an English word list, no judgement of tone."""

    kind: Literal["profanity"] = Field(description="Our own list of English words with their inflections.")
    action: Action = Field(Action.REDACT, description="What follows from a finding.")
    groups: tuple[ProfanityGroup, ...] = Field(
        PROFANITY_GROUPS, min_length=1, description="Parts of the list to look for."
    )
    more: tuple[Phrase, ...] = Field((), max_length=5_000, description="Words to add, in any language.")
    allowed: tuple[Phrase, ...] = Field((), max_length=5_000, description="Words of the list to leave alone.")


class WebSpec(Spec):
    """Links that run scripts, images that carry data away, and links to hosts that are not listed."""

    kind: Literal["web"] = Field(description="Our own patterns of Markdown, HTML and URLs.")
    action: Action = Field(Action.REDACT, description="What follows from a finding.")
    checks: tuple[WebCheck, ...] = Field(
        ("script", "image"),
        min_length=1,
        description="script: javascript:, vbscript: and active data: links, script tags, event handlers. "
        "image: images of a host that is not listed whose address has room for data (a query, a fragment, a "
        "long part or path). any_image: all of them. link: any http(s) address of a host that is not listed.",
    )
    allowed_hosts: tuple[
        Annotated[str, StringConstraints(pattern=r"^(?:\*\.)?[a-z0-9-]+(?:\.[a-z0-9-]+)*$", max_length=253)],
        ...,
    ] = Field((), description="Hosts, in lower case; *.example.com for the hosts below example.com.")


class SystemPromptSpec(Spec):
    """Quotes of the request's own system prompt in the answer, whole or in part."""

    kind: Literal["system_prompt_leak"] = Field(
        description="Runs of words that the system prompt has, too; a paraphrase or a translation passes."
    )
    on: Literal["output"] = Field("output", description="It judges what comes from the model.")
    action: Action = Field(Action.BLOCK, description="What follows from a finding.")
    words: int = Field(
        8, ge=4, le=40, description="Words in a row that make a quote (of a shorter prompt: all of them)."
    )


class TextSpec(Spec):
    """What every guard has that judges a complete text as it stands; a stream is held until its end."""

    unit: ClassVar[Literal["text"]] = "text"
    action: Literal[Action.BLOCK, Action.FLAG] = Field(
        Action.BLOCK, description="What follows; there is no part to redact."
    )
    roles: tuple[str, ...] = Field(
        ("assistant",),
        min_length=1,
        description="Only texts of these roles are judged; an answer's is assistant. Blank ones never are.",
    )

    def covers(self, direction: Direction, role: str) -> bool:
        """Whether this guard judges a text of that direction and role."""
        return role in self.roles and super().covers(direction, role)


class JsonSchemaSpec(TextSpec):
    """The text must be JSON, and follow a schema."""

    kind: Literal["json_schema"] = Field(description="JSON Schema, draft 2020-12.")
    json_schema: dict[str, Any] = Field(
        default_factory=dict, description="The schema; without one, any JSON will do."
    )
    fenced: bool = Field(False, description="Whether one Markdown code fence may stand around the JSON.")

    @field_validator("json_schema")
    @classmethod
    def _is_schema(cls, schema: dict[str, Any]) -> dict[str, Any]:
        from validation.guards.inline.json_schema import validator_of

        validator_of(schema)
        return schema


class SqlSpec(TextSpec):
    """SQL in the text may only do what is listed."""

    kind: Literal["sql"] = Field(description="Parsed by sqlglot; what it cannot parse is a finding.")
    statements: tuple[Statement, ...] = Field(
        ("SELECT",), min_length=1, description="Statements that are allowed, also within others."
    )
    tables: tuple[str, ...] | None = Field(
        None, description="Tables that may be named, as table or schema.table; any if absent."
    )
    dialect: str | None = Field(None, description="sqlglot's name of the dialect, e.g. postgres.")
    where: Literal["fenced", "text"] = Field(
        "fenced", description="fenced: what stands in ```sql fences. text: all of the text is SQL."
    )

    @field_validator("dialect")
    @classmethod
    def _known(cls, dialect: str | None) -> str | None:
        from validation.guards.inline.sql import check_dialect

        check_dialect(dialect)
        return dialect


class PackagedSpec(ReversibleSpec):
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


InlineSpec = (
    PiiSpec
    | SecretsSpec
    | InjectionSpec
    | InjectionModelSpec
    | LengthSpec
    | BanListSpec
    | RegexSpec
    | CompetitorsSpec
    | TopicsSpec
    | ProfanitySpec
    | WebSpec
    | SystemPromptSpec
)
GuardSpec = Annotated[InlineSpec | JsonSchemaSpec | SqlSpec | PackagedSpec, Field(discriminator="kind")]
