"""Upload, batch, results with the official client against a real engine; the worker is killed meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.integration.serving import BASE, Served

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]


def worker_pid(served: Served) -> int:
    """The process of the batch worker of this cluster."""
    home = str(Path(served.cluster.home))
    for process in psutil.process_iter(["pid", "cmdline"]):
        if "ServeReplica:gateway:batches" not in " ".join(process.info["cmdline"] or []):
            continue
        with contextlib.suppress(psutil.Error):  # It has ended.
            if any(home in value for value in process.environ().values()):
                return int(process.info["pid"])
    raise AssertionError("there is no batch worker")


def test_a_batch_outlives_its_worker(served: Served) -> None:
    client = served.client()
    body = {"model": BASE, "max_tokens": 24, "temperature": 0}
    lines = [
        {
            "custom_id": f"row-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": body | {"messages": [{"role": "user", "content": f"Count to {number}"}]},
        }
        for number in range(120)
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("rows.jsonl", content), purpose="batch")
    killed, give_up = False, time.monotonic() + 1200
    while not killed:  # One that is done before it is looked at a second time proves nothing.
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        while batch.status not in ("completed", "failed", "cancelled", "expired"):
            assert time.monotonic() < give_up, batch
            if not killed and batch.request_counts is not None and batch.request_counts.completed:
                os.kill(worker_pid(served), signal.SIGKILL)
                killed = True
            time.sleep(0.1)
            batch = client.batches.retrieve(batch.id)
        assert batch.status == "completed", batch
    assert batch.output_file_id is not None
    answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert sorted(answer["custom_id"] for answer in answers) == sorted(
        str(line["custom_id"]) for line in lines
    )
    assert batch.error_file_id is None
    assert all(answer["response"]["body"]["usage"]["completion_tokens"] for answer in answers)
