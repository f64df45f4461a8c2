"""Swearing, slurs and sexual words: an English word list with common inflections.

A list knows no tone: it finds what is quoted or meant kindly, and misses every insult in decent words. What
has a decent sense or is a name (a cock, a prick of conscience, Van Dyke, Maine Coon) is left out. Leet and
spelled-out forms are looked through on their way to the model (:mod:`validation.guards.disguise`).
"""

from __future__ import annotations

from collections.abc import Iterable

from validation.guards.inline.ban_list import list_scanner
from validation.guards.normalise import lower, normalise
from validation.guards.scan import PatternGuard
from validation.guards.specs import ProfanityGroup

#: Stems with the endings that they take, parted by "|".
_STEMS: dict[ProfanityGroup, str] = {
    "swearing": """
        fuck|s|ed|er|ers|in|ing|face|wit|wits|tard|tards|up motherfuck|er|ers|ing clusterfuck|s mindfuck|s
        shit|s|ty|ting|ted|head|heads|hole|holes|show|storm|faced bullshit|s|ting|ter horseshit dipshit|s
        batshit dogshit apeshit ass asses asshole|s arse|s arsehole|s jackass|es dumbass|es smartass|es
        badass|es fatass|es asshat|s bitch|es|y|ing|ed bastard|s dickhead|s dickwad|s douchebag|s
        wank|s|er|ers|ing twat|s bollocks bugger|s|ed piss|ed|es|ing pissant|s goddamn|ed goddammit
        cuntface|s cunt|s|y shithouse|s wtf stfu gtfo milf|s
    """,
    "slurs": """
        nigger|s nigga|s niggaz faggot|s|y fag|s fagg|s tranny trannies shemale|s retard|s|ed
        kike|s spic|s gook|s wetback|s beaner|s paki|s raghead|s towelhead|s sandnigger|s
        darkie|s jigaboo|s golliwog|s gyppo|s pikey|s dago|s
    """,
    "sexual": """
        blowjob|s handjob|s rimjob|s cumshot|s jizz|ed jism boner|s dildo|s titties titty
        tits pussy pussies slut|s|ty whore|s skank|s|y horny cocksucker|s cocksucking cuckold|s
        gangbang|s|ed|ing deepthroat|s|ed|ing bukkake creampie|s fap|ping masturbat|e|es|ed|ing
    """,
}


def words_of(group: ProfanityGroup) -> list[str]:
    """The words of a part of the list."""
    found: list[str] = []
    for entry in _STEMS[group].split():
        stem, *endings = entry.split("|")
        # A stem that is no word of its own takes an ending always.
        found.extend([] if stem in _STEMS_ALONE else [stem])
        found.extend(stem + ending for ending in endings)
    return found


_STEMS_ALONE = frozenset({"masturbat", "fagg"})


def profanity_guard(
    groups: Iterable[ProfanityGroup], more: Iterable[str], allowed: Iterable[str]
) -> PatternGuard:
    """The guard of policy kind ``profanity``."""
    left_out = {_folded(word) for word in allowed}
    words = [word for group in groups for word in words_of(group)] + list(more)
    return PatternGuard(
        [list_scanner({"PROFANITY": [word for word in words if _folded(word) not in left_out]})], "words"
    )


def _folded(word: str) -> str:
    return lower(normalise(word).text).strip()
