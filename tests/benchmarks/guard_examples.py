"""Made-up personal data and secrets, several forms a family, with valid checksums; and their disguises."""

import base64
import hashlib
import ipaddress
import json
import random
import string
from collections.abc import Callable
from itertools import pairwise

from validation.guards.inline.checksums import luhn, mrz_digit

Make = Callable[[random.Random], str]
_ALNUM = string.ascii_letters + string.digits
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"


def _of(chance: random.Random, letters: str, count: int) -> str:
    return "".join(chance.choices(letters, k=count))


def _key(chance: random.Random, count: int, more: str = "") -> str:
    """Random letters and digits, as keys are, with at least one digit."""
    return _of(chance, _ALNUM + more, count - 2) + _of(chance, string.digits, 1) + _of(chance, _ALNUM, 1)


def email(chance: random.Random) -> str:
    name = chance.choice(("jane.doe", "j_smith88", "Anna-Lena", "o'neill", "sales+eu", "x7"))
    host = chance.choice(
        ("example.com", "mail.example.co.uk", "uni-berlin.example.de", "acme.io", "a1.museum")
    )
    return f"{name}{chance.randrange(100)}@{host}"


def card(chance: random.Random) -> str:
    prefix, size = chance.choice(
        (("4", 16), ("51", 16), ("2221", 16), ("37", 15), ("6011", 16), ("3566", 16))
    )
    body = prefix + _of(chance, string.digits, size - len(prefix) - 1)
    number = next(body + digit for digit in string.digits if luhn(body + digit))
    groups = [4, 6, 5] if size == 15 else [4] * 4
    glue = chance.choice(("", " ", "-", "\n", "."))
    if glue == "\n":
        return number[:8] + "\n" + number[8:]
    cuts = [sum(groups[:index]) for index in range(len(groups) + 1)]
    return glue.join(number[a:b] for a, b in pairwise(cuts))


def phone(chance: random.Random) -> str:
    d = "".join(str(chance.randrange(2, 10)) for _ in range(12))
    return chance.choice(
        (
            f"+1 {d[:3]}-{d[3:6]}-{d[6:10]}",
            f"({d[:3]}) {d[3:6]}-{d[6:10]}",
            f"{d[:3]}.{d[3:6]}.{d[6:10]}",
            f"+44 20 {d[:4]} {d[4:8]}",
            f"+49 (0)30 {d[:7]}",
            f"+33{d[:9]}",
            f"0{d[:3]} {d[3:7]} {d[7:10]}",
            f"06 {d[:2]} {d[2:4]} {d[4:6]} {d[6:8]}",
            f"0044 20 {d[:4]} {d[4:8]}",
        )
    )


def iban(chance: random.Random) -> str:
    country, size = chance.choice((("DE", 22), ("FR", 27), ("ES", 24), ("NL", 18), ("CH", 21), ("NO", 15)))
    body = _of(chance, string.digits, size - 4)
    number = int(body + "".join(str(int(char, 36)) for char in country) + "00")
    whole = f"{country}{98 - number % 97:02d}{body}"
    if chance.random() < 0.5:
        return whole
    return " ".join(whole[at : at + 4] for at in range(0, size, 4))


def ssn(chance: random.Random) -> str:
    glue = chance.choice("- .")
    return f"{chance.randrange(100, 600)}{glue}{chance.randrange(10, 99)}{glue}{chance.randrange(1000, 9999)}"


def ip(chance: random.Random) -> str:
    while True:
        if chance.random() < 0.7:
            address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.IPv4Address(
                chance.getrandbits(32)
            )
            if address.is_global and not address.is_multicast:
                return str(address)
        else:
            address = ipaddress.IPv6Address((0x2A00 << 112) | chance.getrandbits(80))
            return chance.choice((str(address), address.exploded))


