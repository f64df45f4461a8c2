"""Checksums that tell a card or an account from any other number."""

from __future__ import annotations

# ISO 13616: characters of an IBAN by country.
_IBAN_LENGTHS: dict[str, int] = {
    country: int(length)
    for length, countries in {
        "15": "NO",
        "16": "BE",
        "18": "DK FI FO GL NL SD",
        "19": "MK SI",
        "20": "AT BA EE KZ LT LU MN XK",
        "21": "CH HR LI LV",
        "22": "BG BH CR DE GB GE IE ME RS VA",
        "23": "AE GI IL IQ OM SO TL",
        "24": "AD CZ DZ ES MD PK RO SA SE SK TN VG",
        "25": "LY PT ST",
        "26": "IS TR",
        "27": "BI DJ FR GR IT MC MR SM",
        "28": "AL AZ BY CY DO GT HN HU LB NI PL SV",
        "29": "BR EG PS QA UA",
        "30": "JO KW MU YE",
        "31": "MT SC",
        "32": "LC",
        "33": "RU",
    }.items()
    for country in countries.split()
}


def luhn(digits: str) -> bool:
    """Whether a string of ASCII digits ends in its Luhn check digit."""
    total = 0
    for index, char in enumerate(reversed(digits)):
        digit = ord(char) - 48
        if index % 2:
            digit = digit * 2 - 9 if digit > 4 else digit * 2
        total += digit
    return total % 10 == 0


def iban(text: str) -> bool:
    """Whether ``text``, letters and digits only, has its country's length and a right checksum (mod 97)."""
    text = text.upper()
    if _IBAN_LENGTHS.get(text[:2]) != len(text):
        return False
    return int("".join(str(int(char, 36)) for char in text[4:] + text[:4])) % 97 == 1


def iban_end(candidate: str, start: int, text: str) -> int | None:
    """Where in ``text`` the IBAN that begins ``candidate`` (at ``start``) ends; None if it is none."""
    wanted = _IBAN_LENGTHS.get(candidate[:2].upper())
    if wanted is None:
        return None
    letters: list[str] = []
    for index, char in enumerate(candidate):
        if char not in " -":
            letters.append(char)
        if len(letters) == wanted:
            end = start + index + 1
            glued = end < len(text) and text[end].isascii() and text[end].isalnum()
            return end if not glued and iban("".join(letters)) else None
    return None
