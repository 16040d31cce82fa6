"""A store in a schema at a PostgreSQL server, for who has one: histories of many millions of jobs, backups, replicas.

The schema belongs to one agent at a time: its writer holds an advisory lock for as long as its connection lives. A
connection that ends (server restarted, network cut) is opened again at the next transaction; a transaction whose commit
was not answered may have been kept, as after any lost answer, so what is written must bear being written again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import NullPool

from fabric.database import require_known
from fabric.errors import DataCorrupted, Exhausted, GridError, InvalidRequest, Unavailable

if TYPE_CHECKING:
    from psycopg import Connection

    from fabric.database import Migration

CONNECT_TIMEOUT_S = 5
LOCK_PATIENCE_S = 15.0
"""How long a server may take to notice that the agent's process before this one has ended."""
_LOCK_PAUSE_S = 0.1


class PostgresqlDatabase:
    """The schema `schema` at `url`, such as `postgresql:///gridfabric?host=/run/postgresql` or
    `postgresql://lb@db.example.org/gridfabric`. Its version is in its table `store_version`.

    Raises InvalidRequest DATABASE_URL_INVALID; a password in the URL is refused, because settings are no place for
    secrets: libpq finds it in the file that PGPASSFILE names.
    """

    begin_write = "BEGIN"
    begin_read = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"

    def __init__(self, url: str, schema: str) -> None:
        checked = _checked(url)
        self._url = checked.set(drivername="postgresql+psycopg")
        self._schema = schema
        self.name = f"{checked.render_as_string()} (schema {schema})"
        self._writers = self._engine(read_only=False)
        self._readers = self._engine(read_only=True)

    def _engine(self, *, read_only: bool) -> sqlalchemy.Engine:
        engine = sqlalchemy.create_engine(
            self._url,
            poolclass=NullPool,
            hide_parameters=True,  # they may be secrets, and errors go to logs
            isolation_level="AUTOCOMMIT",
            connect_args={"connect_timeout": CONNECT_TIMEOUT_S, "application_name": "gridfabric"},
        )

        def prepare(driver: Connection[Any], _record: object) -> None:
            driver.autocommit = True
            driver.execute(f'SET search_path TO "{self._schema}"'.encode())
            driver.execute("SET synchronous_commit TO on")
            if read_only:
                driver.execute("SET default_transaction_read_only TO on")

        event.listen(engine, "connect", prepare)
        return engine

    def open(self, metadata: sqlalchemy.MetaData, migrations: Sequence[Migration]) -> sqlalchemy.Connection:
        """Connect, take the schema for this agent, and bring the tables up to date."""
        try:
            connection = self._writers.connect()
            try:
                self._take(connection)
                self._bring_up_to_date(connection, metadata, migrations)
            except BaseException:
                connection.close()
                raise
        except DBAPIError as error:
            raise self.readable(error) from error
        return connection

    def _take(self, connection: sqlalchemy.Connection) -> None:
        until = time.monotonic() + LOCK_PATIENCE_S
        take = sqlalchemy.text("SELECT pg_try_advisory_lock(hashtextextended(:schema, 0))")
        while not connection.execute(take, {"schema": f"gridfabric {self._schema}"}).scalar_one():
            if time.monotonic() > until:
                raise Unavailable(
                    "STORE_LOCKED",
                    f"the store {self.name} is in use by another agent; stop that one, or give this one a database of "
                    "its own",
                )
            time.sleep(_LOCK_PAUSE_S)

    def _bring_up_to_date(
        self, connection: sqlalchemy.Connection, metadata: sqlalchemy.MetaData, migrations: Sequence[Migration]
    ) -> None:
        newest = 1 + len(migrations)
        connection.exec_driver_sql("BEGIN")
        try:
            connection.exec_driver_sql(f'CREATE SCHEMA IF NOT EXISTS "{self._schema}"')
            connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS store_version (version INTEGER NOT NULL)")
            found = connection.exec_driver_sql("SELECT max(version) FROM store_version").scalar_one() or 0
            require_known(self.name, found, newest)
            for migrate in migrations[found - 1 :] if found else ():
                migrate(connection)
            metadata.create_all(connection)
            if found != newest:
                connection.exec_driver_sql("DELETE FROM store_version")
                connection.exec_driver_sql(f"INSERT INTO store_version VALUES ({newest})")
            connection.exec_driver_sql("COMMIT")
        except BaseException:
            if self.in_transaction(connection.connection.driver_connection):
                connection.exec_driver_sql("ROLLBACK")
            raise

    def reader(self) -> sqlalchemy.Connection:
        """A connection that cannot write."""
        return self._readers.connect()

    def in_transaction(self, driver: Any) -> bool:
        """Also one that a failed statement has spoilt."""
        from psycopg.pq import TransactionStatus

        return driver.info.transaction_status not in (TransactionStatus.IDLE, TransactionStatus.UNKNOWN)

    def is_lost(self, driver: Any) -> bool:
        """After a statement could not be answered."""
        return driver.closed

    def close(self, connection: sqlalchemy.Connection) -> None:
        """Give the schema free."""
        connection.close()

    def readable(self, error: BaseException) -> BaseException:
        """A failure of the database as a GridError; anything else unchanged. By SQLSTATE (manual, appendix A)."""
        import psycopg

        if isinstance(error, GridError):
            return error
        cause: BaseException | None = error.orig if isinstance(error, DBAPIError) else error
        if not isinstance(cause, psycopg.Error):
            return error
        state = cause.sqlstate or ""
        said = (str(cause).strip() or type(cause).__name__).splitlines()[0][:300]
        if state == "53100":
            return Exhausted(
                "STORE_FULL",
                f"the disk of {self.name} is full; free some space and send the request again",
                retry_after_s=5,
            )
        if state.startswith("54"):
            return InvalidRequest("STORE_LIMIT", f"the store {self.name} cannot keep it ({said}); use a shorter name")
        if state.startswith("XX00"):
            return DataCorrupted(
                "STORE_CORRUPT", f"the store {self.name} is damaged ({said}); restore it from a backup"
            )
        if state[:2] in ("08", "53", "57", "25", "40") or (not state and isinstance(cause, psycopg.OperationalError)):
            return Unavailable(
                "STORE_UNAVAILABLE", f"the store {self.name} cannot be used now ({said}); it is tried again when asked"
            )
        if state[:2] in ("28", "3D", "3F") or state == "42501":
            return Unavailable(
                "STORE_UNAVAILABLE",
                f"the server of the store {self.name} refuses ({said}); look at the user's rights there",
            )
        return error


def _checked(url: str) -> sqlalchemy.URL:
    cure = "write it as postgresql://user@host/database, or postgresql:///database?host=/run/postgresql"
    try:
        found = sqlalchemy.make_url(url)
    except (ArgumentError, ValueError):
        raise InvalidRequest("DATABASE_URL_INVALID", f"the address of the database cannot be read; {cure}") from None
    if found.password is not None or "password" in found.query:
        raise InvalidRequest(
            "DATABASE_URL_INVALID",
            "the address of the database holds a password; leave it out and put it into the file that PGPASSFILE "
            "names (mode 0600)",
        )
    if found.drivername not in ("postgresql", "postgres") or not found.database:
        raise InvalidRequest("DATABASE_URL_INVALID", f"{found.render_as_string()!r} is no PostgreSQL database; {cure}")
    return found
