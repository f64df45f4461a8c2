"""Presidio's analyzer, without downloads: on a blank spaCy pipeline, or with a model that is already here."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.errors import NotFoundError, UsageError
from cluster.nearest import meant
from validation.guards.specs import PII_ENTITIES


def build_analyzer(entities: Sequence[str], language: str, model: str | None) -> Any:
    """An ``AnalyzerEngine`` for ``entities`` in ``language``, an ISO 639-1 code.

    ``model`` is the name of an installed spaCy model, or its folder; without one there are only entities
    that have a pattern. Raises NotFoundError for a model that is not here, UsageError for a language that
    spaCy does not know, for a folder that holds no model, and for an entity that nothing would find.
    """
    # Else the first web or mail address would fetch a list of suffixes; the package carries one.
    os.environ.setdefault("TLDEXTRACT_PUBLIC_SUFFIX_LIST_URLS", "")
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry

    logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
    registry = RecognizerRegistry(supported_languages=[language])
    nlp = _nlp_engine(language, model)
    registry.load_predefined_recognizers(languages=[language], nlp_engine=nlp)
    if model is None:
        registry.remove_recognizer("SpacyRecognizer")
    engine = AnalyzerEngine(registry=registry, nlp_engine=nlp, supported_languages=[language])
    known = set(engine.get_supported_entities(language))
    for entity in entities:
        if entity not in known:
            more = "" if model else "; names and places need spacy_model"
            ours = {*known, *PII_ENTITIES}
            raise UsageError(
                f"entity {entity}{meant(entity, ours)}: not among {', '.join(sorted(ours))}{more}."
            )
    return engine


def _nlp_engine(language: str, model: str | None) -> Any:
    import spacy
    from presidio_analyzer.nlp_engine import SpacyNlpEngine

    # Presidio would download a model that it does not find.
    if model is not None and not (spacy.util.is_package(model) or Path(model).is_dir()):
        raise NotFoundError(f"model {model}: neither a spaCy package nor a folder; install it.")
    engine = SpacyNlpEngine(models=[{"lang_code": language, "model_name": model or "blank"}])
    try:
        engine.nlp = {language: spacy.load(model) if model else spacy.blank(language)}
    except ImportError:
        raise UsageError(f"language {language}: spaCy does not know it; give an ISO 639-1 code.") from None
    except (OSError, ValueError) as problem:
        raise UsageError(f"model {model}: spaCy cannot load it: {problem}") from None
    return engine
