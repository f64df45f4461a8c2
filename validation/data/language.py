"""Which language a text is in, by py3langid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from cluster.errors import UsageError
from validation.data.verdict import Judge, Rule, Verdict

if TYPE_CHECKING:
    from validation.data.documents import Document


class Language(Rule):
    """Texts in a language that is not wanted, or not clearly in one."""

    keep: tuple[str, ...] = Field(
        min_length=1, description="Languages to keep, as ISO 639-1 codes such as en or de."
    )
    among: tuple[str, ...] | None = Field(
        None,
        description="Languages that a text may be in besides those to keep; null: all it knows.",
    )
    min_score: float = Field(
        0.0, ge=0, le=1, description="Least probability of the language found, among those it may be."
    )

    def build(self) -> Judge:
        """The judge. Raises UsageError for a language that py3langid does not know."""
        return _Language(self)


class _Language:
    name = "language"

    def __init__(self, config: Language) -> None:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        self._config = config
        self._identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        known = set(self._identifier.labels)
        wanted = {*config.keep, *(config.among or ())}
        if unknown := sorted(wanted - known):
            raise UsageError(f"language {unknown[0]}: not known; there are {', '.join(sorted(known))}.")
        if config.among is not None:
            self._identifier.set_languages(wanted)

    def judge(self, document: Document) -> Verdict | None:
        language, score = self._identifier.classify(document.text)
        if language not in self._config.keep:
            return Verdict(f"language_{language}", score)
        return Verdict("language_unsure", score) if score < self._config.min_score else None
