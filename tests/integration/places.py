"""Every place where a secret must not be: what a cluster writes, stores, answers and shows."""

from __future__ import annotations

import io
import mmap
import os
import sqlite3
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pyarrow.parquet as pq

from cluster.local.credentials import Credentials
from cluster.local.home import Home
from cluster.settings import Settings
from cluster.storage import object_store
from tests.integration.conftest import LocalCluster

#: What Ray tells about jobs, their runtime environments, actors and applications.
_RAY = (
    "/api/jobs/",
    "/api/serve/applications/",
    "/logical/actors",
    "/nodes?view=summary",
    "/api/v0/actors?detail=true",
    "/api/v0/jobs?detail=true",
    "/api/v0/runtime_envs?detail=true",
    "/api/v0/tasks?detail=true",
    "/api/v0/workers?detail=true",
)
Place = tuple[str, bytes | mmap.mmap]


def credential_files(home: Home) -> list[Path]:
    """The only files that may hold a secret."""
    return [
        home.credentials,
        home.ray_token,
        home.openai_key,
        home.s3 / "identities.json",
        home.s3 / "grpc.key",
    ]


def files(home: Home) -> Iterator[Place]:
    """Every other file below the home: logs, sessions, state, the S3 server's volumes."""
    secret = set(credential_files(home))
    for folder, _, names in os.walk(home.root):
        for name in names:
            path = Path(folder, name)
            if path in secret or path.is_symlink() or not path.is_file():
                continue
            if path.suffix.startswith(".db"):
                # To close a file of SQLite's frees the locks that this process has on it, and its own
                # connections then spoil the database: another process reads it.
                yield str(path), subprocess.run(["cat", path], capture_output=True, check=False).stdout
                continue
            try:
                with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    yield str(path), content
            except (FileNotFoundError, ValueError):  # It has gone, or is empty.
                continue


def objects() -> Iterator[Place]:
    """Every object of the bucket, unpacked where it is packed."""
    store = object_store()
    for found in store.list(""):
        content = store.get(found.key)
        yield store.uri(found.key), content
        if content.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                for member in archive.namelist():
                    yield f"{store.uri(found.key)}/{member}", archive.read(member)
        elif content.startswith(b"PAR1"):
            rows = pq.read_table(io.BytesIO(content)).to_pylist()
            yield f"{store.uri(found.key)} (rows)", repr(rows).encode()


def databases(home: Home) -> Iterator[Place]:
    """Runs, the alias history and MLflow's own tables, row by row."""
    for path in sorted(home.registry.glob("*.db")):
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            yield f"{path} (dump)", "\n".join(connection.iterdump()).encode()


def ray_answers(settings: Settings, credentials: Credentials) -> Iterator[Place]:
    """What Ray's REST interface says to one who has the token; in it all metadata of every job."""
    headers = {"Authorization": f"Bearer {credentials.ray_token}"}
    address = f"http://127.0.0.1:{settings.ports.dashboard}"
    with httpx.Client(base_url=address, headers=headers, timeout=60, trust_env=False) as client:
        for path in _RAY:
            answer = client.get(path)
            answer.raise_for_status()
            yield f"{address}{path}", answer.content


def command_lines(cluster: LocalCluster) -> Iterator[Place]:
    """The process list, as every user of the machine sees it."""
    for process in cluster.processes():
        try:
            yield f"command line of pid {process.pid}", "\0".join(process.cmdline()).encode()
        except psutil.Error:  # It has ended.
            continue
