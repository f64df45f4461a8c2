"""Commands as a user would type them, with their progress passed on and their whole output kept."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import MantaError

#: A job's own lines: progress, complaints. The rest is in the log.
_OWN = re.compile(r"^(\[ *\d+\.\d s\]|error:|warning:)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_RAY_PREFIX = re.compile(r"^\((?:[\w.:-]+ )?pid=\d+[^)]*\) ?")


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    status: int
    result: dict[str, Any] | None
    last: str


def run(
    words: Sequence[str],
    log: Path,
    say: Callable[[str], None],
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    everything: bool = False,
) -> Finished:
    """Run a command to its end, write all that it prints to ``log``, and ``say`` the lines that matter.

    :param everything: say every line.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] | None = None
    complaint, tail = "", deque[str](maxlen=5)
    with log.open("w", encoding="utf-8") as kept:
        kept.write(f"$ {' '.join(words)}\n")
        with subprocess.Popen(
            list(words),
            cwd=cwd,
            env=dict(env) if env is not None else None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            try:
                for raw in process.stdout:
                    kept.write(raw)
                    kept.flush()
                    line = _RAY_PREFIX.sub("", _COLOUR.sub("", raw)).rstrip()
                    result = _json(line) or result
                    if line.startswith("error:"):
                        complaint = line.removeprefix("error:").strip()
                    elif line and not line.startswith("{"):
                        tail.append(line)
                    if line and not line.startswith("{") and (everything or _OWN.match(line)):
                        say(line)
                status = process.wait()
            except BaseException:
                process.terminate()
                raise
    if result is not None and "error" in result:
        complaint = complaint or str(result["error"])
    return Finished(status, result, complaint or (tail[-1] if tail else ""))


def executable(name: str) -> str:
    """A command of this environment, whatever PATH says."""
    path = Path(sys.executable).parent / name
    return str(path) if path.exists() else name


def check(finished: Finished, what: str, log: Path) -> Finished:
    """Raise MantaError with the command's own last sentence if it failed."""
    if finished.status != 0:
        reason = finished.last.rstrip(".") or f"exit status {finished.status}"
        raise MantaError(f"{what} failed: {reason}; its whole log is {log}.")
    return finished


def _json(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and ("artifact" in value or "error" in value) else None
