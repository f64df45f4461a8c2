"""Find and end exactly the processes that `manta up` started, with all that came from them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

import psutil

from cluster.local.home import ProcessRef

#: In the environment of every process that we start, inherited by whatever they start.
MARK = "MANTA_INSTANCE"


def ref_of(pid: int) -> ProcessRef:
    """The process by number and start time. Raises psutil.NoSuchProcess."""
    return ProcessRef(pid=pid, created=psutil.Process(pid).create_time())


def find(ref: ProcessRef | None) -> psutil.Process | None:
    """The process if it still runs and is the same one; None for a stranger with its number."""
    if ref is None:
        return None
    try:
        process = psutil.Process(ref.pid)
        same = abs(process.create_time() - ref.created) < 0.05
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def marked(instance: str) -> list[psutil.Process]:
    """Every running process with our mark, without this one and its ancestors."""
    found = []
    spared = {os.getpid(), *(p.pid for p in psutil.Process().parents())}
    for process in psutil.process_iter():
        if process.pid in spared:
            continue
        try:
            if process.environ().get(MARK) == instance and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:  # Gone, or another user's.
            continue
    return found


def family(refs: Iterable[ProcessRef | None]) -> list[psutil.Process]:
    """The named processes that still run, and all that came from them."""
    found: dict[int, psutil.Process] = {}
    for ref in refs:
        process = find(ref)
        if process is None:
            continue
        found[process.pid] = process
        try:
            found |= {child.pid: child for child in process.children(recursive=True)}
        except psutil.Error:
            continue
    return list(found.values())


def roots(processes: Iterable[psutil.Process]) -> list[ProcessRef]:
    """Those of the processes that none of the others has started: the daemons."""
    found = list(processes)
    pids = {process.pid for process in found}
    refs = []
    for process in found:
        try:
            if process.ppid() not in pids:
                refs.append(ref_of(process.pid))
        except psutil.Error:
            continue
    return refs


def union(*groups: Iterable[psutil.Process]) -> list[psutil.Process]:
    """The groups' processes, each once."""
    return list({process.pid: process for group in groups for process in group}.values())


def end(processes: Iterable[psutil.Process], grace_s: float) -> None:
    """Ask the processes to end; kill those that have not after ``grace_s`` seconds; wait for them."""
    alive = [process for process in processes if _signal(process, kill=False)]
    _, alive = psutil.wait_procs(alive, timeout=grace_s)
    alive = [process for process in alive if _signal(process, kill=True)]
    psutil.wait_procs(alive, timeout=5)


def end_marked(instance: str, limit_s: float) -> list[psutil.Process]:
    """End what carries the mark until nothing does; returns what is left after ``limit_s`` seconds."""
    deadline = time.monotonic() + limit_s
    while rest := marked(instance):
        if time.monotonic() > deadline:
            return rest
        end(rest, grace_s=2)
    return []


def _signal(process: psutil.Process, *, kill: bool) -> bool:
    """Send SIGTERM or SIGKILL; psutil checks the start time first. False if it is gone."""
    try:
        process.kill() if kill else process.terminate()
    except psutil.Error:
        return False
    return True
