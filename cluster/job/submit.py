"""Submit a verb with Ray's own job submission, follow it, and say how it ended.

The same as ``ray job submit --runtime-env runtime_env.yaml --working-dir . -- python -m jobs.<verb> ...``.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

import cluster
from cluster.errors import NotFoundError, RefusedError, UnavailableError, UsageError
from cluster.installed import missing_platform
from cluster.ray_api import RayApi, read_token
from cluster.settings import load_settings

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

RUNTIME_ENV = "runtime_env.yaml"
_POLL_S = 0.5
#: Seconds to connect and to send a request, and to wait for its answer.
_TIMEOUTS_S = (5.0, 60.0)
#: Seconds to send a package (Ray takes up to 512 MiB), and to wait for its answer.
_UPLOAD_TIMEOUTS_S = (600.0, 60.0)
#: Among so many a failed job's own sentence is looked for: Ray adds dozens of its own when a node was lost.
_LAST_LINES = 200
#: What a job's status stays at.
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class JobOutcome(BaseModel):
    """How a submitted job stands or ended."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    submission_id: str = Field(description="Ray's submission id.")
    status: str = Field(description="PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.")
    message: str | None = Field(None, description="Last sentence of a job that did not succeed.")
    result: dict[str, Any] | None = Field(None, description="The result line, if the job printed JSON.")


def submit(
    verb: str,
    *,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    as_json: bool = False,
    working_dir: Path | None = None,
    submission_id: str | None = None,
) -> str:
    """Submit ``python -m jobs.<verb>`` and return its submission id at once.

    :param config: a YAML file inside the working directory.
    :param overrides: more arguments for the verb, e.g. ``["--rows", "100"]``.
    :param as_json: let the job print its result as JSON.
    :param working_dir: the directory that the job gets; where runtime_env.yaml is, if absent.
    :param submission_id: Ray refuses a second job with the same one, so a repeated submission is safe.

    Raises UsageError for an unknown verb or file, UnavailableError when the cluster does not answer,
    AccessError for a wrong token, RefusedError when Ray refuses the job.
    """
    root = (working_dir or find_working_dir()).absolute()
    words = [*entrypoint(root, verb, config, overrides), *(["--json"] if as_json else [])]
    runtime_env = read_runtime_env(root)
    settings = load_settings()
    return send(
        connect(),
        words,
        {**runtime_env, "working_dir": str(root)},
        submission_id=submission_id,
        metadata={"verb": verb, "team": settings.team, "user": settings.user},
    )


def send(
    client: JobSubmissionClient,
    words: Sequence[str],
    runtime_env: dict[str, Any],
    *,
    submission_id: str | None,
    metadata: dict[str, str],
) -> str:
    """Submit a command and return its submission id at once.

    Raises UnavailableError when the cluster does not answer, RefusedError when Ray refuses the job.
    """
    try:
        return str(
            client.submit_job(
                entrypoint=shlex.join(words),
                submission_id=submission_id,
                runtime_env=runtime_env,
                metadata=metadata,
            )
        )
    except (RuntimeError, ValueError) as error:
        # Ray answers 5xx to what it could not do now (no agent is ready) and to an id that it has already.
        if "status code 5" in str(error) and "already exists" not in str(error):
            raise _failed(client, error) from None
        raise RefusedError(f"Ray refused the job: {_last_line(str(error))}") from None
    except OSError:  # Its HTTP library's errors are all of this kind.
        raise _gone(client) from None


def stop(submission_id: str, client: JobSubmissionClient | None = None) -> None:
    """End a job that runs; nothing happens to one that has ended or is unknown. Raises UnavailableError."""
    client = client or connect()
    with suppress(NotFoundError):
        _ask(client, submission_id, lambda: client.stop_job(submission_id))


def show_help(verb: str, working_dir: Path | None = None) -> int:
    """Let a verb print its own help, in a process of this machine; return its exit status.

    Raises UsageError for an unknown verb, UnavailableError where only the client is installed.
    """
    root = (working_dir or find_working_dir()).absolute()
    _, *words = entrypoint(root, verb)
    if missing := missing_platform():
        raise UnavailableError(
            f"The fields of {verb} are known where the whole platform is installed; there is no {missing[0]} "
            f"here: run `python {shlex.join(words)} --help` there."
        )
    return subprocess.run([sys.executable, *words, "--help"], cwd=root).returncode


def entrypoint(
    root: Path, verb: str, config: str | Path | None = None, overrides: Sequence[str] = ()
) -> list[str]:
    """The command of a job, as it runs in the working directory ``root``.

    Raises UsageError for a verb that is not there or a configuration file that the job would not get.
    """
    words = ["python", "-m", f"jobs.{_known_verb(root, verb)}"]
    if config is not None:
        words += ["--config", _inside(root, Path(config))]
    return [*words, *overrides]


def connect(address: str | None = None) -> JobSubmissionClient:
    """Ray's client for ``address``, else the cluster that RAY_API_SERVER_ADDRESS names, else the local one.

    Ray's own waits for ever for a head that has vanished; this one raises an OSError.

    Raises UnavailableError or AccessError, both before Ray is imported.
    """
    if address is None:
        api = RayApi.from_environment(load_settings().ports.dashboard)
    else:
        api = RayApi(address, read_token())
    api.version()
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            # urllib3 sends a whole body within the time to connect; packages alone are PUT.
            options.setdefault("timeout", _UPLOAD_TIMEOUTS_S if method == "PUT" else _TIMEOUTS_S)
            return super()._do_request(method, endpoint, **options)

    try:
        return Client(api.address)
    except OSError:  # It went away between the two questions.
        raise api.unavailable() from None


