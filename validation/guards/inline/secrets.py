"""Credentials by the forms that their makers gave them, so that they can be recognised."""

from __future__ import annotations

import re

from validation.guards.inline.passwords import PASSWORD_SCANNERS
from validation.guards.scan import Pattern, PatternGuard, Scanner, chain, trie, trie_pattern

_ALONE = "(?<![A-Za-z0-9])"
_BODY = r"[A-Za-z0-9_.+/=\-]"
_PRIVATE_BODY = 16_000


def _with_digits(match: re.Match[str]) -> int | None:
    """Random keys of this length have digits; hyphenated words have not."""
    return match.end() if any(char.isdigit() for char in match[0]) else None


def _token(label: str, pattern: str, random: bool = False) -> Pattern:
    return Pattern(label, 1.0, re.compile(_ALONE + pattern), _with_digits if random else None)


_TOKENS = (
    _token("AWS_ACCESS_KEY", r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])"),
    _token("ANTHROPIC_KEY", r"sk-ant-[A-Za-z0-9_\-]{16,256}"),
    _token("OPENAI_KEY", r"sk-(?!ant-)[A-Za-z0-9_\-]{16,256}", random=True),
    _token("HUGGINGFACE_TOKEN", r"hf_[A-Za-z0-9]{24,64}"),
    _token("GOOGLE_API_KEY", r"AIza[A-Za-z0-9_\-]{35}"),
    _token("GOOGLE_OAUTH", r"(?:GOCSPX-[A-Za-z0-9_\-]{20,64}|ya29\.[A-Za-z0-9_\-]{20,512})"),
    _token("GITHUB_TOKEN", r"(?:gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_[A-Za-z0-9_]{22,255})"),
    _token("GITLAB_TOKEN", r"gl(?:pat|dt|rt|cbt|ptt|ft|soat)-[A-Za-z0-9_\-.]{20,96}", random=True),
    _token("SLACK_TOKEN", r"(?:xox[abeoprs]|xapp)-[A-Za-z0-9\-]{10,255}", random=True),
    _token("SLACK_WEBHOOK", r"hooks\.slack\.com/[a-z]{1,12}/[A-Za-z0-9/]{20,120}", random=True),
    _token("STRIPE_KEY", r"(?:[sr]k_(?:live|test)|whsec)_[A-Za-z0-9+/=]{16,255}", random=True),
    _token("JWT", r"eyJ[A-Za-z0-9_\-]{8,1024}\.eyJ[A-Za-z0-9_\-]{8,4096}\.[A-Za-z0-9_\-]{8,1024}"),
)
_PREFIXES = (
    *(
        "AKIA",
        "ASIA",
        "ABIA",
        "ACCA",
        "sk-",
        "hf_",
        "AIza",
        "GOCSPX-",
        "ya29.",
        "ghp_",
        "gho_",
        "ghu_",
        "ghs_",
        "ghr_",
        "github_pat_",
    ),
    *("glpat-", "gldt-", "glrt-", "glcbt-", "glptt-", "glft-", "glsoat-", "hooks.slack.com/", "whsec_"),
    *("xoxa", "xoxb", "xoxe", "xoxo", "xoxp", "xoxr", "xoxs", "xapp-", "eyJ"),
    *("sk_live_", "sk_test_", "rk_live_", "rk_test_"),
)
_PREFIX_TRIE = trie([re.escape(char) for char in prefix] for prefix in _PREFIXES)
_TOKEN_SCANNER = Scanner(
    _TOKENS,
    re.compile(_ALONE + "(?!\\Z)" + trie_pattern(_PREFIX_TRIE, _BODY + r"*+\Z", unfinished=True)),
    longest=3 + 1024 + 4 + 4096 + 1 + 1024 + 2,
    gate=re.compile(trie_pattern(_PREFIX_TRIE)),
)

# A secret access key has no form but its length: only what is called one is taken for one.
_BREAK = r"[_ \-]"
_AWS_NAMES = trie(
    [*first, *"secret", *second, *access, *"key"]
    for first in ([], [*"aws"], [*"aws", _BREAK])
    for second in ([], [_BREAK])
    for access in ([], [*"access"], [*"access", _BREAK])
)
_AWS_SECRET_SCANNER = Scanner(
    (
        Pattern(
            "AWS_SECRET_KEY",
            0.95,
            re.compile(trie_pattern(_AWS_NAMES, r"[\"'` \t:=>]{1,8}[a-z0-9/+]{40}(?![a-z0-9/+])")),
        ),
    ),
    re.compile("(?!\\Z)" + trie_pattern(_AWS_NAMES, r"[\"'` \t:=>a-z0-9/+]*+\Z", unfinished=True)),
    longest=20 + 8 + 40 + 1,
    gate=re.compile("secret"),
    folded=True,
)

_BEGIN = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_END = re.compile(r"-----END [A-Z0-9 ]{1,48}-----")
_KEY_LINES = re.compile(r"(?:\s{0,4}[A-Za-z0-9+/=]{16,128}){0,120}")


def _private_key_end(match: re.Match[str]) -> int | None:
    """Where a key's block ends. One without its last line (cut off) still gives its key away."""
    begin = match.end()
    # Two cheap searches: one pattern for the whole block would take quadratic time on many first lines.
    end = _END.search(match.string, begin, begin + _PRIVATE_BODY + 64)
    if end and end.start() <= begin + _PRIVATE_BODY:
        return end.end()
    lines = _KEY_LINES.match(match.string, begin)
    return lines.end() if lines else begin


_PRIVATE_KEY_SCANNER = Scanner(
    (Pattern("PRIVATE_KEY", 1.0, _BEGIN, _private_key_end),),
    re.compile(
        chain(
            *"-----BEGIN",
            r" [A-Z0-9 ]{0,60}+(?:\Z|(?:(?<=PRIVATE KEY)|(?<=KEY BLOCK))-(?:\Z|-(?:\Z|-(?:\Z|-(?:\Z|-"
            r"[^\-]*+(?>(?:-(?!----END )[^\-]*+)*)(?:-----END [A-Z0-9 ]{0,48}+-{0,4}+)?\Z)))))",
        )
    ),
    longest=72 + _PRIVATE_BODY + 64,
    gate=re.compile("-----BEGIN [A-Z0-9 ]{0,60}PRIVATE KEY"),
)


def secrets_guard() -> PatternGuard:
    """The guard of policy kind ``secrets``."""
    return PatternGuard((_TOKEN_SCANNER, _AWS_SECRET_SCANNER, _PRIVATE_KEY_SCANNER, *PASSWORD_SCANNERS))
