"""A store in a file of the agent's own: SQLite in WAL mode with synchronous=FULL."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.exc import DatabaseError, DBAPIError
from sqlalchemy.pool import NullPool

from fabric.database import driver_of, require_known
from fabric.errors import DataCorrupted, Exhausted, GridError, Unavailable
from security.errors import os_error_text
from security.files import write_atomic

if TYPE_CHECKING:
    from fabric.database import Migration

BUSY_TIMEOUT_S = 5.0
"""Wait for another process that has the file open, such as the sqlite3 shell of an operator."""
QUICK_CHECK_S = 5.0
"""Longest look for damage when opening; a check that takes longer is given up and the store is used."""
WRITER_CACHE_KIB = 16 * 1024
READER_CACHE_KIB = 4 * 1024
"""Pages of the file in memory, of each connection. A store grows until they are full: 28 MiB with its three readers."""
_PROGRESS_STEPS = 20_000
KEPT_ASIDE = 3
"""Damaged files of one store."""
_ASIDE = ".damaged-"


class SqliteDatabase:
    """The file `path`, private to its owner; its version is SQLite's `user_version`."""

    begin_write = "BEGIN IMMEDIATE"
    begin_read = "BEGIN"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        self._writers = _engine(path, read_only=False)
        self._readers = _engine(path, read_only=True)

    def open(self, metadata: sqlalchemy.MetaData, migrations: Sequence[Migration]) -> sqlalchemy.Connection:
        """Look for damage, open, and bring the tables up to date."""
        try:
            _check(self.path)
            connection = self._writers.connect()
            self.path.chmod(0o600)
            self._bring_up_to_date(connection, metadata, migrations)
        except (DatabaseError, sqlite3.DatabaseError) as error:
            raise self.readable(error) from error
        except OSError as error:
            raise Unavailable(
                "STORE_UNAVAILABLE", f"the store {self.path} cannot be opened ({os_error_text(error)})"
            ) from error
        return connection

    def _bring_up_to_date(
        self, connection: sqlalchemy.Connection, metadata: sqlalchemy.MetaData, migrations: Sequence[Migration]
    ) -> None:
        newest = 1 + len(migrations)
        found = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
        require_known(self.name, found, newest)
        connection.exec_driver_sql(self.begin_write)
        try:
            for migrate in migrations[found - 1 :] if found else ():
                migrate(connection)
            metadata.create_all(connection)
            if found != newest:
                connection.exec_driver_sql(f"PRAGMA user_version = {newest}")
            connection.exec_driver_sql("COMMIT")
        except BaseException:
            cast("sqlite3.Connection", driver_of(connection)).rollback()
            raise

    def reader(self) -> sqlalchemy.Connection:
        """A connection that cannot write."""
        return self._readers.connect()

    def in_transaction(self, driver: sqlite3.Connection) -> bool:
        """SQLite ends a transaction by itself when the disk is full or broken."""
        return driver.in_transaction

    def is_lost(self, driver: sqlite3.Connection) -> bool:
        """A file is not lost: what is wrong with it is an error of each statement."""
        return False

    def close(self, connection: sqlalchemy.Connection) -> None:
        """Take the log into the file, and close it."""
        try:
            driver_of(connection).execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error:
            pass  # the log is taken in at the next opening
        connection.close()

    def readable(self, error: BaseException) -> BaseException:
        """A failure of the database as a GridError; anything else unchanged."""
        if isinstance(error, GridError):
            return error
        cause: BaseException | None = error.orig if isinstance(error, DBAPIError) else error
        if not isinstance(cause, sqlite3.Error):
            return error
        path = self.path
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return Exhausted(
                "STORE_FULL", f"the disk of {path} is full; free some space and send the request again", retry_after_s=5
            )
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return _corrupt(path, str(cause))
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return Unavailable(
                "STORE_LOCKED", f"the store {path} is held by another process; close it there and try again"
            )
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
            return Unavailable(
                "STORE_UNAVAILABLE", f"the store {path} cannot be used ({cause}); look at its disk and owner"
            )
        return error


def set_aside(path: Path, why: str, now: datetime) -> Path:
    """Keep a damaged file, and what SQLite keeps beside it, under another name; it may then be made anew.

    Killed in between, it is done again at the next opening (`is_given_up`): a log that was left would be played into
    the new file. The newest KEPT_ASIDE stay. Raises Unavailable STORE_UNAVAILABLE.
    """
    kept = path.with_name(f"{path.name}{_ASIDE}{now:%Y%m%dT%H%M%SZ}")
    try:
        give_up(path, why)
        for suffix in ("-wal", "-shm", ""):
            if (part := path.with_name(path.name + suffix)).exists():
                part.rename(kept.with_name(kept.name + suffix))
        _given_up(path).unlink()
        older = sorted(found for found in path.parent.glob(f"{path.name}{_ASIDE}*Z"))[:-KEPT_ASIDE]
        for found in older:
            for suffix in ("-wal", "-shm", ""):
                found.with_name(found.name + suffix).unlink(missing_ok=True)
    except OSError as error:
        raise Unavailable(
            "STORE_UNAVAILABLE", f"the damaged store {path} cannot be set aside ({os_error_text(error)})"
        ) from error
    return kept


def give_up(path: Path, why: str) -> None:
    """Note that a file is not to be used again, also where the look at opening would miss its damage."""
    write_atomic(_given_up(path), why.encode(), 0o600)


def is_given_up(path: Path) -> bool:
    """Whether that was noted."""
    return _given_up(path).exists()


def _given_up(path: Path) -> Path:
    return path.with_name(path.name + ".given-up")


def _engine(path: Path, *, read_only: bool) -> sqlalchemy.Engine:
    """Transactions are begun by the store (BEGIN IMMEDIATE for the writer), so the driver's own guessing is off."""
    engine = sqlalchemy.create_engine(
        sqlalchemy.URL.create("sqlite", database=str(path)),
        poolclass=NullPool,
        hide_parameters=True,  # they may be secrets, and errors go to logs
        connect_args={"isolation_level": None, "timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
    )

    def prepare(driver: sqlite3.Connection, _record: object) -> None:
        driver.execute("PRAGMA journal_mode = WAL")
        driver.execute("PRAGMA synchronous = FULL")
        driver.execute("PRAGMA foreign_keys = ON")
        driver.execute("PRAGMA temp_store = MEMORY")
        driver.execute(f"PRAGMA cache_size = -{READER_CACHE_KIB if read_only else WRITER_CACHE_KIB}")
        if read_only:
            driver.execute("PRAGMA query_only = ON")

    event.listen(engine, "connect", prepare)
    return engine


def _check(path: Path) -> None:
    """Look for damage, at most QUICK_CHECK_S. Raises DataCorrupted STORE_CORRUPT."""
    if not path.exists():
        return
    until = time.monotonic() + QUICK_CHECK_S
    driver = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)
    try:
        driver.set_progress_handler(lambda: int(time.monotonic() > until), _PROGRESS_STEPS)
        try:
            found = [str(row[0]) for row in driver.execute("PRAGMA quick_check(3)")]
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                raise
            return
    finally:
        driver.close()
    if found != ["ok"]:
        raise _corrupt(path, "; ".join(found))


def _corrupt(path: Path, what: str) -> DataCorrupted:
    return DataCorrupted(
        "STORE_CORRUPT",
        f"the store {path} is damaged ({what[:300]}); stop the service, keep a copy of the file, and restore it "
        f"from a backup "
        "or move it away to begin empty",
        path=path,
    )
