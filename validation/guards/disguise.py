"""What a disguised text says: further readings of a complete text, each led back to the original.

The view of :mod:`validation.guards.normalise` folds code points one by one. What is spread out ("j a n e"),
spelled out ("jane [at] example"), encoded (base64, hexadecimal, binary, percent and HTML escapes, rot13) or
written in digits ("1gn0r3") is undone here, in place and several layers deep, so that guards read it among
the words around it. Each character of a reading still knows the code points that it comes from: one that
was decoded stands for the whole encoded span. The plain view is judged, too, so a wrong reading hides
nothing; what is encoded in a way that is not among these stays hidden.

Only complete texts on their way to the model are read like this: to look through an encoding, a stream
would have to be held back for as long as it lasts.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import html
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from validation.guards.normalise import View, normalise

#: Encodings within encodings that are undone.
LAYERS = 3
#: Fewest code points of text that an encoded span must hold to be taken for one.
_SHORTEST = 6

# What follows a repetition that keeps all must not fail: each later start would run through it again.
# Repeated groups stand in atomic ones, (?>(?:…)*), here and in the guards: before Python 3.11.5 possessive
# ones, (?:…)*+, match wrong if a part of them may give back (cpython#106052).
_SPREAD = re.compile(r"(?<!\w)\S(?!\S)(?>(?:[ \t\n]{1,4}\S(?!\S)){3,})(?:[ \t\n]{1,4}\S(?!\w))?")
_WIDE = re.compile(r"\s{2,}+")
#: A sign that stands apart is a matrix product, too: ends of addresses that are no attributes of programs.
_ENDS = "com|org|net|edu|gov|info|biz|io|ai|dev|app|uk|de|fr|es|it|nl|ch|at|be|pl|eu|us|ca|au|jp|in|br|cn|ru"
_AT = re.compile(
    r"(?<=\w)\s{0,2}[\[({<]\s?(?:at|AT|At|@)\s?[\])}>]\s{0,2}(?=\w)"
    r"|(?<=\w)\s{1,2}@\s{1,2}(?!self\b)"
    rf"(?=(?:[\w\-]{{1,63}}(?: \. |\.)){{1,4}}(?:{_ENDS}|{_ENDS.upper()})(?![\w(\[\-]|\.\w))"
)
_DOT = re.compile(
    r"(?<=\w)\s{0,2}[\[({<]\s?(?:dot|DOT|Dot|\.)\s?[\])}>]\s{0,2}(?=[A-Za-z])|(?<=\w) \. (?=[a-z]{2,24}\b)"
)
_SAID = re.compile(
    r"(?<![\w.+\-])[\w+\-]{1,40}(?: dot [\w+\-]{1,40}){0,2}"
    r" at [\w\-]{2,40}(?: dot [\w\-]{2,40}){1,3}(?![\w\-])",
    re.IGNORECASE,
)
_SAID_SIGN = re.compile(r" (at|dot) ", re.IGNORECASE)

_B64 = r"[A-Za-z0-9+/_\-]"
_BASE64 = re.compile(rf"(?<![A-Za-z0-9+/_\-]){_B64}{{12,}}+(?>(?:\r?\n{_B64}{{4,}}+)*)={{0,2}}")
_HEX = re.compile(
    r"(?<![0-9A-Za-z])(?:0x)?[0-9A-Fa-f]{2}(?>(?:(?:[ :,]|\r?\n)?(?:0x)?[0-9A-Fa-f]{2}){5,})"
    r"|(?>(?:\\x[0-9A-Fa-f]{2}){4,})"
)
_BINARY = re.compile(r"(?<![0-9])[01]{8}(?>(?:\s?[01]{8}){5,})")
_PERCENT = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_ENTITY = re.compile(r"&(?:#[0-9]{2,7}|#[xX][0-9A-Fa-f]{2,6}|commat|period|lowbar|hyphen|plus|colon|num);")

#: Frequent words, and the beginnings of keys, after rot13.
_ROT13_WORDS = re.compile(
    r"\b(?:gur|naq|lbh|lbhe|nyy|sbe|jvgu|guvf|gung|abg|ner|unir|sebz|jvyy|pna|zr|lbhef|frperg|cnffjbeq|xrl"
    r"|vtaber|cerivbhf|vafgehpgvbaf?|flfgrz|cebzcg|erirny|sbetrg|rirelguvat|qvfertneq|ehyrf|abj|npg)\b"
)
_ROT13_KEYS = re.compile(
    r"\b(?:fx-[A-Za-z0-9]|N[XF]VN[A-Z0-9]{8}|tu[cbhfe]_|tvguho_cng|tycng-|kbk[no]-|us_[A-Za-z]{8}|rlW[A-Za-z0-9])"
    r"|ORTVA [N-ZA-M ]{0,24}CEVINGR"
)

_SEPARATED = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]([\-_.*|~/+])[A-Za-z](?>(?:\1[A-Za-z]){2,})")
_LEET_INSIDE = re.compile(r"[A-Za-z][013457@$!]{1,2}[A-Za-z]")
_LEET_WORD = re.compile(
    r"(?<![\w@$!])(?=[013457@$!]{0,12}[A-Za-z])[A-Za-z013457@$!]{2,30}(?<=[A-Za-z0-9])(?!\w)"
)
_LEET = str.maketrans("013457@$!", "oieastasi")


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read a text. ``words``: digits and signs were taken for letters, only words are right."""

    view: View
    words: bool


#: A part of a view and what stands there instead, each character with where in the view it comes from.
Edit = tuple[int, int, list[tuple[str, int, int]]]


def readings(view: View) -> list[Reading]:
    """What ``view`` may say besides what it shows; nothing for most texts."""
    found: list[Reading] = []
    exact = view
    for _ in range(LAYERS):
        before = exact
        gathered = _edited(exact, _gather(exact.text))
        gathered = _edited(gathered, _spell(gathered.text))
        exact = _edited(gathered, _decode(gathered.text))
        # A token that was spread out may look encoded, too: it is judged before it is decoded.
        found.extend(Reading(after, words=False) for after in _changed(before, gathered, exact))
        if exact is before:
            break
    turned = _rot13(exact)
    if turned is not exact:
        found.append(Reading(turned, words=False))
    words = _edited(exact, _letters(exact.text))
    if words is not exact:
        found.append(Reading(words, words=True))
    return found


def _changed(before: View, *steps: View) -> Iterator[View]:
    """Those of the views that follow one another that differ from the one before."""
    for after in steps:
        if after is not before:
            yield after
        before = after


def _edited(view: View, edits: Iterable[Edit]) -> View:
    """``view`` with the edits made, which come in order and apart; ``view`` itself if there are none."""
    text: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    position = 0
    for start, end, instead in edits:
        text.append(view.text[position:start])
        starts.extend(view.starts[position:start])
        ends.extend(view.ends[position:start])
        for chars, first, last in instead:
            text.append(chars)
            starts.extend([view.starts[first]] * len(chars))
            ends.extend([view.ends[last - 1]] * len(chars))
        position = end
    if not position:
        return view
    text.append(view.text[position:])
    starts.extend(view.starts[position:])
    ends.extend(view.ends[position:])
    return View("".join(text), starts, ends, view.size)


def _gather(text: str) -> Iterator[Edit]:
    """Runs of single characters with white space between them; wider spaces parted words."""
    for run in _SPREAD.finditer(text):
        before, at, domain = run[0].rpartition("@")
        if before and at and "." not in domain:
            continue  # A product of matrices, no address.
        instead: list[tuple[str, int, int]] = []
        for index in range(run.start(), run.end()):
            if not text[index].isspace():
                instead.append((text[index], index, index + 1))
            elif instead and _WIDE.match(text, index) and not text[index - 1].isspace():
                instead.append((" ", index, index + 1))
        yield run.start(), run.end(), instead


def _spell(text: str) -> Iterator[Edit]:
    """The at and the dots of an address that were spelled out, bracketed or set apart."""
    signs: list[tuple[int, int, str]] = []
    if "@" in text or "at" in text or "AT" in text or "At" in text:
        signs.extend((match.start(), match.end(), "@") for match in _AT.finditer(text))
        if signs or "@" in text:
            signs.extend((match.start(), match.end(), ".") for match in _DOT.finditer(text))
    if " dot " in text or " DOT " in text:
        for said in _SAID.finditer(text):
            for sign in _SAID_SIGN.finditer(text, said.start(), said.end()):
                signs.append((sign.start(), sign.end(), "@" if sign[1].lower() == "at" else "."))
    position = 0
    for start, end, shown in sorted(signs):
        if start >= position:
            yield start, end, [(shown, start, end)]
            position = end


