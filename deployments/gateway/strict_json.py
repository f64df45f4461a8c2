"""JSON as RFC 8259 has it, and no deeper than any request needs to be.

Python's own reader takes more: other encodings, half surrogate pairs, NaN and infinity. Each of these passes
through validation and breaks whoever has to write it out again, long after the client could be told.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

MAX_DEPTH = 128
_MAYBE_HALF_A_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")


def loads(raw: bytes) -> Any:
    """The value of a document in UTF-8. Raises ValueError with one sentence."""
    try:
        value = json.loads(raw.decode(), parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
    if _MAYBE_HALF_A_PAIR.search(raw):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it has half a surrogate pair, which is no character") from None
    return value


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:20]} is too large")
    return number


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, list | dict)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth
