"""A dedicated engine that falls silent: its workers are killed, and a new one answers what is left."""

from __future__ import annotations

import json
import os
import queue
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import UnavailableError
from jobs.batch.lives import lives

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


class Engine:
    """Answers; the first time that a row ``stuck`` comes it hangs, and notes its process."""

    def __init__(self, folder: str, stuck: int) -> None:
        self._folder, self._stuck = Path(folder), stuck

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        noted = self._folder / "pid"
        if self._stuck in batch["number"] and not noted.exists():
            noted.write_text(str(os.getpid()))
            time.sleep(600)
        return {"answer": [json.dumps({"number": int(number)}) for number in batch["number"]]}


class AsItHangs(queue.Queue[Any]):
    """Gives up waiting once, as soon as the engine hangs; else for no pause of the machine."""

    noted: Path
    given_up = False

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        while True:
            try:
                return super().get(timeout=0.05)
            except queue.Empty:
                if not AsItHangs.given_up and self.noted.exists():
                    AsItHangs.given_up = True
                    raise


def run(folder: Path, restarts: int, stall_s: float, say: Any) -> Any:
    """The rows of a batch of 40 whose engine hangs once."""
    import ray

    rows = ray.data.from_items([{"number": number} for number in range(40)])
    rows = rows.repartition(target_num_rows_per_block=4).materialize()

    def answer(left: Any) -> Any:
        settings = {"fn_constructor_args": (str(folder), 30), "concurrency": 1, "num_cpus": 1}
        return left.map_batches(Engine, batch_size=4, **settings)

    return lives(answer, rows, restarts=restarts, start_s=600.0, stall_s=stall_s, say=say)


def test_a_silent_engine_is_killed_and_the_batch_goes_on(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AsItHangs, "noted", tmp_path / "pid", raising=False)
    monkeypatch.setattr(AsItHangs, "given_up", False)
    monkeypatch.setattr("jobs.batch.lives.queue", SimpleNamespace(Queue=AsItHangs, Empty=queue.Empty))
    said: list[str] = []
    answered = run(tmp_path, 1, 3.0, said.append)
    assert sorted(row["number"] for row in answered) == list(range(40))
    assert len(said) == 1
    # Killed, not left hanging.
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 300
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not Path(f"/proc/{pid}").exists()


def test_one_that_stays_silent_ends_the_run_with_a_sentence(local_ray: None, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"gave no row for 1 s, after 0 restarts.*run this again"):
        list(run(tmp_path, 0, 1.0, print))
