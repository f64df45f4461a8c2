"""Personal data in a text: where it stands, and what is to become of it.

The entities that guards know are found by the guards' own patterns, so that what is kept from training is
what is kept from a model's answers. Any other name is Presidio's. Most texts hold nothing that any pattern
could match; a look for that spares them the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from validation.data.verdict import Rule, Verdict
from validation.guards.inline.pii import pii_guard
from validation.guards.normalise import View, fold, normalise
from validation.guards.scan import Window
from validation.guards.specs import PII_ENTITIES

if TYPE_CHECKING:
    from validation.data.documents import Document

Action = Literal["mask", "drop", "keep"]

_FOLDED = re.compile(r"[^\t\n\r\x20-\x7e]+")
#: What a folded text has if a guard's pattern matches in it, by entity. An entity without a gate is always
#: looked for.
_GATES: dict[str, str] = {
    "EMAIL_ADDRESS": "@",
    "PHONE_NUMBER": r"[0-9](?:[ ./()\-]{0,3}[0-9]){7}",
    "US_SSN": r"[0-9](?:[ .\-]?[0-9]){8}",
    "CREDIT_CARD": r"[0-9](?:[ .\-\n]{0,4}[0-9]){12}",
    "IBAN_CODE": r"[A-Za-z]{2}[0-9]{2}(?:[ \-\n]?[A-Za-z0-9]){11}",
    "IP_ADDRESS": r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]|:[0-9A-Fa-f.]*:",
    "PASSPORT": r"(?i:passport|reisepass|passeport|pasaporte|passaport[oe])|[A-Z0-9<]{44}",
    "CRYPTO_ADDRESS": r"[13LMDAT9][1-9A-HJ-NP-Za-km-z]{24}|(?i:bc|tb|ltc)1[A-Za-z0-9]{11}|0x[0-9A-Fa-f]{40}",
}
#: Characters that Presidio looks at together (its time grows with hits times words), and how many of the
#: part before it sees again, so that what lies across is whole in one of them.
PART, OVERLAP = 1000, 250
#: No entity has more characters: an e-mail address has 419 at most.
LONGEST = 500
#: Entities of Presidio's without which a text has no digit.
_WITH_DIGITS = frozenset({"CRYPTO", "US_BANK_NUMBER", "US_ITIN", "US_PASSPORT"})


class PersonalSpan(NamedTuple):
    """Personal data in a text."""

    #: First code point, and the one behind the last.
    start: int
    end: int
    entity: str
    #: How sure it is, 0 to 1.
    score: float
    action: Action


def _mask_all() -> dict[str, Action]:
    return dict.fromkeys(PII_ENTITIES, "mask")


class PersonalData(Rule):
    """Personal data, to be masked, to cost a row its place, or to be left."""

    entities: dict[str, Action] = Field(
        default_factory=_mask_all,
        description="Entity to mask (a placeholder takes its place), drop (the row goes) or keep (it is not "
        "looked for): those of guards, or Presidio's names such as CRYPTO, US_PASSPORT or PERSON.",
    )
    min_score: float = Field(0.4, ge=0, le=1, description="Least score of what Presidio finds.")
    language: str = Field("en", description="Language for Presidio, as an ISO 639-1 code.")
    spacy_model: str | None = Field(
        None, description="spaCy model (package or folder) for PERSON, LOCATION and others without a pattern."
    )

    def build(self) -> PersonalDataFinder:
        """The finder. Raises NotFoundError for a missing model, UsageError for an entity nobody finds."""
        return PersonalDataFinder(self)


class PersonalDataFinder:
    """Finds what its configuration asks to mask or to drop; a judge by the latter."""

    name = "personal_data"

    def __init__(self, config: PersonalData) -> None:
        self._config = config
        wanted = [entity for entity, action in config.entities.items() if action != "keep"]
        ours = [entity for entity in PII_ENTITIES if entity in wanted]
        self._theirs = [entity for entity in wanted if entity not in PII_ENTITIES]
        self._guard = pii_guard(ours) if ours else None
        self._gate = re.compile("|".join(f"(?:{_GATES.get(entity, '')})" for entity in ours))
        self._with_digits = _WITH_DIGITS.issuperset(self._theirs)
        self._analyzer: Any = None
        if self._theirs:
            from validation.data.presidio import build_analyzer

            self._analyzer = build_analyzer(self._theirs, config.language, config.spacy_model)

    def find(self, text: str) -> list[PersonalSpan]:
        """What is to be masked or dropped, in order; what overlaps is one span."""
        return _merged([*self._by_guards(text), *self._by_presidio(text)])

    def judge(self, document: Document) -> Verdict | None:
        """Refuse a document that holds an entity to drop."""
        return self.verdict(self.find(document.text))

    def verdict(self, spans: Sequence[PersonalSpan]) -> Verdict | None:
        """The verdict on a text by what :meth:`find` found in it."""
        found = next((span for span in spans if span.action == "drop"), None)
        return Verdict(found.entity.lower(), found.score) if found else None

    def possible(self, text: str) -> bool:
        """False if no guard's pattern can match anywhere in the text."""
        if self._guard is None:
            return False
        if not text.isascii():
            # Each character folds by itself, so this is the view that the guards read.
            text = _FOLDED.sub(lambda match: "".join(map(fold, match[0])), text)
        elif _FOLDED.search(text):
            text = _FOLDED.sub("", text)
        return self._gate.search(text) is not None

    def _by_guards(self, text: str) -> Iterable[PersonalSpan]:
        if self._guard is None or not self.possible(text):
            return
        view: View = normalise(text)
        for hit in self._guard.cursor().advance(Window.of(view), final=True):
            yield PersonalSpan(hit.start, hit.end, hit.label, hit.score, self._config.entities[hit.label])

    def _by_presidio(self, text: str) -> Iterable[PersonalSpan]:
        if self._analyzer is None or (self._with_digits and not any(map(str.isdigit, text))):
            return
        for begin, end in _parts(text):
            for found in self._analyze(text[begin:end]):
                entity, action = found.entity_type, self._config.entities[found.entity_type]
                yield PersonalSpan(begin + found.start, begin + found.end, entity, found.score, action)

    def _analyze(self, text: str) -> list[Any]:
        config = self._config
        # Without the zone spaCy would keep every word that it ever saw.
        with self._analyzer.nlp_engine.nlp[config.language].memory_zone():
            found: list[Any] = self._analyzer.analyze(
                text, config.language, entities=self._theirs, score_threshold=config.min_score
            )
        return found


