"""One agent's durable state: SQLite with group commit.

Durable is what `await write(...)` has returned from: the transaction is synced (WAL, synchronous=FULL). All functions
that wait at one moment share one transaction, so a thousand concurrent writers cost one sync; each runs in its own
savepoint, so one that raises harms no other. There is one writer thread and a few reader connections; readers see
whole transactions.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, cast

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.exc import DatabaseError, DBAPIError, OperationalError
from sqlalchemy.pool import NullPool

from fabric.errors import DataCorrupted, Defect, Exhausted, GridError, Unavailable
from security.errors import os_error_text

T = TypeVar("T")
WriteFunction = Callable[[sqlalchemy.Connection], T]
ReadFunction = Callable[[sqlalchemy.Connection], T]
Migration = Callable[[sqlalchemy.Connection], None]

MAX_WAITING = 20_000
"""Write functions waiting for their transaction; more means the disk does not keep up and callers must slow down."""
MAX_BATCH = 1_000
"""Functions in one transaction: bounds how long the first of them waits."""
MAX_BATCH_S = 0.1
"""Seconds of running functions in one transaction, for the same reason."""
READERS = 3
"""Reader connections. Python threads share one interpreter lock: more do not read faster."""
BUSY_TIMEOUT_S = 5.0
"""Wait for another process that has the file open, such as the sqlite3 shell of an operator."""
QUICK_CHECK_S = 5.0
"""Longest look for damage when opening; a check that takes longer is given up and the store is used."""
_PROGRESS_STEPS = 20_000


class _Write:
    """One waiting function and where its outcome goes: a future of an event loop, or of a waiting thread."""

    __slots__ = ("error", "function", "future", "loop", "result")

    def __init__(
        self,
        function: WriteFunction[Any],
        loop: asyncio.AbstractEventLoop | None,
        future: asyncio.Future[Any] | Future[Any],
    ) -> None:
        self.function = function
        self.loop = loop
        self.future = future
        self.result: Any = None
        self.error: BaseException | None = None

    def resolve(self) -> None:
        """Hand the outcome over; on the thread that the future belongs to."""
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class Store:
    """An open store. `write` and `read` from any event loop; `write_sync` and `read_sync` for start-up code and tests.

    `migrations[i]` brings a file of version i+1 to version i+2; a new file is made from `metadata` at the newest
    version. Raises on opening: DataCorrupted STORE_CORRUPT, Unavailable STORE_UNAVAILABLE (cannot be opened),
    DataCorrupted STORE_NEWER (written by a newer version of the software).
    """

    def __init__(self, path: str | Path, metadata: sqlalchemy.MetaData, migrations: Sequence[Migration] = ()) -> None:
        self.path = Path(path)
        self.metadata = metadata
        self._writer_engine = _engine(self.path, read_only=False)
        self._reader_engine = _engine(self.path, read_only=True)
        self._waiting: queue.Queue[_Write | None] = queue.Queue(MAX_WAITING)
        self._closed = False
        self._after_commit: list[Callable[[], None]] = []
        self.transactions = 0
        """Transactions committed since opening."""
        self.functions = 0
        """Write functions run since opening; divided by `transactions`: how well commits are shared."""
        self._connection = self._open(migrations)
        self._idle_readers: deque[sqlalchemy.Connection] = deque()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix=f"read-{self.path.stem}")
        self._thread = threading.Thread(target=self._run, name=f"write-{self.path.stem}", daemon=True)
        self._thread.start()

    def _open(self, migrations: Sequence[Migration]) -> sqlalchemy.Connection:
        try:
            _check(self.path)
            connection = self._writer_engine.connect()
            self.path.chmod(0o600)
            self._bring_up_to_date(connection, migrations)
        except (DatabaseError, sqlite3.DatabaseError) as error:
            raise _readable(error, self.path) from error
        except OSError as error:
            raise Unavailable(
                "STORE_UNAVAILABLE", f"the store {self.path} cannot be opened ({os_error_text(error)})"
            ) from error
        return connection

    def _bring_up_to_date(self, connection: sqlalchemy.Connection, migrations: Sequence[Migration]) -> None:
        newest = 1 + len(migrations)
        found = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
        if found > newest:
            raise DataCorrupted(
                "STORE_NEWER",
                f"the store {self.path} has version {found} and this software knows {newest}; install the newer "
                f"software",
                path=self.path,
            )
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            for migrate in migrations[found - 1 :] if found else ():
                migrate(connection)
            self.metadata.create_all(connection)
            if found != newest:
                connection.exec_driver_sql(f"PRAGMA user_version = {newest}")
            connection.exec_driver_sql("COMMIT")
        except BaseException:
            _driver(connection).rollback()
            raise

    async def write(self, function: WriteFunction[T]) -> T:
        """Run `function(connection)` in the writer's transaction; its result arrives after the commit.

        What it raises is raised here and only its own changes are undone. It must be short, must not commit or roll
        back, and must return plain data, not an open result. If this await is cancelled the function may still run
        and commit. Raises Exhausted STORE_BUSY (too many waiting), Exhausted STORE_FULL (disk), Unavailable
        STORE_CLOSED, DataCorrupted.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._put(_Write(function, loop, future))
        return await future

    def write_sync(self, function: WriteFunction[T], timeout_s: float = 30.0) -> T:
        """As `write`, blocking the calling thread: for start-up code and tests, not on an event loop that serves."""
        future: Future[T] = Future()
        self._put(_Write(function, None, future))
        try:
            return future.result(timeout_s)
        except TimeoutError:
            raise Unavailable("STORE_SLOW", f"the store {self.path} did not commit within {timeout_s:g} s") from None

    async def read(self, function: ReadFunction[T]) -> T:
        """Run `function(connection)` on a reader connection, in one consistent view of what is committed.

        It cannot write. It must return plain data. Raises what it raises, Unavailable STORE_CLOSED, DataCorrupted.
        """
        self._require_open()
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, function)

    def read_sync(self, function: ReadFunction[T]) -> T:
        """As `read`, blocking the calling thread."""
        self._require_open()
        return self._read(function)

    def after_commit(self, callback: Callable[[], None]) -> None:
        """From inside a write function: call `callback` on the writer thread once this transaction is committed.

        It is also called if this function's own savepoint was undone meanwhile: it may only mean *look again*.
        """
        self._after_commit.append(callback)

    async def close(self) -> None:
        """Commit what waits, then close. May be called twice."""
        await asyncio.get_running_loop().run_in_executor(None, self.close_sync)

    def close_sync(self) -> None:
        """As `close`, blocking the calling thread."""
        if not self._closed:
            self._closed = True
            self._waiting.put(None)
        self._thread.join()
        self._readers.shutdown(wait=True)
        while self._idle_readers:
            self._idle_readers.popleft().close()
        self._writer_engine.dispose()
        self._reader_engine.dispose()

    def _require_open(self) -> None:
        if self._closed:
            raise Unavailable(
                "STORE_CLOSED", f"the store {self.path} is closed; the service is stopping, try again later"
            )

    def _put(self, waiting: _Write) -> None:
        self._require_open()
        try:
            self._waiting.put_nowait(waiting)
        except queue.Full:
            raise Exhausted(
                "STORE_BUSY",
                f"{MAX_WAITING} changes wait for the disk of {self.path}; send again later and slower",
                retry_after_s=1,
            ) from None

    # -- the writer thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        open_ended = True
        while open_ended:
            first = self._waiting.get()
            if first is None:
                break
            open_ended = self._transaction(first)
        self._refuse_rest()
        try:
            _driver(self._connection).execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error:
            pass  # the log is taken in at the next opening
        self._connection.close()

    def _transaction(self, first: _Write) -> bool:
        """One group commit, beginning with `first`. False when the store is to close."""
        batch: list[_Write] = []
        open_ended = True
        driver = _driver(self._connection)
        try:
            driver.execute("BEGIN IMMEDIATE")
            until = time.monotonic() + MAX_BATCH_S
            upcoming: _Write | None = first
            while upcoming is not None:
                batch.append(upcoming)
                self._run_one(driver, upcoming)
                if len(batch) >= MAX_BATCH or time.monotonic() >= until:
                    break
                try:
                    upcoming = self._waiting.get_nowait()
                except queue.Empty:
                    break
                open_ended = upcoming is not None
            driver.execute("COMMIT")
            self.transactions += 1
            self.functions += len(batch)
        except Exception as error:  # the whole transaction is lost: nobody in it may be told that it was kept
            self._undo(driver)
            for waiting in batch or [first]:
                waiting.error = _readable(error, self.path)
            batch = batch or [first]
        self._deliver(batch)
        return open_ended

    def _run_one(self, driver: sqlite3.Connection, waiting: _Write) -> None:
        driver.execute("SAVEPOINT f")
        try:
            waiting.result = waiting.function(self._connection)
        except BaseException as error:
            waiting.error = Defect("STORE_MISUSED", str(error)) if isinstance(error, StopIteration) else error
            if isinstance(error, OperationalError):
                waiting.error = _readable(error, self.path)
            if not driver.in_transaction:
                raise  # SQLite undid everything (disk full, I/O error)
            driver.execute("ROLLBACK TO f")
        if not driver.in_transaction:
            raise Defect("STORE_MISUSED", f"a write function of {self.path.name} ended the shared transaction")
        driver.execute("RELEASE f")

    def _undo(self, driver: sqlite3.Connection) -> None:
        self._after_commit.clear()
        try:
            if driver.in_transaction:
                driver.execute("ROLLBACK")
        except sqlite3.Error:
            pass  # the next BEGIN will say what is wrong

    def _deliver(self, batch: Sequence[_Write]) -> None:
        callbacks, self._after_commit = self._after_commit, []
        for callback in callbacks:
            callback()
        by_loop: dict[asyncio.AbstractEventLoop, list[_Write]] = {}
        for waiting in batch:
            if waiting.loop is None:
                waiting.resolve()
            else:
                by_loop.setdefault(waiting.loop, []).append(waiting)
        for loop, group in by_loop.items():
            try:
                loop.call_soon_threadsafe(_resolve_all, group)
            except RuntimeError:
                pass  # the loop is gone and with it everybody who waited

    def _refuse_rest(self) -> None:
        rest: list[_Write] = []
        while True:
            try:
                waiting = self._waiting.get_nowait()
            except queue.Empty:
                break
            if waiting is not None:
                waiting.error = Unavailable("STORE_CLOSED", f"the store {self.path} closed before the change was made")
                rest.append(waiting)
        self._deliver(rest)

    # -- readers -----------------------------------------------------------------------------------------------------

    def _read(self, function: ReadFunction[T]) -> T:
        try:
            connection = self._idle_readers.pop()
        except IndexError:
            connection = self._reader_engine.connect()
        driver = _driver(connection)
        try:
            driver.execute("BEGIN")
            try:
                return function(connection)
            finally:
                if driver.in_transaction:
                    driver.execute("COMMIT")
        except (OperationalError, sqlite3.DatabaseError) as error:
            raise _readable(error, self.path) from error
        finally:
            self._idle_readers.append(connection)


