"""What a store (`fabric/store.py`) asks of the database under it, whichever it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import sqlalchemy

from fabric.errors import DataCorrupted

Migration = Callable[[sqlalchemy.Connection], None]


class Driver(Protocol):
    """The connection of the database's own library; transactions are begun and ended on it, by the store alone."""

    def execute(self, query: str, /) -> Any:
        """Run one statement."""
        ...


class Database(Protocol):
    """What a store asks of the database under it."""

    @property
    def name(self) -> str:
        """What it is called in sentences; holds no secret."""
        ...

    @property
    def begin_write(self) -> str:
        """The statement that begins the writer's transaction."""
        ...

    @property
    def begin_read(self) -> str:
        """The statement that begins a reader's transaction: one consistent view."""
        ...

    def open(self, metadata: sqlalchemy.MetaData, migrations: Sequence[Migration]) -> sqlalchemy.Connection:
        """The writer's connection, with the tables at their newest version. Raises GridError."""
        ...

    def reader(self) -> sqlalchemy.Connection:
        """A connection that cannot write."""
        ...

    def in_transaction(self, driver: Any) -> bool:
        """Whether what was begun has not ended."""
        ...

    def is_lost(self, driver: Any) -> bool:
        """Whether the connection has ended by itself."""
        ...

    def readable(self, error: BaseException) -> BaseException:
        """A failure of the database as a GridError; anything else unchanged."""
        ...

    def close(self, connection: sqlalchemy.Connection) -> None:
        """Close the writer's connection."""
        ...


def driver_of(connection: sqlalchemy.Connection) -> Driver:
    """The connection of the database's own library under one of SQLAlchemy."""
    return cast("Driver", connection.connection.driver_connection)


def require_known(name: str, found: int, newest: int) -> None:
    """The store `name` has tables of version `found`. Raises DataCorrupted STORE_NEWER."""
    if found > newest:
        raise DataCorrupted(
            "STORE_NEWER",
            f"the store {name} has version {found} and this software knows {newest}; install the newer software",
            store=name,
        )
