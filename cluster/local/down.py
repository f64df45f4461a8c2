"""Stop exactly what `manta up` started."""

from __future__ import annotations

import os
from collections.abc import Callable

import psutil

from cluster.errors import UnavailableError
from cluster.local import ray_head, s3server
from cluster.local.home import Home, State
from cluster.local.process import end_marked, family, find, marked, union
from cluster.settings import Settings

#: Until the last process of Ray must be gone.
_LIMIT_S = 30.0


def down(settings: Settings, say: Callable[[str], None]) -> None:
    """Stop Ray with all that runs on it, then storage; the data stays.

    Raises UnavailableError if a process does not end, RefusedError while `manta up` is at work.
    """
    home = Home(settings.state_dir)
    if not home.root.is_dir():
        say(f"nothing runs under {home.root}")
        return
    with home.locked():
        state = State.load(home)
        stopped = stop_ray(state) if state else 0
        if stopped:
            say(f"ray       stopped ({stopped} processes)")
        if stop_s3(home, state):
            say("storage   stopped")
        elif not stopped:
            say(f"nothing runs under {home.root}")
        home.state.unlink(missing_ok=True)


def stop_ray(state: State) -> int:
    """End every process of this cluster's Ray: those with our mark, and all that came from its daemons.

    Returns how many there were. Raises UnavailableError if one does not end.
    """
    found = union(family(state.ray), marked(state.instance))
    found = [process for process in found if process.pid != os.getpid()]
    ray_head.stop(found)
    if rest := end_marked(state.instance, _LIMIT_S):
        names = ", ".join(f"{process.name()} (pid {process.pid})" for process in rest)
        raise UnavailableError(f"These processes of the cluster do not end: {names}.")
    state.ray = []
    return len(found)


def stop_s3(home: Home, state: State | None) -> bool:
    """End the S3 server of this home, even one of an `up` that was killed before it wrote it down."""
    pids = {process.pid for process in s3_processes(home)}
    if state is not None and (recorded := find(state.s3)) is not None:
        pids.add(recorded.pid)
    for pid in pids:
        s3server.stop(pid)
    if state is not None:
        state.s3 = None
    return bool(pids)


def s3_processes(home: Home) -> list[psutil.Process]:
    """S3 servers whose command line names this home's data."""
    sign = f"-dir={home.s3 / 'data'}"
    found = []
    for process in psutil.process_iter():
        try:
            if process.name() == "weed" and sign in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found
