"""The database's locks and connections, on SQLite and on PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
import uuid
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, insert, make_url, select, text

from cluster.database import Database, UtcDateTime
from cluster.errors import AccessError, UnavailableError, UsageError
from tests.unit.test_runs import in_processes

_METADATA = MetaData()
_TIMES = Table("times", _METADATA, Column("id", Integer, primary_key=True), Column("at", UtcDateTime))


@pytest.fixture
def database(database_url: str) -> Database:
    return Database(database_url)


def _count_up(url: str, file: str, times: int) -> None:
    database = Database(url)
    for _ in range(times):
        with database.exclusive("counter"):
            path = Path(file)
            path.write_text(str(int(path.read_text()) + 1))


def test_a_lock_excludes_processes(database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "counter"
    file.write_text("0")
    in_processes(_count_up, [(database_url, str(file), 25)] * 4)
    assert file.read_text() == "100"


def test_locks_of_other_names_do_not_wait(database: Database) -> None:
    with database.exclusive("one"), Database(str_url(database)).exclusive("two"):
        pass


def test_a_killed_holder_frees_its_lock(database_url: str) -> None:
    code = """
import os, signal, sys
from cluster.database import Database
with Database(sys.argv[1]).exclusive("held"):
    print("held", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, database_url], capture_output=True, text=True)
    assert done.stdout == "held\n"
    with Database(database_url).exclusive("held"):
        pass


def test_an_error_inside_frees_the_lock_and_stays_itself(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.exclusive("held"):
        raise ZeroDivisionError
    with database.exclusive("held"):
        pass


def test_a_folder_that_vanished_is_not_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    database = Database(f"sqlite:///{folder / 'manta.db'}")
    database.create(_METADATA)
    away = folder.rename(tmp_path / "away")
    database.engine.dispose()
    for use in (database.write, database.read, lambda: database.exclusive("x")):
        with pytest.raises(UnavailableError), use():
            pass
    assert not folder.exists()
    folder.touch()  # Nor does another make it where something stands in its place.
    with pytest.raises(UnavailableError):
        Database(f"sqlite:///{folder / 'manta.db'}").create(_METADATA)
    folder.unlink()
    away.rename(folder)
    with database.write() as connection:
        connection.execute(insert(_TIMES).values(at=datetime.now(UTC)))


def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    database.create(_METADATA)
    with suppress(ZeroDivisionError), database.write() as connection:
        connection.execute(insert(_TIMES).values(id=1, at=datetime.now(UTC)))
        raise ZeroDivisionError
    with database.read() as connection:
        assert connection.execute(select(_TIMES)).all() == []


def test_times_come_back_in_utc_to_the_microsecond(database: Database) -> None:
    database.create(_METADATA)
    at = datetime(2026, 1, 2, 3, 4, 5, 678901, timezone(timedelta(hours=5)))
    with database.write() as connection:
        connection.execute(insert(_TIMES).values(id=1, at=at))
    with database.read() as connection:
        found = connection.scalar(select(_TIMES.c.at))
    assert (found, found.utcoffset()) == (at, timedelta(0))


def test_a_server_that_came_back_is_used_again(postgres: str, postgres_url: str) -> None:
    database = Database(postgres_url)
    with database.read() as connection:
        connection.execute(text("SELECT 1"))
    cut_connections(postgres)
    with database.read() as connection:
        assert connection.scalar(text("SELECT 1")) == 1


def test_a_connection_that_is_cut_is_one_sentence(postgres: str, postgres_url: str) -> None:
    database = Database(postgres_url)

    def ask() -> None:
        with database.read() as connection:
            connection.execute(text("SELECT 1"))
            cut_connections(postgres)
            connection.execute(text("SELECT 1"))

    with pytest.raises(UnavailableError, match="does not answer"):
        ask()


def cut_connections(postgres: str) -> None:
    """What a restarted server does to those who are connected."""
    with Database(postgres.format(database="postgres")).write() as connection:
        connection.execute(
            text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 't%'")
        )


def str_url(database: Database) -> str:
    return database.url.render_as_string(hide_password=False)


def test_a_table_of_something_else_is_refused(database: Database) -> None:
    with database.write() as connection:
        connection.execute(text("CREATE TABLE times (id INTEGER PRIMARY KEY)"))
    with pytest.raises(UsageError, match=r"a table 'times' of something else \(it has no at\)"):
        database.create(_METADATA)


def test_who_may_not_make_tables_is_told_so(postgres_url: str) -> None:
    role = f"plain_{uuid.uuid4().hex[:8]}"
    with Database(postgres_url).write() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN"))
    plain = Database(make_url(postgres_url).set(username=role).render_as_string(hide_password=False))
    with pytest.raises(AccessError, match="must be allowed to create and write tables"):
        plain.create(_METADATA)


def test_a_lock_that_stays_held_is_not_waited_for_for_ever(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a machine that vanished would hold it."""
    monkeypatch.setattr("cluster.database.LOCK_TIMEOUT_S", 0.2)
    with Database(postgres_url).exclusive("held"):
        with pytest.raises(UnavailableError, match="lock timeout"), Database(postgres_url).exclusive("held"):
            pass
        with Database(postgres_url).exclusive("other"):
            pass
