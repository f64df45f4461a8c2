"""Personal data with a form of its own: pattern entities, checked where they carry a checksum.

Names and places have no form; that is what Presidio is for (policy kind ``guardrails``).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache

from validation.guards.inline.checksums import iban_end, luhn
from validation.guards.inline.identifiers import CRYPTO_SCANNER, NAMED_NUMBERS, PASSPORT_SCANNERS
from validation.guards.scan import CONTEXT, Pattern, PatternGuard, Scanner, chain
from validation.guards.specs import PiiEntity

_LOCAL = r"[A-Za-z0-9._%+'\-]"
_DOMAIN = r"(?:[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?\.){1,5}"
_EMAIL = re.compile(_LOCAL + r"{1,64}+@" + _DOMAIN + r"(?:xn--[A-Za-z0-9\-]{2,30}|[A-Za-z]{2,24})")
#: Runs of what numbers are written with; nothing below matches across any other character.
_NUMBER = r"[0-9 ()./+\-\n]"
#: A card's groups may be parted by full stops.
_CARD = re.compile(r"(?<![0-9])(?<![0-9][.,])[2-6](?:(?:[ \-]{0,2}|\.)[0-9]){12,18}(?![0-9])")
#: Or stand in two lines, broken behind four or eight digits. Columns of numbers look like that as well: no
#: other digit may be near, in these lines or the next.
_CARD_LINES = re.compile(
    "".join(rf"(?<![0-9][\s\S]{{{count}}})" for count in range(CONTEXT))
    + r"[2-6][0-9]{3}(?:[ \-]?[0-9]{4}){0,2} ?-?\n ?(?:[0-9]{4}(?:[ \-]?[0-9]{4}){0,2}|[0-9]{7})"
    rf"(?!{_NUMBER}{{0,8}}[0-9])"
)
_GROUP = re.compile("[0-9]+")
_SSN = re.compile(
    r"(?<![0-9])(?<![0-9]-)(?!000|666|9)[0-9]{3}([ \-.])"
    r"(?!00)[0-9]{2}\1(?!0000)[0-9]{4}(?![0-9])(?![.\-][0-9])"
)
_PHONE = re.compile(
    # +44 20 7946 0958: a plus, a country, 8 to 15 digits in all.
    r"(?<![0-9+])\+[1-9](?:[ ./()\-]{0,3}[0-9]){7,14}(?![0-9])"
    # (415) 555-0132, 1-415-555-0132: the North American plan.
    r"|(?<![0-9.+\-])(?:1[ .\-])?(?:\([2-9][0-9]{2}\)[ \-]?|[2-9][0-9]{2}[ .\-])"
    r"[2-9][0-9]{2}[ .\-][0-9]{4}(?![0-9])(?!-[0-9])"
    # 020 7946 0958: a trunk 0 and at least one break.
    r"|(?<![0-9.+/\-])\(?0[1-9][0-9]{1,3}\)?[ /\-][0-9]{3,4}(?:[ \-]?[0-9]{3,4})(?![0-9])(?!-[0-9])"
    # 06 12 34 56 78: a trunk 0 and pairs.
    r"|(?<![0-9.+/\-])0[1-9](?:[ .\-][0-9]{2}){4}(?![0-9])(?![.\-][0-9])"
    # 0044 20 7946 0958: an exit code, a country.
    r"|(?<![0-9][ \n\-])(?<![0-9.+/\-])00[1-9][0-9]{0,2}(?:[ ./()\-]{1,3}[0-9]{1,9}){1,4}(?![0-9])(?!-[0-9])"
)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}(?:[ \-\n]?[A-Za-z0-9]){11,30}")
_IPV4 = re.compile(r"(?<![0-9A-Za-z.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9A-Za-z])(?!\.[0-9])")
_IPV6 = re.compile(r"(?<![0-9A-Za-z:.])[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:.]{1,42}(?![0-9A-Za-z:])")

_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_BRANDS = re.compile(
    r"4(?:.{12}|.{15}|.{18})|5[1-5].{14}|2(?:22[1-9]|2[3-9].|[3-6]..|7[01].|720).{12}|3[47].{13}"
    r"|(?:5018|50[23]8|5893|6304|6759|676[1-3]).{8,15}|(?:6011|64[4-9].|65..).{12,15}|35(?:2[89]|[3-8].).{12,15}|(?:30[0-5].|3[689]..).{10,15}|62.{14,17}"
)


def _card_end(match: re.Match[str]) -> int | None:
    """The longest run of whole groups of digits that is a card number of a known brand.

    It is asked at every digit of a long run of numbers, so it turns most of them down early.
    """
    text = match[0]
    groups = _GROUP.findall(text)
    if text.count(".") == 1 or not _could_be_grouped(groups):
        return None  # A decimal fraction, or a table.
    number = "".join(groups)
    lengths = _lengths(number[:4])
    size = len(number)
    while size >= 13:
        if size in lengths and luhn(number[:size]) and _grouped(groups):
            return match.start() + _end_of(text, size)
        size -= len(groups.pop())
    return None


@lru_cache(10_000)
def _lengths(prefix: str) -> frozenset[int]:
    """How long the numbers are of the brand that these four digits begin."""
    return frozenset(size for size in range(13, 20) if _BRANDS.fullmatch(prefix.ljust(size, "0")))


def _could_be_grouped(groups: list[str]) -> bool:
    """Whether the first groups of digits stand as :func:`_grouped` asks."""
    return len(groups[0]) >= 4 or len(groups[0]) == len(groups[1]) == 1


def _grouped(groups: list[str]) -> bool:
    """Whether digits stand as cards are written, or each apart; a table's numbers are of any length."""
    sizes = list(map(len, groups))
    return (min(sizes) >= 3 and all(size >= 4 for size in sizes[:-1])) or max(sizes) == 1


