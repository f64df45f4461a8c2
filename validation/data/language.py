"""Which language a text is in, by py3langid."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from cluster.errors import UsageError
from validation.data.verdict import Judge, Rule, Verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
        from py3langid.langid import MODEL_FILE

        self._config = config
        self._identifier = _identifier_class().from_model_file(MODEL_FILE, norm_probs=True)
        known = set(self._identifier.labels)
        wanted = {*config.keep, *(config.among or ())}
        if unknown := sorted(wanted - known):
            raise UsageError(f"language {unknown[0]}: not known; there are {', '.join(sorted(known))}.")
        if config.among is not None:
            self._identifier.set_languages(wanted)

    def judge(self, document: Document) -> Verdict | None:
        if not document.text.strip():
            return None  # Nothing is in no language; the library would guess one.
        language, score = self._identifier.classify(document.text)
        if language not in self._config.keep:
            return Verdict(f"language_{language}", score)
        return Verdict("language_unsure", score) if score < self._config.min_score else None


#: The automaton's memory: after so many bytes its state does not depend on where it began.
MEMORY = 6
#: Bytes that are walked at once.
_STRETCH = 2**18
#: Features whose weights fit the memory that is kept for them.
_FEATURES = 2048


@cache
def _identifier_class() -> Any:
    """py3langid's identifier with its loop over bytes in NumPy.

    The library walks an automaton byte by byte. Since that forgets everything but the last few bytes, the
    state at each byte is found by a few steps from the beginning, for all bytes at once. The features are the
    same, in the same order, and so are the scores, as far as a matrix product rounds alike everywhere.
    """
    from py3langid.langid import LanguageIdentifier

    class Identifier(LanguageIdentifier):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._moves = np.asarray(self.tk_nextmove)
            self._rows = np.asarray(self._rowbase, np.int32)
            self._output = np.asarray(self.tk_output, np.int32)
            self._table: NDArray[np.float32] | None = None

        def _raw_score(self, text: bytes) -> Any:
            found = [
                self._features(text[max(0, start - MEMORY) : start + _STRETCH], min(start, MEMORY))
                for start in range(0, len(text), _STRETCH)
            ]
            features = np.concatenate(found) if found else np.zeros(0, np.int32)
            if not len(features):
                return super()._raw_score(b"")
            unique, first, counts = np.unique(features, return_index=True, return_counts=True)
            # Sums of floats depend on their order: that in which the library meets the features.
            order = np.argsort(first)
            weights = np.log1p(counts[order].astype(np.float32))
            return weights @ self._weights(unique[order]) + self.nb_pc

        def _weights(self, features: NDArray[np.int64]) -> NDArray[np.float32]:
            if self._table is None or self._table.shape != self.nb_ptc.shape:
                self._table = np.ascontiguousarray(self.nb_ptc, np.float32)
                self._buffer = np.empty((_FEATURES, self._table.shape[1]), np.float32)
            if len(features) > _FEATURES:
                return self._table[features]
            # Hundreds of kilobytes for each text: new memory would cost more than filling it.
            return np.take(self._table, features, axis=0, out=self._buffer[: len(features)], mode="clip")

        def _features(self, text: bytes, skip: int) -> NDArray[np.int32]:
            """Features met in ``text`` behind its first ``skip`` bytes."""
            codes = np.frombuffer(text, np.uint8)
            states: NDArray[np.int32] = np.zeros(len(codes), np.int32)
            for back in range(min(MEMORY, len(codes)) - 1, -1, -1):
                states[back:] = self._moves[self._rows[states[back:]] + codes[: len(codes) - back]]
            features = self._output[states[skip:]]
            return features[features >= 0]

    return Identifier
