"""The phrases of the injection heuristic, with their weights.

Patterns read the lower-case view, and every repetition in them is bounded: none matches more than
:data:`LONGEST` characters.
"""

from __future__ import annotations

#: Longest match of any phrase, in characters of the view, look-ahead included.
LONGEST = 320


def _any(*alternatives: str) -> str:
    return f"(?:{'|'.join(alternatives)})"


def _words(text: str) -> list[str]:
    return text.split()


def _within(characters: int) -> str:
    """At most so many characters of anything, between two words."""
    return rf"\b.{{0,{characters}}}\b"


_DROP = _any(
    *_words("ignor(?:e|ing) disregard(?:ing)? forget"),
    *_words("overrid(?:e|ing) bypass(?:ing)? circumvent(?:ing)? discard"),
    *_words("dismiss abandon(?:ing)? suspend neglect disobey disable deactivate"),
    *_words("unlock evade sidestep nullify supersedes?"),
    "(?:do not|don't|stop|without) follow(?:ing)?",
    "(?:get|work)(?:ing)? around",
    "not bound by",
    "pay no attention to",
)
_WHOSE = _any(
    *_words("previous prior above earlier preceding former foregoing"),
    *_words("all any your these those the every initial"),
    *_words("original system safety content openai"),
    *_words("ethical behaviou?ral protective operational operating current"),
)
_RULES = _any(
    *_words(r"instruct\w{0,6} prompts? rules? guidelines?"),
    *_words(r"directions? directives? orders? commands? polic(?:y|ies)"),
    *_words(r"restrictions? programming training safeguards?"),
    *_words(r"filters? guardrails? constraints? limitations?"),
    *_words(r"boundaries protocols? protections? measures"),
)
_INNER = _any(
    *_words("system initial original hidden secret internal"),
    *_words("confidential concealed full complete entire exact"),
    *_words("starting base foundational operating operational underlying your"),
)
_PROMPT = _any(
    *_words(r"prompts? instructions? directives? configuration"),
    *_words(r"guidelines programming parameters restrictions"),
    "system message",
    "(?:initial|first|system|hidden) (?:text|message)",
)
_FREEDOM = _any(
    *_words(r"restrict\w{0,5} limit\w{0,7} filter\w{0,4} censor\w{0,5} rules? ethic\w{0,4} moral\w{0,4}"),
    *_words(r"guidelines? boundar\w{0,4} safety constraints? disclaimers?"),
)
_MODE = _any(
    *_words("developer debug admin(?:istrator)? god sudo maintenance"),
    *_words("unrestricted unfiltered evil root jailbreak"),
)
_UNBOUND = _any(
    *_words(r"do.anything jailbr\w{1,8} unrestricted unfiltered uncensored"),
    *_words("evil amoral unethical immoral malicious"),
    "developer mode",
    "not bound",
    "free (?:of|from)",
    rf"no (?:\w{{1,12}} ){{0,2}}{_FREEDOM}",
    rf"without (?:\w{{1,12}} ){{0,3}}{_FREEDOM}",
    r"(?:had|have) no ",
)
_BECOME = _any(
    "you are (?:now|going to)",
    "you're now",
    "from now on",
    "act(?:ing)? (?:as|like)",
    "pretend(?: to be| that| you)",
    "role-?play",
    "imagine (?:you|that you|an ai|a world)",
    "simulate",
    "you will (?:be|become|act|play)",
    "(?:take on|play|assume) the (?:role|persona)",
    "play an? (?:ai|character|model)",
    "(?:behave|respond|answer) (?:as|like)",
)

