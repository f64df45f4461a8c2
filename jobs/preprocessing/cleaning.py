"""Normalising text, and the key by which equal content is found."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.preprocessing.rows import KEY_BYTES

# Line feed and tabulator are text; the other control characters are debris.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Normalise(BaseModel):
    """How text is brought to one form before it is judged, compared or kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fix_text: bool = Field(
        False, description="Repair text that was decoded wrongly (mojibake, HTML entities), by ftfy."
    )
    unicode_form: Literal["NFC", "NFKC"] | None = Field(
        "NFC", description="Unicode normalisation; none if null."
    )
    control_characters: Literal["remove", "keep"] = Field(
        "remove", description="What happens to control characters other than line feed and tabulator."
    )
    strip: bool = Field(True, description="Remove white space at both ends.")

    def apply(self, text: str) -> str:
        """The text in its normal form."""
        if self.fix_text:
            import ftfy

            # Only what repairs: this class's own fields decide of the rest.
            text = ftfy.fix_text(text, normalization=None, remove_control_chars=False, uncurl_quotes=False)
        if self.control_characters == "remove":
            text = _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
        if self.unicode_form is not None:
            text = unicodedata.normalize(self.unicode_form, text)
        return text.strip() if self.strip else text


def normalised(row: Mapping[str, Any], names: Sequence[str], rule: Normalise) -> dict[str, Any]:
    """A copy of the row with the named columns (text, or lists of messages) in normal form."""
    return mapped(row, names, rule.apply)


def mapped(row: Mapping[str, Any], names: Sequence[str], change: Callable[[str], str]) -> dict[str, Any]:
    """A copy of the row with every text in the named columns changed."""
    clean = dict(row)
    for name in names:
        value = clean[name]
        if isinstance(value, str):
            clean[name] = change(value)
        elif isinstance(value, list):
            clean[name] = [{"role": m["role"], "content": change(m["content"])} for m in value]
    return clean


def content_key(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """32 hex digits that are equal if, and only if, the named columns are."""
    canonical = json.dumps([row[name] for name in names], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[: 2 * KEY_BYTES]
