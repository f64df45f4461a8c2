"""The SQL database behind run records and the alias history: SQLite on a laptop, PostgreSQL on a cluster."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Connection,
    DateTime,
    Dialect,
    Engine,
    MetaData,
    Table,
    create_engine,
    event,
    inspect,
    make_url,
    text,
)
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.schema import CreateColumn, CreateIndex, CreateTable
from sqlalchemy.types import TypeDecorator

from cluster.errors import AccessError, UnavailableError, UsageError
from cluster.locks import file_lock

#: Seconds that a SQLite connection waits for another process's transaction.
BUSY_TIMEOUT_S = 30.0
#: Seconds that a process waits for a lock that another one holds on PostgreSQL.
LOCK_TIMEOUT_S = 120.0

_READ_ONLY = "manta_read_only"
#: ``info`` of a column that came after its table's first release: it may be NULL, and is added where absent.
LATER = {"later": True}
#: SQLSTATE of insufficient privilege, and of a database that is read-only.
_NO_RIGHTS = ("42501", "25006")


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time: stored as UTC without a zone (SQLite has none), read back with one."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC. Raises ValueError for a time without a zone, which could mean anything."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """With UTC as its zone."""
        return None if value is None else value.replace(tzinfo=UTC)


class Database:
    """One SQL database, shared by many processes. Cheap to make: it connects at first use.

    The folder of a SQLite database is made here, if need be, and never again: one that vanishes later is away
    and will come back, and must find its place free.

    Raises UsageError for a URL that SQLAlchemy does not understand or that names a SQLite database in
    memory, which no other process could see.
    """

    def __init__(self, url: str) -> None:
        try:
            self.url: URL = make_url(url)
            self._sqlite = self.url.get_backend_name() == "sqlite"
            if self._sqlite and self.url.database in (None, "", ":memory:"):
                raise UsageError(f"{url}: a SQLite database needs a file: write sqlite:////absolute/path.db.")
            self.engine: Engine = self._engine()
        except (ArgumentError, NoSuchModuleError) as error:
            raise UsageError(
                f"The database's URL is not understood ({error}): write it as SQLAlchemy does."
            ) from None
        except OSError as error:
            raise UnavailableError(f"Database {self} cannot be made: {error.strerror}.") from None
        except ModuleNotFoundError as error:
            raise UsageError(
                f"The driver {error.name!r} of database {self} is not installed: install it, or name another"
                " in the URL (postgresql+psycopg2://...)."
            ) from None

    def __str__(self) -> str:
        """The URL without its password."""
        return self.url.render_as_string(hide_password=True)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is committed at the end; on SQLite writers queue from its beginning.

        Raises UnavailableError if the database does not answer.
        """
        with self._told(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection to read with; readers do not wait for writers. Raises UnavailableError."""
        with self._told(), self.engine.connect() as connection:
            yield connection.execution_options(**{_READ_ONLY: True})

    @contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Hold the lock ``name`` among all users of this database; a holder that dies frees it.

        Raises UnavailableError, also when on PostgreSQL another has held it for :data:`LOCK_TIMEOUT_S`: a
        machine that vanished keeps its locks until the server finds out.
        """
        if self._sqlite:
            if not self.path.parent.is_dir():
                raise UnavailableError(f"Database {self} does not answer: its folder is not there.")
            lock = self.path.with_name(f"{self.path.name}.{_slug(name)}.lock")
            with file_lock(lock, make_folder=False):
                yield
            return
        with self._told(), self.engine.connect() as connection:
            key = {"key": int(_digits(name), 16) - 2**63}
            connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S:g}s'"))
            connection.execute(text("SELECT pg_advisory_lock(:key)"), key)
            try:
                yield
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), key)

    def create(self, metadata: MetaData) -> None:
        """Create the tables that are missing, and columns marked :data:`LATER`; safe among processes.

        Raises UsageError if something else has a table of that name, as MLflow has one called runs.
        """
        with self.exclusive("create tables"), self.write() as connection:
            for table in metadata.sorted_tables:
                connection.execute(CreateTable(table, if_not_exists=True))
                self._add_columns(connection, table)
                for index in table.indexes:
                    connection.execute(CreateIndex(index, if_not_exists=True))

    def _add_columns(self, connection: Connection, table: Table) -> None:
        there = {str(column["name"]) for column in inspect(connection).get_columns(table.name)}
        missing = [column for column in table.columns if column.name not in there]
        foreign = sorted(column.name for column in missing if column.info != LATER)
        if foreign:
            raise UsageError(
                f"Database {self} has a table {table.name!r} of something else (it has no {foreign[0]}):"
                " name a database of Manta's own in MANTA_DATABASE__URL."
            )
        for column in missing:
            made = CreateColumn(column).compile(dialect=connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {made}")

    @property
    def path(self) -> Path:
        """File of a SQLite database."""
        return Path(str(self.url.database))

    def _engine(self) -> Engine:
        if not self._sqlite:
            return create_engine(self.url, pool_pre_ping=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(self.url, connect_args={"timeout": BUSY_TIMEOUT_S})
        event.listen(engine, "connect", self._on_connect)
        event.listen(engine, "begin", _on_begin)
        return engine

    def _on_connect(self, connection: Any, record: Any) -> None:
        connection.isolation_level = None  # pysqlite's own BEGIN comes too late to queue writers.
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            # The change needs the file to itself, and SQLite does not wait for that as it does for locks.
            with file_lock(self.path.with_name(f"{self.path.name}.wal.lock"), make_folder=False):
                connection.execute("PRAGMA journal_mode=WAL")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            if getattr(error.orig, "pgcode", None) in _NO_RIGHTS:
                raise AccessError(
                    f"Database {self} refuses: {_first_line(error)}. Its user must be allowed to create and "
                    "write tables there."
                ) from error
            # Its other subclasses tell of a wrong statement, not of a database that is away or broken.
            away = isinstance(error, OperationalError) or type(error) is DatabaseError
            if not (away or error.connection_invalidated):
                raise
            raise UnavailableError(f"Database {self} does not answer: {_first_line(error)}.") from error


def _on_begin(connection: Connection) -> None:
    # A transaction that reads first and writes later would fail at once if another wrote in between.
    read_only = connection.get_execution_options().get(_READ_ONLY)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def _digits(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0].rstrip(".") if error.orig else type(error).__name__
