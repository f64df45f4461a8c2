"""The known name that an unknown one was probably meant to be."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

#: Low enough that EMAIL finds EMAIL_ADDRESS.
_LIKE = 0.55


def meant(unknown: str, known: Iterable[str]) -> str:
    """`` (did you mean text?)`` to stand behind the unknown name in a sentence; empty if none is like it."""
    found = get_close_matches(unknown, list(known), n=1, cutoff=_LIKE)
    return f" (did you mean {found[0]}?)" if found else ""
