"""Run records on SQLite and PostgreSQL, as several processes use them."""

import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from cluster.contracts import Principal, RunState
from cluster.database import Database
from cluster.errors import NotFoundError, RefusedError, UnavailableError, UsageError
from cluster.runs import RunRepository

OWNER = Principal(key_id="k1", team="default")
FINGERPRINT = "0123456789abcdef"


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


@pytest.fixture
def repository(url: str) -> RunRepository:
    return RunRepository(url)


def start(
    repository: RunRepository, lease_s: float = 3600, verb: str = "finetune", artifact: str | None = None
):
    return repository.start(verb, FINGERPRINT, OWNER, "host:1", lease_s, artifact=artifact)


def in_processes(work: Callable[..., object], arguments: list[tuple]) -> list:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cluster.runs"])  # Imported once, not by each.
    with ProcessPoolExecutor(len(arguments), mp_context=context) as pool:
        return [future.result() for future in [pool.submit(work, *item) for item in arguments]]


def test_a_run_from_start_to_end(repository: RunRepository) -> None:
    run = start(repository)
    assert run.id == f"finetune-{FINGERPRINT}-1"
    assert (run.state, run.attempt, run.owner, run.lease.token) == (RunState.RUNNING, 1, OWNER, 1)
    beaten = repository.heartbeat(run.id, 1, cost=2.5)
    assert beaten.lease.expires_at > run.lease.expires_at
    assert beaten.cost == 2.5
    address = f"default/checkpoint/x/{FINGERPRINT}"
    ended = repository.finish(run.id, 1, RunState.SUCCEEDED, artifact=address, cost=4.0)
    assert (ended.state, ended.lease, ended.artifact, ended.cost) == (RunState.SUCCEEDED, None, address, 4.0)
    assert ended.ended_at.utcoffset() == timedelta(0)
    assert ended.ended_at >= ended.started_at
    assert repository.get(run.id) == ended
    # Said twice, once is enough; said otherwise, it is refused.
    assert repository.finish(run.id, 1, RunState.SUCCEEDED) == ended
    with pytest.raises(RefusedError, match="ended as succeeded"):
        repository.finish(run.id, 1, RunState.FAILED, message="no")
    with pytest.raises(ValueError, match="running"):
        repository.finish(run.id, 1, RunState.RUNNING)


def test_attempts_and_tokens_rise(repository: RunRepository) -> None:
    first, second = start(repository), start(repository)
    assert [first.attempt, second.attempt] == [1, 2]
    assert [first.lease.token, second.lease.token] == [1, 2]
    assert start(repository, verb="evaluate").attempt == 1


def test_an_expired_lease_can_be_taken_and_its_old_holder_is_refused(repository: RunRepository) -> None:
    run = start(repository, lease_s=0)
    taken = repository.take_over(run.id, "host:2", 3600)
    assert (taken.lease.token, taken.lease.holder) == (2, "host:2")
    for refused in (
        lambda: repository.heartbeat(run.id, 1),
        lambda: repository.finish(run.id, 1, RunState.SUCCEEDED),
    ):
        with pytest.raises(RefusedError, match="token 1 is stale, host:2 holds token 2"):
            refused()
    with pytest.raises(RefusedError, match="host:2 holds it"):
        repository.take_over(run.id, "host:3", 60)
    assert start(repository).lease.token == 3
    repository.finish(run.id, 2, RunState.FAILED, message="boom")
    with pytest.raises(RefusedError, match="it is failed"):
        repository.take_over(run.id, "host:3", 60)


def test_reconcile_marks_only_expired_leases_as_lost(repository: RunRepository) -> None:
    dead, alive = start(repository, lease_s=0), start(repository)
    done = start(repository, lease_s=0)
    repository.finish(done.id, done.lease.token, RunState.SUCCEEDED)
    assert [run.id for run in repository.reconcile(datetime.now(UTC))] == [dead.id]
    lost = repository.get(dead.id)
    assert lost.state is RunState.LOST
    assert lost.message.startswith("Lost:")
    assert repository.get(alive.id).state is RunState.RUNNING
    assert repository.reconcile(datetime.now(UTC)) == []


def test_a_holder_that_was_taken_for_lost_and_speaks_is_alive(repository: RunRepository) -> None:
    """The database was away for longer than a lease, and somebody else came back first."""
    beating, ending = start(repository, lease_s=0), start(repository, lease_s=0)
    assert len(repository.reconcile()) == 2
    with pytest.raises(RefusedError, match="stale"):
        repository.heartbeat(beating.id, beating.lease.token + 1)
    again = repository.heartbeat(beating.id, beating.lease.token)
    assert (again.state, again.ended_at, again.message) == (RunState.RUNNING, None, None)
    ended = repository.finish(ending.id, ending.lease.token, RunState.FAILED, message="no")
    assert (ended.state, ended.message) == (RunState.FAILED, "no")


def test_listing(repository: RunRepository) -> None:
    records = [start(repository, verb=verb) for verb in ("preprocess", "finetune", "finetune")]
    repository.finish(records[1].id, 1, RunState.SUCCEEDED)
    assert [run.id for run in repository.list()] == [run.id for run in reversed(records)]
    assert [run.attempt for run in repository.list(verb="finetune")] == [2, 1]
    assert [run.id for run in repository.list(state=RunState.SUCCEEDED)] == [records[1].id]
    assert len(repository.list(limit=1)) == 1


def test_an_unknown_run(repository: RunRepository) -> None:
    for call in (repository.get, lambda run: repository.heartbeat(run, 1)):
        with pytest.raises(NotFoundError, match="no run 'nonsense'"):
            call("nonsense")
    with pytest.raises(NotFoundError):
        repository.finish("nonsense", 1, RunState.FAILED)
    with pytest.raises(NotFoundError):
        repository.take_over("nonsense", "h", 1)


