"""Normalising text, and finding exact duplicates across files and splits."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import pandas as pd

# Line feed and tabulator are text; the other control characters are debris.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Normalise(BaseModel):
    """How text is brought to one form before it is compared or kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    unicode_form: Literal["NFC", "NFKC"] | None = Field(
        "NFC", description="Unicode normalisation; none if null."
    )
    control_characters: Literal["remove", "keep"] = Field(
        "remove", description="What happens to control characters other than line feed and tabulator."
    )
    strip: bool = Field(True, description="Remove white space at both ends.")

    def apply(self, text: str) -> str:
        """The text in its normal form."""
        if self.control_characters == "remove":
            text = _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
        if self.unicode_form is not None:
            text = unicodedata.normalize(self.unicode_form, text)
        return text.strip() if self.strip else text


def normalised(row: Mapping[str, Any], names: Sequence[str], rule: Normalise) -> dict[str, Any]:
    """A copy of the row with the named columns (text, or lists of messages) in normal form."""
    clean = dict(row)
    for name in names:
        value = clean[name]
        if isinstance(value, str):
            clean[name] = rule.apply(value)
        elif isinstance(value, list):
            clean[name] = [{"role": m["role"], "content": rule.apply(m["content"])} for m in value]
    return clean


def content_key(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """32 hex digits that are equal if, and only if, the named columns are."""
    canonical = json.dumps([row[name] for name in names], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


@dataclass
class Decisions:
    """What becomes of rows that are not kept."""

    #: Ids of rows that repeat an earlier one.
    duplicates: set[str] = field(default_factory=set)
    #: Those among them that stood in train and repeat a row of test.
    contaminated: int = 0
    #: Row id to the reason of its quarantine.
    conflicts: dict[str, str] = field(default_factory=dict)


def find_duplicates(keys: pd.DataFrame) -> Decisions:
    """Decide which of several equal rows stays.

    ``keys`` has the columns row_id, file, line, split, key (equal content) and label (equal answer). Of rows
    with one key the first stays, test before train, so that no row of train is in test. Rows with one
    key and different labels contradict each other, and none of them stays.
    """
    decisions = Decisions()
    if keys.empty:
        return decisions
    ordered = keys.assign(_train=keys["split"].ne("test")).sort_values(
        ["_train", "file", "line"], kind="stable"
    )
    repeated = ordered[ordered.duplicated("key", keep=False)]
    for _, group in repeated.groupby("key", sort=False):
        ids = group["row_id"].tolist()
        if group["label"].nunique() > 1:
            others = f"{len(ids) - 1} other row{'s' if len(ids) > 2 else ''}"
            decisions.conflicts |= dict.fromkeys(ids, f"equal to {others} with a different answer")
            continue
        decisions.duplicates.update(ids[1:])
        if group["split"].iloc[0] == "test":
            decisions.contaminated += int(group["split"].iloc[1:].eq("train").sum())
    return decisions
