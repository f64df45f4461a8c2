"""Identifiers of a person that a name announces or a checksum proves: passports, coins' addresses, numbers.

Bare digits are anybody's; after "SSN" or "call me at" they are somebody's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from validation.guards.inline.checksums import base58check, bech32, mrz_digit
from validation.guards.scan import Pattern, Scanner, trie, trie_pattern

_GAP = r"[ \t\n:#=.,\"'()*_\-]{1,3}+"
_FILLERS = r"(?:number|num|no|nr|id|is|was|with|the|me|us|him|her|at|on|my|holder)"
_LONGEST_NAME = 24
_MOST_FILLERS = 4


def _announced(
    label: str,
    score: float,
    names: Iterable[str],
    value: str,
    begun: str,
    accept: Callable[[str], bool] | None,
) -> Scanner:
    """What follows one of ``names``; ``begun`` matches a beginning of a ``value`` (28 characters at most)."""
    known = trie([re.escape(char) for char in name] for name in names)
    fillers = rf"(?:{_FILLERS}{_GAP}){{0,{_MOST_FILLERS}}}"
    whole = rf"(?<![a-z0-9]){trie_pattern(known)}{_GAP}{fillers}({value})(?![a-z0-9])"
    rest = rf"(?:\Z|{_GAP}(?>{fillers})(?:[a-z]{{0,8}}+\Z|{begun}\Z))"
    regex = re.compile(whole)
    return Scanner(
        (
            Pattern(
                label,
                score,
                regex,
                lambda match: match.end(1) if accept is None or accept(match[1]) else None,
                group=1,
            ),
        ),
        re.compile(rf"(?<![a-z0-9])(?!\Z){trie_pattern(known, rest, unfinished=True)}"),
        longest=_LONGEST_NAME + 3 + _MOST_FILLERS * 9 + 28 + 2,
        gate=re.compile(trie_pattern(known)),
        folded=True,
    )


def _digits(text: str) -> int:
    return sum(map(str.isdigit, text))


#: Telephone and social security numbers that only their names tell from others.
NAMED_NUMBERS = {
    "PHONE_NUMBER": _announced(
        "PHONE_NUMBER",
        0.6,
        (
            *("phone", "tel", "telephone", "mobile", "whatsapp", "fax", "sms"),
            # Programs call a thing 10000000 times: people call somebody at a number.
            *(
                f"{verb} {whom} {at}"
                for verb in ("call", "dial")
                for whom in ("me", "us", "him", "her")
                for at in ("at", "on")
            ),
        ),
        r"[0-9]{8,13}|[1-9][0-9]{4}[ \-][0-9]{5}",
        r"[0-9]{0,13}+[ \-]?+[0-9]{0,5}+",
        None,
    ),
    "US_SSN": _announced(
        "US_SSN",
        0.85,
        ("ssn", "social security", "social security number"),
        r"(?!000|666|9)[0-9]{3}(?!00)[0-9]{2}(?!0000)[0-9]{4}",
        "[0-9]{0,9}+",
        None,
    ),
}

_NAMED_PASSPORT = _announced(
    "PASSPORT",
    0.8,
    ("passport", "reisepass", "passeport", "pasaporte", "passaporto", "passaporte"),
    r"[a-z]{1,2} ?[0-9]{6,8}[a-z]?|[0-9]{7,9}|[a-z0-9]{9}",
    r"[a-z0-9]{0,2}+ ?[a-z0-9]{0,9}+",
    lambda value: _digits(value) >= 5,
)
#: Second line of the machine-readable zone: number, country, birth, sex, expiry, personal number.
_MRZ = re.compile(
    r"(?<![A-Z0-9<])[A-Z0-9<]{9}[0-9][A-Z<]{3}[0-9]{7}[MFX<][0-9]{7}[A-Z0-9<]{14}[0-9<][0-9](?![A-Z0-9<])"
)


def _mrz_end(match: re.Match[str]) -> int | None:
    line = match[0]
    fields = ((0, 9), (13, 19), (21, 27))
    return match.end() if all(mrz_digit(line[a:b]) == line[b] for a, b in fields) else None


PASSPORT_SCANNERS = (
    _NAMED_PASSPORT,
    Scanner(
        (Pattern("PASSPORT", 1.0, _MRZ, _mrz_end),),
        re.compile(r"(?<![A-Z0-9<])[A-Z0-9<]{1,44}+\Z"),
        longest=46,
        gate=re.compile(r"[A-Z0-9<]{44}"),
    ),
)

_ALONE = "(?<![A-Za-z0-9])"
_END = "(?![A-Za-z0-9])"
#: Bitcoin, Litecoin, Dogecoin and Tron by their checksums; Ethereum by its form, as most write it in lower
#: case, which leaves its checksum out.
CRYPTO_SCANNER = Scanner(
    (
        Pattern(
            "CRYPTO_ADDRESS",
            1.0,
            re.compile(rf"{_ALONE}[13LMDAT9][1-9A-HJ-NP-Za-km-z]{{24,34}}{_END}"),
            lambda match: match.end() if base58check(match[0]) else None,
        ),
        Pattern(
            "CRYPTO_ADDRESS",
            1.0,
            re.compile(rf"{_ALONE}(?:(?:bc|tb|ltc)1[a-z0-9]{{11,71}}|(?:BC|TB|LTC)1[A-Z0-9]{{11,71}}){_END}"),
            lambda match: match.end() if bech32(match[0]) else None,
        ),
        Pattern("CRYPTO_ADDRESS", 0.9, re.compile(rf"{_ALONE}0x[0-9A-Fa-f]{{40}}{_END}")),
    ),
    re.compile(rf"{_ALONE}[A-Za-z0-9]{{1,76}}+\Z"),
    longest=78,
    gate=re.compile(r"[A-Za-z0-9]{25}"),
)
