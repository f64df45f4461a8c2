"""A corpus three times as large as Ray's object store goes through the job by spilling; nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.storage import ArtifactStore, ObjectStore
from validation.data.profile import Profile

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]

#: The least that Ray takes.
STORE_BYTES = 75 * 2**20
FILES, DOCUMENTS, DOCUMENT_BYTES = 12, 200, 100_000
#: Long words, for it is bytes that fill the store, and words that take time to count.
WORD_CHARS = 1000

#: In a process of its own, for the session's Ray has a store of another size.
JOB = """
import json, re, sys
import ray
from jobs.preprocess import PreprocessConfig, run

ray.init(address="local", num_cpus=2, object_store_memory=int(sys.argv[2]), include_dashboard=False,
         log_to_driver=False)
result = run(PreprocessConfig.model_validate(json.loads(sys.argv[1])))
from ray._private.internal_api import memory_summary
address = ray.get_runtime_context().gcs_address  # The session's own Ray may run beside this one.
told = re.search(r"Spilled (\\d+) MiB", memory_summary(address, stats_only=True))
print(json.dumps({"artifact": result.artifact, "spilled_mib": int(told[1]) if told else 0}))
"""


def test_a_corpus_larger_than_the_object_store_completes(tmp_path: Path, store: ObjectStore) -> None:
    words = 0
    for number in range(FILES):
        with (tmp_path / f"{number}.jsonl").open("w") as stream:
            for place in range(DOCUMENTS):
                word = f"d{number}x{place}".ljust(WORD_CHARS - 1, "y") + " "
                text = (word * (DOCUMENT_BYTES // len(word) + 1)).strip()
                words += text.count(" ") + 1
                stream.write(json.dumps({"text": text}) + "\n")
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size > 3 * STORE_BYTES
    config = {
        "name": f"spilled{abs(hash(tmp_path)) % 10**9}",
        "train": [str(tmp_path)],
        "columns": {"text": "string"},
        "split": {"test_fraction": 0},
        "license": {"name": "CC0-1.0", "source": "made up"},
    }
    done = subprocess.run(
        [sys.executable, "-c", JOB, json.dumps(config), str(STORE_BYTES)],
        capture_output=True,
        text=True,
        timeout=1500,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    artifacts = ArtifactStore(store)
    manifest = artifacts.open(told["artifact"])
    assert manifest.counts["input"] == manifest.counts["train"] == FILES * DOCUMENTS
    profile = Profile.from_json(artifacts.read(manifest, "profile.json"))
    assert (profile.rows, profile.tokens["text"].total) == (FILES * DOCUMENTS, words)
    assert told["spilled_mib"] * 2**20 > STORE_BYTES