def passport(chance: random.Random) -> str:
    if chance.random() < 0.3:
        number = _of(chance, string.ascii_uppercase + string.digits, 9)
        birth, expiry = f"{chance.randrange(100):02d}0412", f"{chance.randrange(24, 36)}1103"
        head = f"{number}{mrz_digit(number)}UTO{birth}{mrz_digit(birth)}F{expiry}{mrz_digit(expiry)}"
        return head + "<" * 15 + "0"
    letters = _of(chance, string.ascii_uppercase, chance.randrange(3))
    return letters + _of(chance, string.digits, 9 - len(letters))


def crypto(chance: random.Random) -> str:
    kind = chance.randrange(3)
    if kind == 0:
        return "0x" + _of(chance, "0123456789abcdef", 40)
    if kind == 1:
        return _bech32(chance)
    data = bytes([chance.choice((0, 5))]) + chance.randbytes(20)
    data += hashlib.sha256(hashlib.sha256(data).digest()).digest()[:4]
    number, text = int.from_bytes(data, "big"), ""
    while number:
        number, rest = divmod(number, 58)
        text = _BASE58[rest] + text
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + text


def _bech32(chance: random.Random) -> str:
    data = [0, *(chance.randrange(32) for _ in range(32))]

    def residue(values: list[int]) -> int:
        checksum = 1
        for value in values:
            top = checksum >> 25
            checksum = (checksum & 0x1FFFFFF) << 5 ^ value
            for bit, step in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
                checksum ^= step if top >> bit & 1 else 0
        return checksum

    rest = residue([3, 3, 0, 2, 3, *data, 0, 0, 0, 0, 0, 0]) ^ 1
    return "bc1" + "".join(_BECH32[value] for value in [*data, *(rest >> 5 * (5 - i) & 31 for i in range(6))])


def _jwt(chance: random.Random) -> str:
    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    claims = {"sub": _key(chance, 10), "iat": chance.randrange(10**9, 2 * 10**9)}
    head = json.dumps({"alg": "HS256", "typ": "JWT"})
    return f"{part(head.encode())}.{part(json.dumps(claims).encode())}.{part(chance.randbytes(32))}"