def _resolve_all(group: Sequence[_Write]) -> None:
    for waiting in group:
        waiting.resolve()


def _driver(connection: sqlalchemy.Connection) -> sqlite3.Connection:
    return cast("sqlite3.Connection", connection.connection.driver_connection)


def _engine(path: Path, *, read_only: bool) -> sqlalchemy.Engine:
    """Transactions are begun by us (BEGIN IMMEDIATE for the writer), so the driver's own guessing is switched off."""
    engine = sqlalchemy.create_engine(
        sqlalchemy.URL.create("sqlite", database=str(path)),
        poolclass=NullPool,
        connect_args={"isolation_level": None, "timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
    )

    def prepare(driver: sqlite3.Connection, _record: object) -> None:
        driver.execute("PRAGMA journal_mode = WAL")
        driver.execute("PRAGMA synchronous = FULL")
        driver.execute("PRAGMA foreign_keys = ON")
        driver.execute("PRAGMA temp_store = MEMORY")
        driver.execute("PRAGMA cache_size = -16384")
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


def _readable(error: BaseException, path: Path) -> BaseException:
    """A database failure as a GridError; anything else unchanged."""
    if isinstance(error, GridError):
        return error
    cause: BaseException | None = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(cause, sqlite3.Error):
        return error
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return Exhausted(
            "STORE_FULL", f"the disk of {path} is full; free some space and send the request again", retry_after_s=5
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return _corrupt(path, str(cause))
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Unavailable("STORE_LOCKED", f"the store {path} is held by another process; close it there and try again")
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return Unavailable(
            "STORE_UNAVAILABLE", f"the store {path} cannot be used ({cause}); look at its disk and owner"
        )
    return error
