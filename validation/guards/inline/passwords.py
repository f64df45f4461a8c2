"""Passwords, which have no form of their own: what is assigned to one, or stands in an address for one.

Documentation and programs speak of passwords all the time. So a value counts only if it looks like one: not
a type, a call, a variable or a word that stands for "put yours here".
"""

from __future__ import annotations

import re

from validation.guards.scan import Pattern, Scanner, trie, trie_pattern

_LABEL = "PASSWORD"
_VALUE = r"[^\s\"'`<>]"
_NAMES = trie([*name] for name in ("password", "passwd", "passwort", "passphrase", "passcode"))
#: These are words of their own, too, and parts of words: what follows them must be clearer.
_SHORT_NAMES = trie([*name] for name in ("pass", "pwd"))
_ALONE = r"(?<![a-z0-9\-])"
_AFTER_NAME = r"[\"'`\])*]{0,3}+[ \t]{0,4}+"
_SPACE = r"[ \t]{0,4}+"
_QUOTE = r"[\"'`]"
_ASSIGNED = re.compile(
    rf"(?:{trie_pattern(_NAMES)}{_AFTER_NAME}(?::=|=>|->|==?|[:>]|(?:is|was)(?![a-z0-9]):?){_SPACE}{_QUOTE}?+"
    rf"|{_ALONE}{trie_pattern(_SHORT_NAMES)}{_AFTER_NAME}"
    rf"(?::?==?(?!>){_SPACE}{_QUOTE}?+|:{_SPACE}{_QUOTE}))"
    rf"({_VALUE}{{6,128}}+)"
)
_VALUE_BEGUN = rf"{_SPACE}{_QUOTE}?+{_VALUE}{{0,128}}+\Z"
_ASSIGNED_BEGUN = re.compile(
    r"(?!\Z)(?:"
    + trie_pattern(
        _NAMES, rf"{_AFTER_NAME}(?:\Z|[:=\->iwas]{{1,3}}+(?:\Z|:?+{_VALUE_BEGUN}))", unfinished=True
    )
    + f"|{_ALONE}"
    + trie_pattern(_SHORT_NAMES, rf"{_AFTER_NAME}(?:\Z|:?+={{0,2}}+(?:\Z|{_VALUE_BEGUN}))", unfinished=True)
    + ")"
)
_IN_ADDRESS = re.compile(
    r"(?<![a-z0-9+.\-])[a-z][a-z0-9+.\-]{1,20}+://([^\s:/@\"'<>]{0,64}+):([^\s:/@\"'<>]{3,128}+)@"
)
_ADDRESS_BEGUN = re.compile(
    r"(?<![a-z0-9+.\-])[a-z][a-z0-9+.\-]{0,20}+(?:\Z|:(?:\Z|/(?:\Z|/[^\s/@\"'<>]*+\Z)))"
)

#: Values that stand for a password, or say something about one.
_NO_PASSWORD = re.compile(
    r"(?:\*+|x+|\.+|-+|_+|#+|…+)\Z"
    r"|\$\{|\$\(|\{\{|%[(s]|\{[\w.]*\}|\[[\w ]*\]"
    r"|(?:your|my|the|new|old|user|db|admin|some|any|our|enter|insert|change)[_\-]?(?:own|real|secret)?[_\-]?"
    r"(?:pass|pwd|me\b|here)"
    r"|(?:pass(?:word|wd|phrase|code)?|passwort|pwd|string|secret|required|optional|username|default|placeholder"
    r"|example|hidden|redacted|invalid|incorrect|correct|missing|changed|expired|undefined|function|object"
    r"|boolean|integer|nullable|confirm\w{0,8}|reset|forgot\w{0,4})s?[_\-]?(?:field|input|hash\w{0,4}|value|text)?\Z"
)
_CODE = re.compile(
    r"[a-z_]\w*(?:\.\w+)*[(\[]|[a-z_]\w*(?:\.[a-z_]\w*)+\Z|[a-z_]*pass[a-z_]*\d?\Z|[$@%{(\[/~]|\./|https?:"
)


def _assigned_end(match: re.Match[str]) -> int | None:
    value, start = match[1], match.start(1)
    quoted = match.string[start - 1] in "\"'`"
    if not quoted:
        value = value.rstrip(".,;:)]}")
    if len(value) < 6 or _NO_PASSWORD.match(value):
        return None
    letters, digits = any(map(str.isalpha, value)), any(map(str.isdigit, value))
    signs = any(not char.isalnum() and char not in "_.-/:,\\" for char in value)
    if quoted:
        # A key of a dictionary that maps to a name, or a sentence's quotation, has neither digit nor sign.
        return start + len(value) if letters and (digits or signs or _one_word(value)) else None
    strong = (letters and digits) or (signs and (letters or digits))
    return start + len(value) if strong and not _CODE.match(value) else None


def _one_word(value: str) -> bool:
    return value.isalpha() or (value.count("-") >= 2 and value.replace("-", "").isalpha())


def _address_end(match: re.Match[str]) -> int | None:
    user, value = match.groups()
    # Examples are written like this: nobody's secret is the name before it.
    if value == user or (user, value) == ("scott", "tiger"):
        return None
    return None if _NO_PASSWORD.match(value) or value[0] in "${<%[" else match.end(2)


PASSWORD_SCANNERS = (
    Scanner(
        (Pattern(_LABEL, 0.8, _ASSIGNED, _assigned_end, group=1),),
        _ASSIGNED_BEGUN,
        longest=10 + 3 + 4 + 5 + 4 + 1 + 128 + 1,
        gate=re.compile("pass|pwd"),
        folded=True,
    ),
    Scanner(
        (Pattern(_LABEL, 0.9, _IN_ADDRESS, _address_end, group=2),),
        _ADDRESS_BEGUN,
        longest=21 + 3 + 64 + 1 + 128 + 1,
        gate=re.compile("://"),
        folded=True,
    ),
)
