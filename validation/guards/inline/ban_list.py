"""Words and phrases of a list, whole and whatever their case: bans, competitors' names, profanities.

An entry matches as a word of its own: "ass" neither in "class" nor across the space of "was sold". The
space within a phrase matches a short run of any white space.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from validation.guards.normalise import lower, normalise
from validation.guards.scan import Pattern, PatternGuard, Scanner, trie, trie_pattern

_SPACE = r"\s{1,4}+"
#: What may stand between the parts of a name, or nothing.
_JOINT = r"[\s._\-]{0,3}+"
_PARTS = re.compile(r"[^\s._\-]+")
_GAPS = {_SPACE: 4, _JOINT: 3}


def _atoms(entry: str, joint: str = _SPACE) -> list[str]:
    """An entry as the view shows it, step by step, with what parts its words loosened."""
    folded = lower(normalise(entry).text)
    words = folded.split() if joint == _SPACE else _PARTS.findall(folded)
    atoms: list[str] = []
    for word in words:
        if atoms:
            atoms.append(joint)
        atoms.extend(re.escape(char) for char in word)
    return atoms


def _is_word(atom: str) -> bool:
    return re.fullmatch(r"\w", atom) is not None


def ban_list_guard(words: Iterable[str], label: str = "BANNED") -> PatternGuard:
    """The guard of policy kind ``ban_list``; ``label`` is its findings'."""
    return PatternGuard([list_scanner({label: words})], "words")


def competitors_guard(names: Iterable[str]) -> PatternGuard:
    """The guard of policy kind ``competitors``: the parts of a name may be joined in any way."""
    return PatternGuard([_scanner({"COMPETITOR": [_atoms(name, _JOINT) for name in names]})], "words")


def list_scanner(lists: dict[str, Iterable[str]]) -> Scanner:
    """Lists of words and phrases by the label of their findings; one pattern a list."""
    return _scanner({label: [_atoms(word) for word in words] for label, words in lists.items()})


def _scanner(lists: dict[str, list[list[str]]]) -> Scanner:
    finished = {
        label: [[*atoms, r"(?!\w)"] if _is_word(atoms[-1]) else atoms for atoms in entries if atoms]
        for label, entries in lists.items()
    }
    # Where only invisible characters were listed, there is nothing that could match.
    finished = {label: entries or [["(?!)"]] for label, entries in finished.items()}
    every = [atoms for entries in finished.values() for atoms in entries]
    return Scanner(
        tuple(
            Pattern(label, 1.0, re.compile(_either(entries, whole=True)))
            for label, entries in finished.items()
        ),
        re.compile(rf"(?!\Z)(?:{_either(every, whole=False)})"),
        longest=max(sum(_GAPS.get(atom, 1) for atom in atoms) for atoms in every) + 1,
        # Many patterns are tried only on a text that holds any of them.
        gate=re.compile(_either(every, whole=True) if len(finished) > 1 else r"\S"),
        folded=True,
    )


def _either(entries: Sequence[list[str]], whole: bool) -> str:
    """A pattern for any of the entries, or, if not ``whole``, for what could still become one."""
    groups = (
        (r"(?<!\w)", [atoms for atoms in entries if _is_word(atoms[0])]),
        ("", [atoms for atoms in entries if not _is_word(atoms[0])]),
    )
    return "|".join(
        before + (trie_pattern(trie(group)) if whole else trie_pattern(trie(group), r"\Z", unfinished=True))
        for before, group in groups
        if group
    )
