"""Texts with planted findings, for property tests: plain, disguised, broken and adversarial."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import strategies as st

EMAIL = "joe.bloggs+x@mail.example.co.uk"
CARD = "4111 1111 1111 1111"
SECRETS = (
    "sk-proj-Ab12Cd34Ef56Gh78Ij90Kl12",
    "sk-ant-api03-Zz11Yy22Xx33Ww44Vv55",
    "AKIAIOSFODNN7EXAMPLE",
    "hf_abcdefghijklmnopqrstuvwxyz0123456789",
    "AIzaSyA1234567890abcdefghijklmnopqrstuv",
    "ghp_0123456789abcdefghijklmnopqrstuvwxyz",
    "xoxb-123456789012-abcdefGHIJKL",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
    "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA1c7\nabc-def\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcw\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcw",
)
PASSWORDS = (
    "password: Tr0ub4dor&3",
    "PASSWORD='correct-horse-battery'",
    "my password is hunter2x.",
    "postgres://app:s3cret!x@db.example.org/app",
)
PII = (
    "passport number is X1234567",
    "L898902C36UTO7408122F1204159ZE184226B<<<<<10",
    "1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2",
    "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq",
    "0x52908400098527886E0F7030069857D2E4169EE7",
    "call me at 4155550132",
    "SSN 078051120",
    "4111 1111\n1111 1111",
    "06 12 34 56 78",
    "0044 20 7946 0958",
    EMAIL,
    CARD,
    "5555-5555-5555-4444",
    "378282246310005",
    "+44 20 7946 0958",
    "(415) 555-0132",
    "1-415-555-0132",
    "020 7946 0958",
    "DE89 3704 0044 0532 0130 00",
    "GB29NWBK60161331926819",
    "078-05-1120",
    "8.8.8.8",
    "2001:4860:4860::8888",
)
BROKEN = (
    *("joe@", "@example.com", "4111 1111 1111 1112", "sk-", "sk-proj-", "AKIA", "eyJ", "eyJabcdefghijk.eyJ"),
    *("-----BEGIN ", "-----BEGIN CERTIFICATE-----", "-----BEGIN PRIVATE KEY", "DE89", "GB29 NWBK", "1.2.3."),
    *(
        "::",
        "+1",
        "(415)",
        "---",
        "aws",
        "password is",
        "pwd = pass",
        "passport no",
        "call",
        "http://a:b",
        "aws secret",
        "aws_secret_key",
        "forbid",
        "forbidd",
        "very",
        "very  ba",
    ),
    *("<|im_", "ＡＫＩＡ", "0x", "12 34 56", "4111.1111", "1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0"),
    *("a" * 70, "1" * 70),
)
BANNED = ("forbidden", "very bad", "very bad word", "<|im_start|>", "naïve", "forb", "c++")
PIECES = (
    *PII,
    *PASSWORDS,
    *SECRETS,
    *BROKEN,
    *BANNED,
    "word",
    "The",
    "in 2024,",
    "I",
    "$ 3.50",
    "été",
    "日本語",
    "😀",
    "\u0430\u0435",
)
GLUE = (
    "",
    "",
    " ",
    " ",
    " ",
    "\n",
    ". ",
    ", ",
    "-",
    "@",
    "\u200b",
    "\u0301",
    "  ",
    "\u00ad",
    "½",
    "ﬁ",
    "㏂",
    ":",
    '"',
)


def disguise(text: str, kind: int, seed: int) -> str:
    """The same to a reader: full-width, with invisible characters, or with look-alikes."""
    chance = random.Random(seed)
    if kind == 1:
        return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" and chance.random() < 0.5 else c for c in text)
    if kind == 2:
        return "".join(c + "\u200b" * (chance.random() < 0.3) for c in text)
    if kind == 3:
        return text.translate(str.maketrans("aeo", "\u0430\u0435\u043e"))
    return text


_disguised = st.builds(disguise, st.sampled_from(PIECES), st.sampled_from((0, 0, 1, 2, 3)), st.integers(0, 9))
_junk = st.text(st.sampled_from("aZ09 @.-_+/()<|>:\n\u200b\u0301é½ｓ١ſk"), max_size=12)
texts = st.lists(st.tuples(st.one_of(_disguised, _disguised, _junk), st.sampled_from(GLUE)), max_size=14).map(
    lambda parts: "".join(piece + glue for piece, glue in parts)
)
cuts = st.one_of(
    st.just(1), st.integers(2, 40), st.lists(st.integers(0, 400), max_size=25)
)  # a constant size of pieces, or positions


def pieces(text: str, how: int | list[int]) -> list[str]:
    """``text`` cut into pieces, none or more of them empty."""
    if isinstance(how, int):
        return [text[i : i + how] for i in range(0, len(text), how)]
    positions = [0, *sorted(min(p, len(text)) for p in how), len(text)]
    return [text[a:b] for a, b in pairwise(positions)]
