"""What the chaos run holds against a result: a judge that lets everything pass would prove nothing."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from argparse import Namespace
from collections import Counter
from typing import Any, cast

import psutil
import pytest

from cluster.errors import UnavailableError
from tests.benchmarks import chaos
from tests.benchmarks.chaos import Found, spared
from tests.benchmarks.chaos_victims import DRIVER, ENGINE, VICTIMS, Victims

ROWS = {f"row-{number}" for number in range(4)}
SECRET = {"row-3"}
GOOD = [("row-0", 16), ("row-1", 16), ("row-2", 16)]
BLOCKED = [("row-3", "content_filter")]


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (Found(GOOD, BLOCKED, []), []),
        (Found(GOOD[1:], BLOCKED, []), ["1 rows are missing"]),
        (Found([*GOOD, GOOD[0]], BLOCKED, []), ["1 rows are duplicates"]),
        (
            Found(GOOD, [*BLOCKED, ("row-0", "poison")], []),
            ["1 rows are duplicates", "without need: {'poison': 1}"],
        ),
        (Found([*GOOD[1:], ("row-0", 7)], BLOCKED, []), ["1 answers are cut (row-0)"]),
        (Found([*GOOD, ("row-3", 16)], [], []), ["1 rows with a secret were answered"]),
        (Found([*GOOD, ("row-9", 16)], BLOCKED, []), ["1 rows that nobody asked"]),
        (Found(GOOD, BLOCKED, ["the file x"]), ["the file x can be seen"]),
    ],
)
def test_what_should_not_be_is_told(found: Found, told: list[str]) -> None:
    faults = found.faults(ROWS, SECRET, 16)
    assert len(faults) == len(told)
    assert all(part in fault for part, fault in zip(told, faults, strict=True))


def test_a_run_that_spared_a_victim_proves_nothing_of_it() -> None:
    assert spared(Counter(VICTIMS)) == []
    told = spared(Counter(set(VICTIMS) - {ENGINE}))
    assert [fault.partition(" was never killed")[0] for fault in told] == [ENGINE]


def test_a_victim_that_ends_by_itself_was_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = psutil.Popen([sys.executable, "-c", ""], stdin=subprocess.DEVNULL)
    gone.wait()
    victims = Victims(cast(Any, None), cast(Any, None), "engine")
    monkeypatch.setattr(victims, "find", lambda victim: [gone])
    assert not victims.kill(DRIVER, random.Random(0))


def test_a_run_ends_when_nothing_can_be_killed_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def door(*arguments: Any) -> Found:
        begun, over = (item for item in arguments if isinstance(item, threading.Event))
        begun.set()
        assert over.wait(300), "nobody said that it is over"
        raise SystemExit("time is over")

    def strike(*_: Any) -> None:
        raise UnavailableError("the second node did not come back")

    for name, played in (("over_the_api", door), ("over_ray", door), ("strike", strike)):
        monkeypatch.setattr(chaos, name, played)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    options = Namespace(seed=0, engine="stub", seconds_between=(0, 0), limit_s=300)
    with pytest.raises(UnavailableError, match="second node"):
        chaos.under_fire(options, Victims(cast(Any, None), cast(Any, None), "e"), b"", 0.0, print)
