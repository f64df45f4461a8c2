"""Personal data in what a run tells of rows that are refused: in quarantine, in parts, in checks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from jobs.preprocessing.cleaning import mapped
from jobs.preprocessing.reading import READ, SHOWN_CHARS, SIZE
from jobs.preprocessing.rows import RAW, REASON, STAGE
from validation.data.personal import LONGEST, Mask, PersonalData

if TYPE_CHECKING:
    from validation.data import GateReport

#: Of an example that a report has cut already, what is sure to hold no half of an address.
_WHOLE_CHARS = 150
#: Of a reason why a line cannot be read, its place.
_PLACE = re.compile(r".*? line \d+: ", re.DOTALL)


def mask_of(rule: PersonalData) -> Mask:
    """The mask of a rule, made once in a process."""
    return _mask_of(rule.model_dump_json())


@cache
def _mask_of(rule: str) -> Mask:
    return Mask(PersonalData.model_validate_json(rule))


def mask_refused(row: dict[str, Any], columns: list[str], mask: Mask) -> None:
    """Mask a refused row: its texts, its raw form and the reason, whatever stage refused it."""
    row.update(mapped(row, columns, mask))
    if row[REASON]:
        row[REASON] = _masked_reason(row[REASON], row[STAGE], mask)
    if row[RAW]:
        row[RAW] = _masked_raw(row[RAW], row[STAGE], mask)


def _masked_reason(reason: str, stage: str, mask: Mask) -> str:
    # A file is to be found by its address, whose digits may read as a telephone number.
    place = _PLACE.match(reason) if stage == READ else None
    if stage == READ and place is None:
        return reason  # Of a whole file: it quotes no row.
    head = place[0] if place else ""
    return head + mask(reason.removeprefix(head))


def _masked_raw(raw: str, stage: str, mask: Mask) -> str:
    try:
        # Behind a backslash a JSON text has letters that would count as part of an address.
        return json.dumps(masked_values(json.loads(raw), mask), ensure_ascii=False)
    except (ValueError, RecursionError):
        # What is too large has been cut, perhaps in the middle of an address.
        cut = stage == SIZE and len(raw) + LONGEST > SHOWN_CHARS
        return mask(raw, max(0, min(len(raw), SHOWN_CHARS - LONGEST))) if cut else mask(raw)


def masked_values(value: Any, mask: Callable[[str], str]) -> Any:
    """JSON values with each text masked, and each number that reads as personal data."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, list):
        return [masked_values(item, mask) for item in value]
    if isinstance(value, dict):
        return {key: masked_values(item, mask) for key, item in value.items()}
    if isinstance(value, int | float) and not isinstance(value, bool) and mask(str(value)) != str(value):
        return mask(str(value))
    return value


def masked_report(report: GateReport, mask: Mask) -> GateReport:
    """A report whose examples, figures and exceptions tell no personal data."""

    def shown(text: str) -> str:
        return mask(text, _WHOLE_CHARS) + "…" if text.endswith("…") else mask(text)

    expectations = [
        told.model_copy(
            update={
                # The id is what a row is found by.
                "examples": [
                    {
                        "row_id": row["row_id"],
                        **{n: masked_values(v, shown) for n, v in row.items() if n != "row_id"},
                    }
                    for row in told.examples
                ],
                "observed_value": masked_values(told.observed_value, mask),
                "error": mask(told.error) if told.error else told.error,
            }
        )
        for told in report.expectations
    ]
    return report.model_copy(update={"expectations": expectations})
