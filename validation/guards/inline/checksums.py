"""Checksums that tell a card, an account, a passport or a coin's address from any other word."""

from __future__ import annotations

import hashlib

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


#: ASCII digits to what they count doubled.
_DOUBLED = bytes.maketrans(b"0123456789", bytes((0, 2, 4, 6, 8, 1, 3, 5, 7, 9)))
_ONCE = bytes.maketrans(b"0123456789", bytes(range(10)))


def luhn(digits: str) -> bool:
    """Whether a string of ASCII digits ends in its Luhn check digit."""
    backwards = digits.encode()[::-1]
    return (sum(backwards[::2].translate(_ONCE)) + sum(backwards[1::2].translate(_DOUBLED))) % 10 == 0


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
        if char not in " -\n":
            letters.append(char)
        if len(letters) == wanted:
            end = start + index + 1
            glued = end < len(text) and text[end].isascii() and text[end].isalnum()
            return end if not glued and iban("".join(letters)) else None
    return None


def mrz_digit(field: str) -> str:
    """The check digit of a field of a machine-readable travel document (ICAO 9303)."""
    weights = (7, 3, 1)
    return str(sum(weights[i % 3] * (0 if c == "<" else int(c, 36)) for i, c in enumerate(field)) % 10)


_BASE58 = {char: n for n, char in enumerate("123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz")}


def base58check(text: str) -> bool:
    """Whether ``text`` is a version byte, a hash of 20 bytes and their checksum in base 58 (Bitcoin)."""
    number = 0
    for char in text:
        if char not in _BASE58:
            return False
        number = number * 58 + _BASE58[char]
    if number >> 200:
        return False
    data = number.to_bytes(25, "big")
    zeros = len(data) - len(data.lstrip(b"\0"))
    if zeros != len(text) - len(text.lstrip("1")):
        return False
    return hashlib.sha256(hashlib.sha256(data[:-4]).digest()).digest()[:4] == data[-4:]


_BECH32 = {char: n for n, char in enumerate("qpzry9x8gf2tvdw0s3jn54khce6mua7l")}
_BECH32_STEPS = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)


def bech32(text: str) -> bool:
    """Whether ``text`` ends in the checksum of its segwit address, old or new (BIP 173, BIP 350)."""
    prefix, _, data = text.lower().rpartition("1")
    if any(char not in _BECH32 for char in data):
        return False
    values = [ord(char) >> 5 for char in prefix] + [0] + [ord(char) & 31 for char in prefix]
    checksum = 1
    for value in values + [_BECH32[char] for char in data]:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value
        for bit, step in enumerate(_BECH32_STEPS):
            checksum ^= step if top >> bit & 1 else 0
    return checksum in (1, 0x2BC830A3)