#: (kind, weight, pattern)
PHRASES: tuple[tuple[str, float, str], ...] = (
    ("override", 0.6, _DROP + _within(24) + _WHOSE + _within(32) + _RULES + r"\b"),
    (
        "forget",
        0.5,
        r"(?:ignore|disregard|forget)\s{1,4}(?:about\s{1,4})?(?:everything|all|anything|what(?:ever)?)"
        + _within(24)
        + r"(?:before|above|said|told|previous\w{0,2}|prior|learned|earlier|so far|up to now)\b",
    ),
    (
        "reveal",
        0.55,
        _any(
            *_words("reveal show print repeat output disclose"),
            *_words("display leak expose share recite dump extract"),
            *_words("paraphrase divulge summari[sz]e translate"),
            "tell me",
            "give me",
            "what(?:'s| is| are| was| were) your",
            "(?:request|want|need) your",
            "copy of your",
        )
        + rf"\b.{{0,32}}\b(?:{_INNER}\s{{1,4}}(?:\w{{1,16}}\s{{1,4}})?){{1,2}}"
        + _PROMPT
        + r"\b",
    ),
    ("persona", 0.55, _BECOME + r"\b.{0,120}\b" + _UNBOUND),
    (
        "do-anything",
        0.5,
        r"\bdo anything now|\bdan mode|\bstay a dan|\b(?:an?|as|like|called|named) dan\b|\bjailbroken"
        r"|\bjailbreak(?:ed)? (?:mode|prompt)",
    ),
    (
        "special-mode",
        0.5,
        rf"\b{_MODE} mode\b.{{0,32}}\b(?:enabled?|activated?|output|engaged|unlocked)\b"
        rf"|\b(?:enable|enter|activate|switch to|engage|unlock|go into|in) (?:the )?{_MODE} mode\b",
    ),
    (
        "suspended",
        0.5,
        rf"\b{_RULES}\s(?:\w{{1,12}}\s){{0,2}}(?:lifted|suspended|disabled|do not apply|don't apply"
        r"|no longer apply|don'?t exist|do not exist)",
    ),
    (
        "no-limits",
        0.4,
        rf"\b(?:without (?:any|moral|ethical|content|safety|the usual|your)|no longer (?:bound|restricted) by"
        rf"|free (?:of|from)) (?:\w{{1,12}} ){{0,2}}{_FREEDOM}"
        r"|\bbroken free (?:of|from)\b"
        r"|\b(?:unfiltered|uncensored|unrestricted|amoral)\b.{0,24}"
        r"\b(?:ai|responses?|answers?|chatbot|assistant|mode|bot)\b",
    ),
    (
        "never-refuse",
        0.4,
        r"\b(?:never|not|n't|cannot)\s{1,4}(?:ever\s{1,4})?"
        r"(?:refuse|decline|reject|say no|apologi[sz]e|break character"
        r"|mention (?:that )?(?:ethic|moral|openai|policy))",
    ),
    (
        "new-instructions",
        0.4,
        r"\b(?:new|updated|revised|real|actual|special|secret) (?:\w{1,12} )?"
        r"(?:instructions?|directives?|orders?|rules?)"
        r"\s{0,3}(?::|are\b|follow|override|supersede|from (?:the )?(?:admin|developer|system|openai))",
    ),
    (
        "forged-turn",
        0.4,
        r"<\|?(?:im_start|system|start_header_id)\|?>|\[/?(?:system|inst)\b.{0,12}\]|<</?sys>>"
        r"|#{2,4}\s{0,2}(?:system|new instruction|instruction)s?\b|'role': 'system'"
        r"|\n\s{0,4}system\s{0,2}(?:prompt|message|override)?\s{0,2}:|\bsystem (?:override|command)\b",
    ),
    (
        "comply",
        0.3,
        r"\b(?:comply with (?:all|any|every|my)|obey (?:all|any|my|every)"
        r"|answer (?:every|any|all|each) (?:\w{1,12} )?(?:question|request|prompt)s?"
        r"|fulfil?l? (?:any|every|all) (?:\w{1,12} )?request|everything (?:i|the user) (?:ask|say|want)"
        r"|regardless of (?:whether|legality|ethic))",
    ),
    (
        "alter-ego",
        0.3,
        r"\b(?:two (?:different )?(?:responses|answers|outputs)|stay in character|break(?:ing)? character"
        r"|hypothetical (?:response|dialogue)"
        r"|in this (?:fictional|hypothetical|imaginary) (?:world|scenario|universe)"
        r"|machiavelli|always intelligent and)",
    ),
    (
        "smuggled",
        0.35,
        r"\b(?:decode|decrypt|translate|interpret|base64|rot13)\b.{0,60}\b(?:and|then)\b.{0,16}"
        r"\b(?:follow|execute|obey|comply|do (?:it|what)|act on|carry out)\b",
    ),
    (
        "authority",
        0.3,
        r"\b(?:admin(?:istrator)?|root|owner|developer|sudo|superuser|my)(?:-level)? "
        r"(?:access|authori[sz]ation|authority|permissions?|privileges?|override)\b",
    ),
)