def wait(
    submission_id: str,
    *,
    on_log: Callable[[str], None] | None = None,
    timeout_s: float | None = None,
    client: JobSubmissionClient | None = None,
) -> JobOutcome:
    """Wait until the job has ended.

    :param on_log: gets the log piece by piece, while it is written.
    :param timeout_s: seconds after which UnavailableError is raised; the job goes on.

    Raises NotFoundError for an unknown id, UnavailableError if the cluster goes away.
    """
    client = client or connect()
    outcome(submission_id, client)
    deadline = time.monotonic() + timeout_s if timeout_s else None
    if on_log is not None:
        # If only the log's connection breaks, the status below decides.
        with suppress(RuntimeError, OSError, TimeoutError):
            asyncio.run(_follow(client, submission_id, on_log, timeout_s))
    while True:
        found = outcome(submission_id, client)
        if found.status in ENDED:
            return found
        if deadline and time.monotonic() > deadline:
            raise UnavailableError(f"Job {submission_id} has not ended after {timeout_s:g} s; it goes on.")
        time.sleep(_POLL_S)


def outcome(submission_id: str, client: JobSubmissionClient | None = None) -> JobOutcome:
    """How the job stands now. Raises NotFoundError for an unknown id, UnavailableError."""
    client = client or connect()
    found = status(submission_id, client)
    if found not in ENDED:
        return JobOutcome(submission_id=submission_id, status=found)
    lines = [line for line in logs(submission_id, client).splitlines() if line.strip()]
    if found == "SUCCEEDED":
        return JobOutcome(submission_id=submission_id, status=found, result=_result(lines))
    message = _ask(client, submission_id, lambda: client.get_job_info(submission_id)).message
    return JobOutcome(submission_id=submission_id, status=found, message=_sentence(lines, message or ""))


def status(submission_id: str, client: JobSubmissionClient | None = None) -> str:
    """The job's status in Ray's words. Raises NotFoundError for an unknown id, UnavailableError."""
    client = client or connect()
    return str(_ask(client, submission_id, lambda: client.get_job_status(submission_id)).value)


def logs(submission_id: str, client: JobSubmissionClient | None = None) -> str:
    """What the job has printed so far. Raises NotFoundError for an unknown id, UnavailableError."""
    client = client or connect()
    return str(_ask(client, submission_id, lambda: client.get_job_logs(submission_id)))


def find_working_dir() -> Path:
    """The current directory if it has a runtime_env.yaml, else the checkout that this package is from.

    Raises UsageError if neither has one.
    """
    checkout = Path(cluster.__file__).parents[1]
    for root in (Path.cwd(), checkout):
        if (root / RUNTIME_ENV).is_file():
            return root
    raise UsageError(
        f"There is no {RUNTIME_ENV} in {Path.cwd()}: run this in the checkout, or name it with --working-dir."
    )


def _known_verb(root: Path, verb: str) -> str:
    name = verb.replace("-", "_")
    if not (root / "jobs" / f"{name}.py").is_file() or name.startswith("_"):
        # The folder's other modules are no commands: they would mislead.
        verbs = sorted(p.stem for p in (root / "jobs").glob("[a-z]*.py") if "__main__" in p.read_text())
        raise UsageError(
            f"There is no job {verb!r} in {root / 'jobs'}: choose one of {', '.join(verbs) or 'none'}."
        )
    return name


def _inside(root: Path, config: Path) -> str:
    path = config if config.is_absolute() else Path.cwd() / config
    if not path.is_file():
        raise UsageError(f"The configuration file {config} does not exist.")
    try:
        return str(path.resolve().relative_to(root.resolve()))
    except ValueError:
        raise UsageError(
            f"The configuration file {config} is outside {root}, which the job gets: move it there."
        ) from None


def read_runtime_env(root: Path) -> dict[str, Any]:
    """The runtime environment of the code in ``root``. Raises UsageError."""
    path = root / RUNTIME_ENV
    try:
        found = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UsageError(
            f"There is no {RUNTIME_ENV} in {root}: name another directory with --working-dir."
        ) from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no runtime environment: it must be a mapping.")
    return found


def _ask(client: JobSubmissionClient, submission_id: str, question: Callable[[], Any]) -> Any:
    try:
        return question()
    except RuntimeError as error:
        if "404" in str(error) or "does not exist" in str(error):
            raise NotFoundError(
                f"There is no job {submission_id!r} on the cluster at {client.get_address()}: "
                "`ray job list` shows what there is."
            ) from None
        raise _failed(client, error) from None
    except OSError:  # Its HTTP library's errors are all of this kind.
        raise _gone(client) from None


def _failed(client: JobSubmissionClient, error: Exception) -> UnavailableError:
    return UnavailableError(f"The cluster at {client.get_address()} failed: {_last_line(str(error))}")


def _gone(client: JobSubmissionClient) -> UnavailableError:
    return UnavailableError(f"The cluster at {client.get_address()} does not answer any more.")


async def _follow(
    client: JobSubmissionClient, submission_id: str, on_log: Callable[[str], None], timeout_s: float | None
) -> None:
    async with asyncio.timeout(timeout_s):
        async for piece in client.tail_job_logs(submission_id):
            on_log(piece)


def _result(lines: Sequence[str]) -> dict[str, Any] | None:
    """The result line of a job that prints JSON: its last line that is an object."""
    for line in reversed(lines):
        if line.startswith("{"):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            return found if isinstance(found, dict) else None
    return None


def _sentence(lines: Sequence[str], message: str) -> str:
    """What a failed job said last: its error line, else its last line, else Ray's own message."""
    for line in reversed(lines[-_LAST_LINES:]):
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    if message.startswith("Job entrypoint command failed") and lines:
        return lines[-1].strip()
    return _last_line(message) or "It ended without a word."


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