def _pem(chance: random.Random) -> str:
    kind = chance.choice(("", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "))
    lines = "\n".join(_of(chance, _ALNUM + "+/", 64) for _ in range(chance.randrange(3, 12)))
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{lines}\n-----END {kind}PRIVATE KEY-----"


def _password(chance: random.Random) -> str:
    return chance.choice(
        (
            _key(chance, chance.randrange(8, 20), "!#&*?"),
            f"{chance.choice(('Summer', 'dragon', 'Berlin'))}{chance.randrange(1950, 2030)}!",
            f"correct-horse-{chance.randrange(1000)}-staple",
        )
    )


def _any(*makes: Make) -> Make:
    return lambda chance: chance.choice(makes)(chance)


def _prefixed(prefix: str, count: int, more: str = "") -> Make:
    return lambda chance: prefix + _key(chance, count, more)


#: By family: the guard's label, how one is made, and what stands before it.
PII: dict[str, tuple[str, Make, tuple[str, ...]]] = {
    "e-mail": ("EMAIL_ADDRESS", email, ("Please write to ", "my address is ", "cc: ", "<")),
    "phone": ("PHONE_NUMBER", phone, ("Call me at ", "tel: ", "you reach us under ")),
    "card": ("CREDIT_CARD", card, ("My card is ", "charge ", "cc no. ")),
    "IBAN": ("IBAN_CODE", iban, ("Please pay to ", "IBAN: ", "account=")),
    "SSN": ("US_SSN", ssn, ("My SSN is ", "social security number: ", "it says ")),
    "IP": ("IP_ADDRESS", ip, ("The login came from ", "host=", "ping ")),
    "passport": ("PASSPORT", passport, ("passport number ", "Passport: ", "my passport no. is ")),
    "crypto address": ("CRYPTO_ADDRESS", crypto, ("Send the coins to ", "wallet: ", "to=")),
}
_USES = ("Why does this key fail: ", "export KEY=", "Authorization: ", 'token = "')
SECRETS: dict[str, tuple[str, Make, tuple[str, ...]]] = {
    "AWS access key": (
        "AWS_ACCESS_KEY",
        lambda c: "AKIA" + _of(c, string.ascii_uppercase + "234567", 16),
        _USES,
    ),
    "AWS secret key": (
        "AWS_SECRET_KEY",
        lambda c: c.choice(("aws_secret_access_key = ", "SecretAccessKey: ")) + _key(c, 40, "+/"),
        ("[default]\n", "My ", "with "),
    ),
    "GitHub": (
        "GITHUB_TOKEN",
        _any(*(_prefixed(f"gh{c}_", 36) for c in "pousr"), _prefixed("github_pat_", 82, "_")),
        _USES,
    ),
    "GitLab": ("GITLAB_TOKEN", _any(_prefixed("glpat-", 20), _prefixed("gldt-", 20)), _USES),
    "Slack": (
        "SLACK_TOKEN",
        lambda c: (
            f"xox{c.choice('bpa')}-{c.randrange(10**11, 10**12)}-{c.randrange(10**11, 10**12)}-{_key(c, 24)}"
        ),
        _USES,
    ),
    "Stripe": (
        "STRIPE_KEY",
        _any(_prefixed("sk_live_", 24), _prefixed("rk_live_", 99), _prefixed("sk_test_", 24)),
        _USES,
    ),
    "Google": ("GOOGLE_API_KEY", _prefixed("AIza", 35, "_-"), _USES),
    "OpenAI, old": ("OPENAI_KEY", lambda c: f"sk-{_key(c, 20)}T3BlbkFJ{_key(c, 20)}", _USES),
    "OpenAI, new": (
        "OPENAI_KEY",
        _any(_prefixed("sk-proj-", 148, "_-"), _prefixed("sk-svcacct-", 120, "_-")),
        _USES,
    ),
    "Anthropic": ("ANTHROPIC_KEY", lambda c: f"sk-ant-api03-{_key(c, 93, '_-')}AA", _USES),
    "Hugging Face": ("HUGGINGFACE_TOKEN", lambda c: "hf_" + _of(c, string.ascii_letters, 34), _USES),
    "JWT": ("JWT", _jwt, ("Authorization: Bearer ", "cookie=", "decode ")),
    "PEM": ("PRIVATE_KEY", _pem, ("here it is:\n", 'key = """', "")),
    "assigned password": (
        "PASSWORD",
        _password,
        ("password: ", "my password is ", "DB_PASSWORD=", '{"user": "app", "password": "', "passwd = '"),
    ),
}
_AFTER = {
    'token = "': '"',
    '{"user": "app", "password": "': '"}',
    "passwd = '": "'",
    "<": ">",
    'key = """': '"""',
}


def spaced(text: str) -> str:
    """A space between each two characters."""
    return " ".join(text)


def full_width(text: str) -> str:
    """Printable ASCII as its full-width forms."""
    return "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in text)


def zero_width(text: str) -> str:
    """An invisible character between each two characters."""
    return "\u200b".join(text)


DISGUISES: dict[str, Callable[[str], str]] = {
    "spaced": spaced,
    "full-width": full_width,
    "zero-width": zero_width,
}


def planted(
    chance: random.Random, make: Make, before: tuple[str, ...], disguise: Callable[[str], str] | None = None
) -> tuple[str, int, int]:
    """A text with one example in it, and where it stands."""
    lead = chance.choice(before)
    what = make(chance)
    if disguise:
        what = disguise(what)
    start = chance.choice(("", "Hello there. ", "Line one\n\n", "Grüße, "))
    end = _AFTER.get(lead) or chance.choice(("", ".", ", thank you very much.", "\nRegards", " and then?"))
    return f"{start}{lead}{what}{end}", len(start) + len(lead), len(start) + len(lead) + len(what)
