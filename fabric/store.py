"""One agent's durable state: a database with group commit.

Durable is what `await write(...)` has returned from: the transaction is synced. All functions that wait at one moment
share one transaction, so a thousand concurrent writers cost one sync; each runs in its own savepoint, so one that
raises harms no other. There is one writer thread and a few reader connections; readers see whole transactions.

The database is a file of the agent's own (`fabric/database_sqlite.py`) or a schema at a PostgreSQL server
(`fabric/database_postgresql.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, cast

import sqlalchemy

from fabric import failpoints
from fabric.database import Database, Driver, Migration, driver_of
from fabric.database_sqlite import SqliteDatabase
from fabric.errors import Defect, Exhausted, GridError, Unavailable

T = TypeVar("T")
WriteFunction = Callable[[sqlalchemy.Connection], T]
ReadFunction = Callable[[sqlalchemy.Connection], T]
_Reader = tuple[sqlalchemy.Connection, Driver]

MAX_WAITING = 20_000
"""Write functions waiting for their transaction; more means the disk does not keep up and callers must slow down."""
MAX_BATCH = 1_000
"""Functions in one transaction: bounds how long the first of them waits."""
MAX_BATCH_S = 0.1
"""Seconds of running functions in one transaction, for the same reason."""
READERS = 3
"""Reader connections. Python threads share one interpreter lock: more do not read faster."""


@functools.lru_cache(maxsize=512)
def _in_format(sql: str) -> str:
    return sql.replace("%", "%%").replace("?", "%s")


def run(
    connection: sqlalchemy.Connection, sql: str, values: Sequence[Any] | None = None
) -> sqlalchemy.CursorResult[Any]:
    """Execute SQL of ours, with `?` for each value, on any database; a list of rows as values executes it for each.

    Much cheaper than an expression of SQLAlchemy, for statements that run for every job or file.
    """
    if connection.dialect.paramstyle != "qmark":
        sql = _in_format(sql)
    return connection.exec_driver_sql(sql, cast("Any", values))


def rows(connection: sqlalchemy.Connection, sql: str, values: Sequence[Any] = ()) -> list[Any]:
    """All rows of a SELECT of ours, with `?` for each value, as tuples from the database's own library.

    A fifth of what `run` costs for a statement that finds one row.
    """
    if connection.dialect.paramstyle != "qmark":
        sql = _in_format(sql)
    driver: Any = driver_of(connection)
    return driver.execute(sql, values).fetchall()


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

    `database` is one, or the path of an SQLite file. `migrations[i]` brings version i+1 of the tables to version i+2;
    an empty database gets those of `metadata` at the newest version. Raises on opening: DataCorrupted STORE_CORRUPT,
    Unavailable STORE_UNAVAILABLE (cannot be opened), DataCorrupted STORE_NEWER (written by a newer version of the
    software), Unavailable STORE_LOCKED (another agent has it).
    """

    def __init__(
        self,
        database: Database | str | Path,
        metadata: sqlalchemy.MetaData,
        migrations: Sequence[Migration] = (),
        on_damage: Callable[[GridError], None] | None = None,
    ) -> None:
        """`on_damage` is called, on any thread, with each STORE_CORRUPT that is met later."""
        self.metadata = metadata
        self._on_damage = on_damage
        self._migrations = migrations
        self._database: Database = SqliteDatabase(Path(database)) if isinstance(database, str | Path) else database
        self._waiting: queue.Queue[_Write | None] = queue.Queue(MAX_WAITING)
        self._closed = False
        self._after_commit: list[Callable[[], None]] = []
        self.transactions = 0
        """Transactions committed since opening."""
        self.functions = 0
        """Write functions run since opening; divided by `transactions`: how well commits are shared."""
        self._open()
        self._idle_readers: deque[_Reader] = deque()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-read")
        self._thread = threading.Thread(target=self._run, name="store-write", daemon=True)
        self._thread.start()

    def _open(self) -> None:
        self._connection = self._database.open(self.metadata, self._migrations)
        self._driver = driver_of(self._connection)

    @property
    def name(self) -> str:
        """What the database is called in sentences: its path, or its address."""
        return self._database.name

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
            raise Unavailable("STORE_SLOW", f"the store {self.name} did not commit within {timeout_s:g} s") from None

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
            self._idle_readers.popleft()[0].close()

    def _readable(self, error: BaseException) -> BaseException:
        found = self._database.readable(error)
        if self._on_damage is not None and isinstance(found, GridError) and found.reason == "STORE_CORRUPT":
            self._on_damage(found)
        return found

    def _require_open(self) -> None:
        if self._closed:
            raise Unavailable(
                "STORE_CLOSED", f"the store {self.name} is closed; the service is stopping, try again later"
            )

    def _put(self, waiting: _Write) -> None:
        self._require_open()
        try:
            self._waiting.put_nowait(waiting)
        except queue.Full:
            raise Exhausted(
                "STORE_BUSY",
                f"{MAX_WAITING} changes wait for the disk of {self.name}; send again later and slower",
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
        self._database.close(self._connection)

    def _transaction(self, first: _Write) -> bool:
        """One group commit, beginning with `first`. False when the store is to close."""
        batch: list[_Write] = []
        open_ended = True
        try:
            self._begin()
            until = time.monotonic() + MAX_BATCH_S
            upcoming: _Write | None = first
            while upcoming is not None:
                batch.append(upcoming)
                self._run_one(upcoming)
                if len(batch) >= MAX_BATCH or time.monotonic() >= until:
                    break
                try:
                    upcoming = self._waiting.get_nowait()
                except queue.Empty:
                    break
                open_ended = upcoming is not None
            failpoints.reached("store.ran")
            self._driver.execute("COMMIT")
            failpoints.reached("store.committed")
            self.transactions += 1
            self.functions += len(batch)
        except Exception as error:  # the whole transaction is lost: nobody in it may be told that it was kept
            self._undo()
            for waiting in batch or [first]:
                waiting.error = self._readable(error)
            batch = batch or [first]
        self._deliver(batch)
        return open_ended

    def _begin(self) -> None:
        """Begin the writer's transaction, on a new connection if the one before has ended by itself."""
        try:
            self._driver.execute(self._database.begin_write)
        except Exception:
            if not self._database.is_lost(self._driver):
                raise
            _discard(self._connection)
            self._open()
            self._driver.execute(self._database.begin_write)

    def _run_one(self, waiting: _Write) -> None:
        driver = self._driver
        driver.execute("SAVEPOINT f")
        try:
            waiting.result = waiting.function(self._connection)
        except BaseException as error:
            is_stop = isinstance(error, StopIteration)
            waiting.error = Defect("STORE_MISUSED", str(error)) if is_stop else self._readable(error)
            if not self._database.in_transaction(driver):
                raise  # everything was undone (disk full, I/O error, connection lost)
            driver.execute("ROLLBACK TO f")
        if not self._database.in_transaction(driver):
            raise Defect("STORE_MISUSED", f"a write function of {self.name} ended the shared transaction")
        driver.execute("RELEASE f")

    def _undo(self) -> None:
        self._after_commit.clear()
        with contextlib.suppress(Exception):  # the next BEGIN will say what is wrong
            if self._database.in_transaction(self._driver):
                self._driver.execute("ROLLBACK")

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
                waiting.error = Unavailable("STORE_CLOSED", f"the store {self.name} closed before the change was made")
                rest.append(waiting)
        self._deliver(rest)

    # -- readers -----------------------------------------------------------------------------------------------------

    def _read(self, function: ReadFunction[T]) -> T:
        try:
            connection, driver = reader = self._begin_read()
            try:
                return function(connection)
            finally:
                if self._database.is_lost(driver):
                    _discard(connection)
                else:
                    if self._database.in_transaction(driver):
                        driver.execute("COMMIT")
                    self._idle_readers.append(reader)
        except Exception as error:
            readable = self._readable(error)
            if readable is error:
                raise
            raise readable from error

    def _begin_read(self) -> _Reader:
        """A reader in a transaction; one that ended while it was idle is replaced."""
        with contextlib.suppress(IndexError):
            connection, driver = self._idle_readers.pop()
            try:
                driver.execute(self._database.begin_read)
                return connection, driver
            except Exception:
                _discard(connection)
                if not self._database.is_lost(driver):
                    raise
        connection = self._database.reader()
        driver = driver_of(connection)
        driver.execute(self._database.begin_read)
        return connection, driver


def _discard(connection: sqlalchemy.Connection) -> None:
    with contextlib.suppress(Exception):
        connection.invalidate()
    with contextlib.suppress(Exception):
        connection.close()


def _resolve_all(group: Sequence[_Write]) -> None:
    for waiting in group:
        waiting.resolve()