def _start_many(url: str, count: int) -> list[tuple[int, int]]:
    repository = RunRepository(url)  # Tables are made by all at once, too.
    made = [repository.start("finetune", FINGERPRINT, OWNER, "host", 60) for _ in range(count)]
    return [(run.attempt, run.lease.token) for run in made]


def test_processes_that_start_together_get_numbers_of_their_own(url: str) -> None:
    made = in_processes(_start_many, [(url, 20)] * 4)
    pairs = sorted(pair for part in made for pair in part)
    assert pairs == [(number, number) for number in range(1, 81)]


def _try_take(url: str, run_id: str, holder: str) -> int | None:
    try:
        return RunRepository(url).take_over(run_id, holder, 3600).lease.token
    except RefusedError:
        return None


def test_of_processes_that_take_one_lease_one_gets_it(url: str) -> None:
    run = start(RunRepository(url), lease_s=0)
    tokens = in_processes(_try_take, [(url, run.id, f"host:{number}") for number in range(4)])
    assert sorted(tokens, key=str) == [2] + [None] * 3


def test_a_killed_holder_is_found_lost(url: str) -> None:
    code = """
import os, signal, sys
from cluster.contracts import Principal
from cluster.runs import RunRepository
owner = Principal(key_id="k", team="t")
print(RunRepository(sys.argv[1]).start("finetune", "0" * 16, owner, "h", 0.1).id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True)
    later = datetime.now(UTC) + timedelta(seconds=1)
    assert [run.id for run in RunRepository(url).reconcile(later)] == [done.stdout.strip()]


def test_a_url_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not understood"):
        RunRepository("nonsense")
    with pytest.raises(UsageError, match="not understood"):
        RunRepository("nosuchsql://x/y")
    with pytest.raises(UsageError, match="needs a file"):
        RunRepository("sqlite://")
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match="cannot be made"):
        RunRepository(f"sqlite:///{tmp_path / 'file' / 'runs.db'}")
    (tmp_path / "broken.db").write_bytes(b"this is no database" * 1000)
    with pytest.raises(UnavailableError, match="does not answer"):
        RunRepository(f"sqlite:///{tmp_path / 'broken.db'}")


def test_a_password_is_not_told() -> None:
    with pytest.raises((UnavailableError, UsageError)) as told:
        RunRepository("postgresql+psycopg2://me:secret@127.0.0.1:9/db?connect_timeout=1")
    assert "secret" not in str(told.value)


def test_readers_do_not_wait_for_a_writer(url: str, repository: RunRepository) -> None:
    run = start(repository)
    with Database(url).write() as writer:
        writer.execute(text("UPDATE runs SET cost = 7"))
        assert repository.get(run.id) == run


def test_a_lost_run_counts_as_ended_when_its_lease_did(repository: RunRepository) -> None:
    run = start(repository, lease_s=5)
    repository.reconcile(datetime.now(UTC) + timedelta(days=3))
    assert repository.get(run.id).ended_at == run.lease.expires_at


def test_a_manifest_that_stands_outweighs_the_record(repository: RunRepository) -> None:
    address = f"default/checkpoint/x/{FINGERPRINT}"
    lost, running, failed = (start(repository, lease_s=lease, artifact=address) for lease in (0, 3600, 3600))
    repository.finish(failed.id, failed.lease.token, RunState.FAILED, message="no")
    assert [run.id for run in repository.reconcile()] == [lost.id]
    committed = datetime.now(UTC)
    for run in (lost, running):
        settled = repository.settle(run.id, address, committed)
        assert (settled.state, settled.artifact, settled.ended_at) == (RunState.SUCCEEDED, address, committed)
    assert repository.settle(failed.id, address, committed) is None
    assert repository.get(failed.id).state is RunState.FAILED
    # Its own process says the same a moment later.
    assert repository.finish(running.id, running.lease.token, RunState.SUCCEEDED).ended_at == committed


def test_only_a_lost_run_is_collected_and_then_stays_so(repository: RunRepository) -> None:
    lost, alive = start(repository, lease_s=0), start(repository)
    repository.reconcile()
    assert repository.collect(alive.id) is None
    assert repository.collect(lost.id).state is RunState.COLLECTED
    assert repository.settle(lost.id, "x", datetime.now(UTC)) is None
    with pytest.raises(RefusedError, match="ended as collected"):
        repository.finish(lost.id, lost.lease.token, RunState.SUCCEEDED)


def test_a_run_keeps_the_address_that_it_was_to_make(repository: RunRepository) -> None:
    run = start(repository, artifact="default/checkpoint/x/0123456789abcdef")
    failed = repository.finish(run.id, 1, RunState.FAILED, message="boom")
    assert failed.artifact == run.artifact == "default/checkpoint/x/0123456789abcdef"


def test_no_run_starts_while_somebody_must_be_sure_of_that(url: str, repository: RunRepository) -> None:
    with ThreadPoolExecutor(1) as pool:
        with repository.no_start():
            waiting = pool.submit(start, RunRepository(url))
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.5)
            assert repository.list() == []
        assert waiting.result(timeout=600).attempt == 1


def test_listing_by_fingerprint_and_end(repository: RunRepository) -> None:
    first = start(repository)
    other = repository.start("finetune", "f" * 16, OWNER, "host:1", 60)
    assert [run.id for run in repository.list(fingerprint="f" * 16)] == [other.id]
    repository.finish(first.id, 1, RunState.FAILED)
    assert [run.id for run in repository.list(ended_since=first.started_at)] == [first.id]
    assert repository.list(ended_since=datetime.now(UTC) + timedelta(seconds=1)) == []
    assert repository.find("nonsense") is None
