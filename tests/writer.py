"""A writer in a process of its own, for tests that race or kill it.

``python -m tests.writer <case> <ref> <run id> [<extra>]``. Each step is told on stdout; the cases wait where
a test wants to kill.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from cluster.contracts import ArtifactRef, CodeRevision, Manifest, Principal, PromptMessage, PromptTemplate
from cluster.snapshots import publish
from cluster.storage import ArtifactStore, Attempt, object_store


def commit(attempt: Attempt) -> Manifest:
    return attempt.commit(
        owner=Principal(key_id=attempt.run_id, team=attempt.ref.team),
        configuration={"writer": "test"},
        code=CodeRevision(epoch=1),
        started_at=datetime.now(UTC),
        counts={"rows": 1},
    )


def main(case: str, ref: str, run_id: str, extra: str = "") -> None:
    if case == "publish":
        tell("ready")
        sys.stdin.readline()
        for number in range(int(extra)):
            publish(lambda old, n=number: with_prompt(old, f"{run_id}-{n}"), by=run_id)
        return
    attempt = ArtifactStore(object_store()).attempt(ArtifactRef.parse(ref), run_id)
    if case == "race":
        attempt.write("data.txt", run_id.encode())
        tell("ready")
        sys.stdin.readline()
        tell(commit(attempt).model_dump_json())
    elif case == "no-manifest":
        attempt.write("data.txt", run_id.encode())
        attempt.write("folder/more.txt", b"more")
        tell("written")
        time.sleep(600)
    elif case == "large":
        attempt.write("first.txt", b"first")
        tell("writing")
        attempt.upload(Path(extra), "large.bin")
        tell("written")
        time.sleep(600)
    elif case == "whole":
        tell("writing")
        for number in range(20):
            attempt.write(f"part-{number:02d}.txt", f"{run_id}-{number}".encode())
        commit(attempt)
        tell("committed")
        time.sleep(600)


def with_prompt(old, name):
    template = PromptTemplate(name=name, version=1, messages=[PromptMessage(role="system", content="text")])
    return old.model_copy(update={"prompts": old.prompts | {template.ref: template}})


def tell(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
