"""Texts as guards read them: normalised, with what their disguises hide, in units; long ones in threads."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

from cluster.contracts import Direction, Segment
from validation.guards.disguise import Reading, readings
from validation.guards.normalise import View, normalise
from validation.guards.scan import Window
from validation.guards.units import UnitCursor

#: Role of tool-call arguments: their JSON escapes are judged as what they mean.
TOOL_CALL = "tool_call"
#: Characters from which on a body's texts are read in threads, so that they do not hold up the event loop.
THREAD_FROM = 8_000
#: Texts judged at once in threads. They share one interpreter with the loop: more would only slow it.
THREADS = 4
_Result = TypeVar("_Result")
#: A text as it stands (None), and its further readings.
Windows = Sequence[tuple[Reading | None, Window]]


@cache
def _threads() -> ThreadPoolExecutor:
    """Threads of the guards' own: behind a long text, whatever else the process asks must not wait."""
    return ThreadPoolExecutor(THREADS, thread_name_prefix="guard")


async def in_thread(work: Callable[[], _Result]) -> _Result:
    """Do ``work`` in one of the guards' threads."""
    return await asyncio.get_running_loop().run_in_executor(_threads(), work)


def size_of(segments: Sequence[Segment]) -> int:
    """About how many characters guards read in these texts; at least THREAD_FROM if they are that long."""
    size = sum(len(segment.text) for segment in segments)
    if size < THREAD_FROM:
        # A single code point may be shown as 18 characters.
        size = sum(len(unicodedata.normalize("NFKD", segment.text)) for segment in segments)
    return size


def batches(segments: Sequence[Segment]) -> Iterator[Sequence[Segment]]:
    """Texts to judge at a time: few enough for a guard's time-out, and enough to be worth a thread."""
    first = size = 0
    for index, segment in enumerate(segments):
        size += len(segment.text)
        if size >= THREAD_FROM:
            yield segments[first : index + 1]
            first, size = index + 1, 0
    if first < len(segments):
        yield segments[first:]


def _view(segment: Segment) -> View:
    return normalise(segment.text, json_escapes=segment.role == TOOL_CALL)


def read(segment: Segment) -> Windows:
    """A text as our own guards read it; what goes to the model also as what its disguises hide."""
    view = _view(segment)
    further = readings(view) if segment.direction is Direction.INPUT else []
    return [(None, Window.of(view)), *((reading, Window.of(reading.view)) for reading in further)]


def units_of(segment: Segment) -> dict[str, list[tuple[int, str]]]:
    """What packaged guards judge at a time, by the unit that they ask for: first code point and text."""
    view = _view(segment)
    if not view.text.strip():
        return {"text": [], "sentence": []}
    sentences = UnitCursor().advance(Window.of(view), final=True)
    return {
        "text": [(0, segment.text)],
        "sentence": [(start, segment.text[start:end]) for start, end in sentences],
    }
