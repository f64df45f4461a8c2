"""Make the virtual environment from the lock.

``python3.11 cluster/setup_environment.py [cpu|gpu|client|--lock]``

Runs before anything is installed, so it uses the standard library alone. A repeated call finds the
stamp of the same lock and returns at once.

The CPU build of torch is not on PyPI. If pip is configured with a wheelhouse (find-links) that holds
the locked build, that one is used; otherwise PyTorch's own CPU index, through uv's ``--torch-backend``.
uv does not read pip's configuration, so its index and wheelhouse are passed on.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV = "uv==0.13.9"


def main(argv: list[str]) -> int:
    """Install the lock of the named kind (cpu by default). Returns the exit status."""
    kind = argv[0] if argv else "cpu"
    if kind == "--lock":
        return _resolve()
    lock = ROOT / "requirements" / f"{kind}.txt"
    if sys.version_info[:2] != (3, 11):
        return _fail(f"Python {sys.version.split()[0]} found; the lock is for 3.11: set PYTHON=python3.11.")
    if not lock.is_file():
        return _fail(f"there is no lock {lock.name}; name cpu, gpu or client.")
    stamp, digest = ROOT / ".venv" / "manta-lock", _digest(lock)
    if stamp.is_file() and stamp.read_text() == digest:
        print(f"environment: .venv has {lock.name} already")
        return 0
    try:
        _install(kind, lock)
    except subprocess.CalledProcessError as error:
        return _fail(f"installing {lock.name} failed (exit status {error.returncode}); its output is above.")
    stamp.write_text(digest)
    print("environment: ready in .venv")
    return 0


def _resolve() -> int:
    """Write every lock anew: pinned requirements, without index addresses."""
    platform = ROOT / "requirements" / "cpu.txt"
    for kind in ("cpu", "gpu", "client"):
        lock = ROOT / "requirements" / f"{kind}.txt"
        uv, environment, torch = _uv(kind, lock)
        command = [uv, "pip", "compile", "--quiet", "--upgrade", "pyproject.toml", *torch]
        # A client has the platform's own versions, and none of what tests and one machine need.
        extras = ("client",) if kind == "client" else (kind, "local", "dev")
        command += ["--constraint", str(platform)] if kind == "client" else []
        command += [word for extra in extras for word in ("--extra", extra)]
        command += ["--python-version", "3.11", "--python-platform", "x86_64-unknown-linux-gnu"]
        command += ["--no-emit-index-url", "--no-header", "--no-annotate", "--output-file", str(lock)]
        if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode:
            return _fail(f"pyproject.toml does not resolve with extra {kind}; see above.")
    return 0


def _uv(kind: str, lock: Path) -> tuple[str, dict[str, str], list[str]]:
    """The path of uv, its environment, and the options that find the right torch for ``kind``."""
    tools = ROOT / ".setup"
    if not (tools / "bin" / "uv").exists():
        print(f"environment: fetching {UV}", flush=True)
        venv.create(tools, with_pip=True)
        subprocess.run([tools / "bin" / "pip", "install", "--quiet", UV], check=True)
    environment = os.environ | _pip_settings(tools) | {"VIRTUAL_ENV": str(ROOT / ".venv")}
    torch: list[str] = []
    if kind == "cpu":
        wheelhouse = _wheelhouse_with_torch(lock, environment.get("UV_FIND_LINKS", ""))
        torch = [] if wheelhouse else ["--torch-backend", "cpu"]
        print(f"environment: CPU torch from {wheelhouse or 'the CPU index of PyTorch'}", flush=True)
    elif kind == "gpu":
        environment.pop("UV_FIND_LINKS", None)  # A wheelhouse's CPU torch must not shadow the CUDA build.
    return str(tools / "bin" / "uv"), environment, torch


def _install(kind: str, lock: Path) -> None:
    uv, environment, torch = _uv(kind, lock)
    if not (ROOT / ".venv" / "bin" / "python").exists():
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(ROOT / ".venv")], check=True)
    print(f"environment: installing {lock.name} and compiling bytecode (minutes at first)", flush=True)
    # Bytecode now saves over a minute at the first start of an engine.
    install = [uv, "pip", "sync", "--quiet", "--compile-bytecode", *torch, str(lock)]
    subprocess.run(install, env=environment, check=True)
    project = [uv, "pip", "install", "--quiet", "--no-deps", "--editable", str(ROOT)]
    subprocess.run(project, env=environment, check=True)


def _pip_settings(tools: Path) -> dict[str, str]:
    """pip's index, wheelhouse and certificates in uv's words; what the user set for uv wins."""
    listed = subprocess.run(
        [tools / "bin" / "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    found = {}
    for line in listed.stdout.splitlines():
        key, _, value = line.partition("=")
        # Environment variables come as ':env:.find-links', files as 'global.find-links'.
        found[key.rpartition(".")[2]] = value.strip().strip("'").replace("\\n", " ")
    names = {"index-url": "UV_DEFAULT_INDEX", "find-links": "UV_FIND_LINKS", "cert": "SSL_CERT_FILE"}
    return {
        uv: found[pip].replace(" ", ",")
        for pip, uv in names.items()
        if found.get(pip) and uv not in os.environ
    }


def _wheelhouse_with_torch(lock: Path, find_links: str) -> str | None:
    pins = [line.strip() for line in lock.read_text().splitlines() if line.startswith("torch==")]
    wheel = f"torch-{pins[0].partition('==')[2]}-" if pins else "torch-"
    for place in find_links.replace(",", " ").split():
        folder = Path(place.removeprefix("file://"))
        if folder.is_dir() and any(folder.glob(f"{wheel}*.whl")):
            return place
    return None


def _digest(lock: Path) -> str:
    return hashlib.sha256(lock.read_bytes() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()


def _fail(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
