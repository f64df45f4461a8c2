"""What a submission says when Ray's job server fails: Ray's client, against a server that answers as told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import randbytes
from threading import Event, Thread
from time import sleep

import pytest

import cluster.job.submit as job_submit
from cluster.errors import MantaError, RefusedError, UnavailableError
from cluster.job.submit import outcome, status, submit
from cluster.schedule.config import Schedule
from cluster.schedule.ray_jobs import RayJobs

SCHEDULE = Schedule(name="beat", cron="* * * * *", job="tidy")


class Answers(BaseHTTPRequestHandler):
    """A job server: code is there, and a submission is answered with ``submission`` (None: not at all)."""

    submission: tuple[int, str] | None = (200, "")
    known: str | None = None
    log: str = ""
    #: Held back until then: every answer about jobs.
    silent_until: Event | None = None
    #: Bytes of code that came, if code is not there; each upload is looked at after ``upload_s``.
    uploaded: int | None = None
    upload_s: float = 0.0
    #: Called with whether an upload is under way, when it is about to be and when it was.
    uploads: Callable[[bool], None] = staticmethod(lambda under_way: None)

    def do_GET(self) -> None:
        if self.path == "/api/version":
            self._answer(200, json.dumps({"version": "4", "ray_version": "2.60.0", "ray_commit": "x"}))
        elif self.path.startswith("/api/packages/"):
            self.uploads(self.uploaded is not None)
            self._answer(200 if self.uploaded is None else 404, "{}")
        else:
            self._job()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._hold()
        if self.submission is not None:
            self._answer(*self.submission)
        else:
            self.close_connection = True

    def do_PUT(self) -> None:
        sleep(self.upload_s)
        type(self).uploaded = len(self.rfile.read(int(self.headers["Content-Length"])))
        self.uploads(False)
        self._answer(200, "{}")

    def _job(self) -> None:
        self._hold()
        if self.path.endswith("/logs"):
            self._answer(200, json.dumps({"logs": self.log}))
        elif self.known is not None:
            self._answer(200, json.dumps({"type": "SUBMISSION", "status": self.known, "entrypoint": "x"}))
        else:
            self._answer(404, "Job does not exist")

    def _hold(self) -> None:
        if self.silent_until is not None:
            self.silent_until.wait(600)

    def _answer(self, code: int, text: str) -> None:
        with suppress(ConnectionError):  # The client has given up.
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Answers]]:
    class Mine(Answers):
        pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Mine)
    Thread(target=http.serve_forever, daemon=True).start()
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{http.server_port}")
    yield Mine
    http.shutdown()
    http.server_close()


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "tidy.py").write_text("if __name__ == '__main__':\n    pass\n")
    (tmp_path / "runtime_env.yaml").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((500, "No available agent to submit job, please try again later."), UnavailableError),
        ((503, "Service Unavailable"), UnavailableError),
        (None, UnavailableError),
        ((400, "ValueError: no such field"), RefusedError),
        ((500, "ValueError: Job with submission_id x already exists."), RefusedError),
    ],
)
def test_what_may_go_well_later_is_told_from_what_will_not(
    server: type[Answers], code: Path, answer: tuple[int, str] | None, error: type[MantaError]
) -> None:
    server.submission = answer
    with pytest.raises(error) as told:
        submit("tidy", working_dir=code, submission_id="x")
    assert "\n" not in str(told.value)


def test_a_job_that_is_there_already_counts_as_submitted(server: type[Answers], code: Path) -> None:
    server.submission = (500, "ValueError: Job with submission_id x already exists.")
    server.known = "RUNNING"
    RayJobs(code).submit(SCHEDULE, "x")
    assert RayJobs(code).running("x")
    assert status("x") == "RUNNING"
    server.known = "FAILED"
    RayJobs(code).submit(SCHEDULE, "x")
    assert not RayJobs(code).running("x")
    # Refused for another reason: no such job.
    server.submission, server.known = (400, "ValueError: no such field"), None
    with pytest.raises(RefusedError, match="no such field"):
        RayJobs(code).submit(SCHEDULE, "x")
    assert not RayJobs(code).running("x")


def test_a_head_that_vanished_is_not_waited_for(
    server: type[Answers], code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = job_submit._TIMEOUTS_S, job_submit._UPLOAD_TIMEOUTS_S
    assert all(0 < limit < 1000 for pair in limits for limit in pair)
    monkeypatch.setattr(job_submit, "_TIMEOUTS_S", (1.0, 1.0))
    server.silent_until = Event()
    try:
        with pytest.raises(UnavailableError, match="does not answer any more"):
            submit("tidy", working_dir=code, submission_id="x")
        with pytest.raises(UnavailableError, match="does not answer any more"):
            status("x")
    finally:
        server.silent_until.set()


def test_code_may_take_longer_than_an_answer(
    server: type[Answers], code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allowed(uploading: bool) -> None:
        monkeypatch.setattr(job_submit, "_TIMEOUTS_S", (1.0, 1.0) if uploading else (600.0, 600.0))

    allowed(False)
    size = 32 * 2**20  # More than the sockets' buffers take: it is not sent before it is read.
    (code / "data").write_bytes(randbytes(size))
    server.submission = (200, json.dumps({"job_id": "x", "submission_id": "x"}))
    server.uploaded, server.upload_s, server.uploads = 0, 2.0, staticmethod(allowed)
    assert submit("tidy", working_dir=code, submission_id="x") == "x"
    assert server.uploaded > size


def test_a_failed_jobs_sentence_is_found_though_ray_talks_on(server: type[Answers]) -> None:
    """When a node is lost, Ray adds the end of its raylet's log to that of every driver."""
    server.known = "FAILED"
    server.log = "row 1\nerror: There is no model.\n" + "    [state-dump] NodeManager\n" * 40
    assert outcome("x").message == "There is no model."