def _end_of(text: str, digits: int) -> int:
    """Where in ``text`` so many digits end."""
    return [index for index, char in enumerate(text) if char.isdigit()][digits - 1] + 1


def _card_lines_end(match: re.Match[str]) -> int | None:
    number = "".join(char for char in match[0] if char.isdigit())
    return (
        match.end()
        if len(number) in (15, 16) and len(number) in _lengths(number[:4]) and luhn(number)
        else None
    )


def _phone_end(match: re.Match[str]) -> int | None:
    """A number with an exit code has 8 to 15 digits in all, which its pattern alone does not say."""
    return match.end() if sum(map(str.isdigit, match[0])) > 7 + 2 * match[0].startswith("00") else None


def _ipv4_end(match: re.Match[str]) -> int | None:
    return match.end() if _public_address(match[0]) else None


def _ipv6_end(match: re.Match[str]) -> int | None:
    # A full stop or colon behind the address belongs to the sentence.
    text = match[0].rstrip(".")
    text = text if text.endswith("::") else text.rstrip(":")
    return match.start() + len(text) if text.count(":") >= 2 and _public_address(text) else None


def _public_address(text: str) -> bool:
    """Private, loopback and documentation addresses identify nobody; nor does ``a::b`` in a program."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return address.is_global and (address.version == 4 or address in _GLOBAL_UNICAST)


_NUMBERS: dict[PiiEntity, tuple[Pattern, ...]] = {
    "CREDIT_CARD": (
        Pattern("CREDIT_CARD", 1.0, _CARD, _card_end),
        Pattern("CREDIT_CARD", 1.0, _CARD_LINES, _card_lines_end),
    ),
    "US_SSN": (Pattern("US_SSN", 0.85, _SSN),),
    "PHONE_NUMBER": (Pattern("PHONE_NUMBER", 0.75, _PHONE, _phone_end),),
}
_EMAIL_SCANNER = Scanner(
    (Pattern("EMAIL_ADDRESS", 1.0, _EMAIL),),
    re.compile(r"[A-Za-z0-9._%+'\-][A-Za-z0-9._%+'@\-]*+\Z"),
    longest=64 + 1 + 5 * 64 + 34 + 1,
    gate=re.compile("@"),
)
_IBAN_SCANNER = Scanner(
    (Pattern("IBAN_CODE", 1.0, _IBAN, lambda match: iban_end(match[0], match.start(), match.string)),),
    re.compile(chain("(?<![A-Za-z0-9])[A-Za-z]", "[A-Za-z]", "[0-9]", r"[0-9][A-Za-z0-9 \-\n]*+\Z")),
    longest=4 + 2 * 30 + 2,
    gate=re.compile(r"[A-Za-z]{2}[0-9]{2}"),
)
_IP_SCANNER = Scanner(
    (Pattern("IP_ADDRESS", 0.95, _IPV4, _ipv4_end), Pattern("IP_ADDRESS", 0.95, _IPV6, _ipv6_end)),
    re.compile(r"[0-9A-Fa-f:][0-9A-Fa-f:.]*+\Z"),
    longest=4 + 1 + 42 + 3,
    gate=re.compile(r"[0-9]\.[0-9]|:[0-9A-Fa-f:]"),
)


def pii_guard(entities: Iterable[PiiEntity]) -> PatternGuard:
    """The guard of policy kind ``pii``."""
    wanted = set(entities)
    scanners: list[Scanner] = []
    if "EMAIL_ADDRESS" in wanted:
        scanners.append(_EMAIL_SCANNER)
    if numbers := tuple(p for entity, patterns in _NUMBERS.items() if entity in wanted for p in patterns):
        scanners.append(
            Scanner(
                numbers,
                re.compile(rf"[0-9+(]{_NUMBER}*+\Z"),
                longest=5 + 4 * 18 + 9,
                gate=re.compile("[0-9]"),
            )
        )
    scanners.extend(scanner for entity, scanner in NAMED_NUMBERS.items() if entity in wanted)
    if "IBAN_CODE" in wanted:
        scanners.append(_IBAN_SCANNER)
    if "IP_ADDRESS" in wanted:
        scanners.append(_IP_SCANNER)
    if "PASSPORT" in wanted:
        scanners.extend(PASSPORT_SCANNERS)
    if "CRYPTO_ADDRESS" in wanted:
        scanners.append(CRYPTO_SCANNER)
    return PatternGuard(scanners)