def _parts(text: str) -> Iterator[tuple[int, int]]:
    """Where parts of a text begin and end, at blanks if there are any."""
    start = 0
    while start < len(text):
        end = min(start + PART, len(text))
        if end < len(text):
            blank = max(text.rfind(" ", start + OVERLAP, end), text.rfind("\n", start + OVERLAP, end))
            end = blank if blank > 0 else end
        begin = max(0, start - OVERLAP)
        blank = text.find(" ", begin, start) if begin else -1
        yield blank + 1 if blank >= 0 else begin, end
        start = end


def _merged(spans: list[PersonalSpan]) -> list[PersonalSpan]:
    """Overlapping spans as one: drop outweighs mask, then the longest gives entity and score."""
    merged: list[PersonalSpan] = []
    best = (False, 0)
    for span in sorted(spans, key=lambda item: (item.start, -item.end, item.entity)):
        rank = (span.action == "drop", span.end - span.start)
        if not merged or span.start >= merged[-1].end:
            merged.append(span)
            best = rank
            continue
        last = merged[-1]
        named = span if rank > best else last
        best = max(best, rank)
        merged[-1] = named._replace(start=last.start, end=max(last.end, span.end))
    return merged


class Mask:
    """Makes unreadable whatever any of some rules looks for, be it to mask or to drop."""

    def __init__(self, *rules: PersonalData) -> None:
        self._finders = [rule.build() for rule in rules]

    def __call__(self, text: str, limit: int | None = None) -> str:
        """The text, or what stands for its first ``limit`` code points, with placeholders.

        Of what crosses the limit nothing is shown: half an address is not recognised as one.
        """
        size = len(text) if limit is None else limit
        seen = text[: size + LONGEST]
        found = _merged([span for finder in self._finders for span in finder.find(seen)])
        shown = [span for span in found if span.start < size]
        end = max(size, shown[-1].end) if shown else size
        return masked(seen[:end], shown)


def masked(text: str, spans: Iterable[PersonalSpan]) -> str:
    """The text with each of ``spans`` (in order, none overlapping) replaced, as by ``<EMAIL_ADDRESS>``."""
    parts, position = [], 0
    for span in spans:
        parts += [text[position : span.start], f"<{span.entity}>"]
        position = span.end
    return "".join([*parts, text[position:]]) if parts else text
