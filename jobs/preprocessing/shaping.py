"""From a row's columns to messages or a document, and to a split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from string import Formatter
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from jobs.preprocessing.cleaning import content_key
from jobs.preprocessing.rows import RowFormat, arrow_type, declared_fields

if TYPE_CHECKING:
    import pyarrow as pa


class Template(BaseModel):
    """How a row becomes a conversation. Braces name columns: ``Message: {text}``."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    messages: str | None = Field(
        None, description="Column that holds finished messages; then nothing else is given."
    )
    system: str | None = Field(None, description="Text of a system message; none if absent.")
    prompt: str | None = Field(None, description="Text of the user's message.")
    completion: str | None = Field(None, description="Text of the assistant's message.")
    values: dict[str, dict[str, str]] = Field(
        default_factory=dict,
        description="Column to {value in the data: what stands for it}, e.g. names of labels.",
    )

    @field_validator("system", "prompt", "completion")
    @classmethod
    def _plain_fields(cls, text: str | None) -> str | None:
        for _, name, form, conversion in Formatter().parse(text or ""):
            if name is not None and (not name.isidentifier() or form or conversion):
                raise ValueError(f"{{{name}}} is no column name; double the braces that are text")
        return text

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        parts = (self.prompt, self.completion)
        if self.messages is not None and any(p is not None for p in (*parts, self.system)):
            raise ValueError("give either messages, or prompt and completion")
        if self.messages is None and None in parts:
            raise ValueError("give prompt and completion, or messages")
        return self

    def fields(self, *texts: str | None) -> list[str]:
        """Names of the columns in the given texts."""
        return [name for text in texts for _, name, _, _ in Formatter().parse(text or "") if name is not None]

    @property
    def prompt_columns(self) -> list[str]:
        """Columns that make what the model is asked."""
        return [self.messages] if self.messages else self.fields(self.system, self.prompt)

    @property
    def completion_columns(self) -> list[str]:
        """Columns that make the answer."""
        return self.fields(self.completion)

    def mapped(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with its values mapped. Raises LookupError, with a reason, where none fits."""
        result = dict(row)
        for name, mapping in self.values.items():
            value = str(row[name])
            if value not in mapping:
                raise LookupError(f"{name} is {value!r}, for which the template has no value")
            result[name] = mapping[value]
        return result

    def render(self, row: Mapping[str, Any]) -> list[dict[str, str]]:
        """Messages of a mapped row. Raises LookupError, with a reason, if a column or a message is empty."""
        if self.messages is not None:
            messages: list[dict[str, str]] = row[self.messages] or []
        else:
            for name in dict.fromkeys([*self.prompt_columns, *self.completion_columns]):
                if row[name] is None or row[name] == "":
                    raise LookupError(f"{name} is empty after normalising")
            texts = (("system", self.system), ("user", self.prompt), ("assistant", self.completion))
            messages = [
                {"role": role, "content": _fill(text, row)} for role, text in texts if text is not None
            ]
        if not messages or messages[-1]["role"] != "assistant":
            raise LookupError("the conversation does not end with the assistant")
        if not all(m["content"] for m in messages):
            raise LookupError("a message is empty after normalising")
        return messages


def _fill(text: str, row: Mapping[str, Any]) -> str:
    # Not str.format on the result: braces in the data are data.
    return "".join(
        literal + (str(row[name]) if name is not None else "")
        for literal, name, _, _ in Formatter().parse(text)
    )


class Split(BaseModel):
    """Which rows are held out for tests, where no test files are given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    test_fraction: float = Field(
        0.1, ge=0, lt=1, description="Share of rows (or groups) held out, by a hash; 0 for none."
    )
    group: str | None = Field(
        None,
        description="Column whose equal values stay together, such as a conversation or an author; else the "
        "hash is that of the content.",
    )


def hashed_split(key: str, test_fraction: float) -> str:
    """``test`` for about ``test_fraction`` of all keys, always the same for the same key."""
    position = int.from_bytes(hashlib.sha256(f"split\n{key}".encode()).digest()[:8], "big") / 2**64
    return "test" if position < test_fraction else "train"


@dataclass(frozen=True)
class Shape:
    """The form of finished rows."""

    #: None: documents, which keep their columns.
    template: Template | None
    #: Columns beside the messages, or all columns of a document.
    keep: tuple[str, ...]
    #: Columns that hold text for judges.
    text: tuple[str, ...]
    split: Split

    def schema(self, form: RowFormat) -> list[tuple[str, pa.DataType]]:
        """Name and type of the columns of finished rows, without the row's id."""
        import pyarrow as pa

        types = dict(declared_fields(form))
        text = pa.string()
        values = self.template.values if self.template else {}
        kept = [(name, text if name in values else types[name]) for name in self.keep]
        if self.template is None:
            return [("split", text), *kept]
        made = [("messages", arrow_type("messages")), ("prompt", text), ("completion", text)]
        return [("split", text), *made, *kept]

    def finish(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A normalised row in its finished form. Raises LookupError, with a reason, where it has none."""
        if self.template is None:
            if not any(text.strip() for text in self.texts(row)):
                raise LookupError("there is no text after normalising")
            return {name: row[name] for name in self.keep}
        mapped = self.template.mapped(row)
        messages = self.template.render(mapped)
        prompt = "\n".join(message["content"] for message in messages[:-1])
        made = {"messages": messages, "prompt": prompt, "completion": messages[-1]["content"]}
        return {**made, **{name: mapped[name] for name in self.keep}}

    def key(self, finished: Mapping[str, Any], row: Mapping[str, Any]) -> str:
        """Equal for rows of equal content: that of what is asked, or that of a document's text."""
        if self.template is None:
            return content_key(row, self.text)
        return content_key({"messages": finished["messages"][:-1]}, ["messages"])

    def assigned(self, key: str, row: Mapping[str, Any]) -> str:
        """The split of a row whose file does not say it."""
        group = self.split.group
        if group is None or row[group] is None:
            return hashed_split(key, self.split.test_fraction)
        return hashed_split(f"group\n{row[group]}", self.split.test_fraction)

    def contents(self, row: Mapping[str, Any], finished: Mapping[str, Any]) -> list[str]:
        """The texts of a finished row that a model reads."""
        if self.template is None:
            return list(self.texts(row))
        return [message["content"] for message in finished["messages"]]

    def texts(self, row: Mapping[str, Any]) -> Iterator[str]:
        """The row's texts, for judges."""
        for name in self.text:
            value = row[name]
            if isinstance(value, str):
                yield value
            elif value:
                yield from (message["content"] for message in value)