def _decode(text: str) -> Iterator[Edit]:
    """Encoded spans that hold text."""
    spans: list[tuple[int, int, str]] = []
    for pattern, decode in _CODES:
        for match in pattern.finditer(text):
            spans.extend(decode(match))
    position = 0
    for start, end, decoded in sorted(spans, key=lambda span: (span[0], -span[1])):
        if start >= position:
            yield start, end, [(decoded, start, end)]
            position = end


def _from_base64(match: re.Match[str]) -> Iterator[tuple[int, int, str]]:
    whole = _text_of(_base64_bytes(match[0]))
    if whole:
        yield match.start(), match.end(), whole
        return
    if "\n" in match[0]:
        position = match.start()
        for line in match[0].split("\n"):
            if len(line) >= 12 and (part := _text_of(_base64_bytes(line))):
                yield position, position + len(line.rstrip("\r")), part
            position += len(line) + 1


def _base64_bytes(text: str) -> bytes:
    body = text.replace("\r", "").replace("\n", "").rstrip("=").translate(str.maketrans("-_", "+/"))
    body = body[: len(body) - (len(body) % 4 == 1)]
    try:
        return base64.b64decode(body + "=" * (-len(body) % 4))
    except binascii.Error:
        return b""


def _from_hex(match: re.Match[str]) -> Iterator[tuple[int, int, str]]:
    digits = re.sub(r"0x|\\x|[ :,\r\n]", "", match[0])
    if len(digits) % 2 == 0 and (decoded := _text_of(bytes.fromhex(digits))):
        yield match.start(), match.end(), decoded


def _from_binary(match: re.Match[str]) -> Iterator[tuple[int, int, str]]:
    bits = re.sub(r"\s", "", match[0])
    if decoded := _text_of(bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))):
        yield match.start(), match.end(), decoded


def _from_percent(match: re.Match[str]) -> Iterator[tuple[int, int, str]]:
    decoded = unquote_to_bytes(match[0]).decode("utf-8", "ignore")
    if decoded.isprintable():
        yield match.start(), match.end(), normalise(decoded).text


def _from_entity(match: re.Match[str]) -> Iterator[tuple[int, int, str]]:
    yield match.start(), match.end(), normalise(html.unescape(match[0])).text


def _text_of(data: bytes) -> str:
    """The view of UTF-8 text; nothing if that is not what it is. A stray byte in ten does not hide it."""
    decoded = data.decode("utf-8", "ignore")
    shown = "".join(char for char in decoded if char.isprintable() or char.isspace())
    if len(shown) < _SHORTEST or 10 * len(shown.encode()) < 9 * len(data):
        return ""
    return normalise(shown).text


_CODES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], Iterator[tuple[int, int, str]]]], ...] = (
    (_BASE64, _from_base64),
    (_HEX, _from_hex),
    (_BINARY, _from_binary),
    (_PERCENT, _from_percent),
    (_ENTITY, _from_entity),
)


def _rot13(view: View) -> View:
    """The view turned by 13 letters, if that makes words of it."""
    lowered = view.text.lower()
    if len({match[0] for match in _ROT13_WORDS.finditer(lowered)}) < 2 and not _ROT13_KEYS.search(view.text):
        return view
    return View(codecs.encode(view.text, "rot13"), view.starts, view.ends, view.size)


def _letters(text: str) -> Iterator[Edit]:
    """Words written with digits and signs for letters, or with a sign between each two letters."""
    edits: list[Edit] = []
    for run in _SEPARATED.finditer(text):
        edits.append(
            (run.start(), run.end(), [(text[i], i, i + 1) for i in range(run.start(), run.end(), 2)])
        )
    if _LEET_INSIDE.search(text):
        for word in _LEET_WORD.finditer(text):
            plain = word[0].replace("11", "ll").translate(_LEET)
            if plain != word[0]:
                at = word.start()
                edits.append((at, word.end(), [(c, at + i, at + i + 1) for i, c in enumerate(plain)]))
    position = 0
    for edit in sorted(edits, key=lambda edit: edit[:2]):
        if edit[0] >= position:
            yield edit
            position = edit[1]
