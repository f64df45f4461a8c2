"""Words and phrases that must not appear, whole and whatever their case.

An entry matches as a word of its own: "ass" neither in "class" nor across the space of "was sold". The
space within a phrase matches a short run of any white space.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from validation.guards.normalise import lower, normalise
from validation.guards.scan import Pattern, PatternGuard, Scanner, trie, trie_pattern

_SPACE = r"\s{1,4}+"


def _atoms(entry: str) -> list[str]:
    """An entry as the view shows it, step by step, with its white space loosened."""
    words = lower(normalise(entry).text).split()
    atoms: list[str] = []
    for word in words:
        if atoms:
            atoms.append(_SPACE)
        atoms.extend(re.escape(char) for char in word)
    return atoms


def _is_word(atom: str) -> bool:
    return re.fullmatch(r"\w", atom) is not None


def ban_list_guard(words: Iterable[str]) -> PatternGuard:
    """The guard of policy kind ``ban_list``."""
    entries = [atoms for atoms in map(_atoms, words) if atoms]
    if not entries:
        # Only invisible characters were listed: there is nothing that could match.
        return PatternGuard([_scanner([["(?!)"]])], "words")
    return PatternGuard([_scanner(entries)], "words")


def _scanner(entries: list[list[str]]) -> Scanner:
    finished = [[*atoms, r"(?!\w)"] if _is_word(atoms[-1]) else atoms for atoms in entries]
    groups: list[tuple[str, list[list[str]]]] = [
        (r"(?<!\w)", [atoms for atoms in finished if _is_word(atoms[0])]),
        ("", [atoms for atoms in finished if not _is_word(atoms[0])]),
    ]
    groups = [(before, group) for before, group in groups if group]
    whole = "|".join(before + trie_pattern(trie(group)) for before, group in groups)
    begun = "|".join(before + trie_pattern(trie(group), r"\Z", unfinished=True) for before, group in groups)
    regex = re.compile(whole)
    return Scanner(
        (Pattern("BANNED", 1.0, regex),),
        re.compile(rf"(?!\Z)(?:{begun})"),
        longest=max(sum(4 if atom == _SPACE else 1 for atom in atoms) for atoms in finished) + 1,
        gate=re.compile(r"\S"),
        folded=True,
    )
