"""Rows: one table, one row a credential."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from agents.myproxy.model import Stored

metadata = sa.MetaData()
credentials = sa.Table(
    "credentials",
    metadata,
    sa.Column("username", sa.String, primary_key=True),
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("owner", sa.String, nullable=False, index=True),
    sa.Column("description", sa.String, nullable=False),
    sa.Column("retrievers", sa.String, nullable=False),
    sa.Column("trusted_retrievers", sa.String, nullable=False),
    sa.Column("renewers", sa.String, nullable=False),
    sa.Column("max_lifetime_s", sa.BigInteger, nullable=False),
    sa.Column("chain_pem", sa.LargeBinary, nullable=False),
    sa.Column("not_before_us", sa.BigInteger, nullable=False),
    sa.Column("not_after_us", sa.BigInteger, nullable=False, index=True),
    sa.Column("stored_at_us", sa.BigInteger, nullable=False),
    sa.Column("has_passphrase", sa.Boolean, nullable=False),
    sa.Column("salt", sa.LargeBinary, nullable=False),
    sa.Column("nonce", sa.LargeBinary, nullable=False),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
)

COLUMNS = tuple(column.name for column in credentials.columns)


def _stored(row: sa.Row[Any]) -> Stored:
    return Stored(**dict(zip(COLUMNS, row, strict=True)))


def find(connection: sa.Connection, username: str, name: str) -> Stored | None:
    """One credential."""
    row = connection.execute(
        sa.select(credentials).where(credentials.c.username == username, credentials.c.name == name)
    ).one_or_none()
    return _stored(row) if row is not None else None


def of_user(connection: sa.Connection, username: str, owner: str | None) -> list[Stored]:
    """A user name's credentials, of one owner if given."""
    query = sa.select(credentials).where(credentials.c.username == username).order_by(credentials.c.name)
    if owner is not None:
        query = query.where(credentials.c.owner == owner)
    return [_stored(row) for row in connection.execute(query)]


def put(connection: sa.Connection, row: Stored) -> None:
    """Store or replace."""
    connection.execute(sa.insert(credentials).prefix_with("OR REPLACE").values(**dataclasses.asdict(row)))


def erase(connection: sa.Connection, username: str, name: str) -> None:
    """Remove one; the sealed key does not stay behind in a free page."""
    connection.exec_driver_sql("PRAGMA secure_delete = ON")
    connection.execute(sa.delete(credentials).where(credentials.c.username == username, credentials.c.name == name))


def expired(connection: sa.Connection, now_us: int) -> Sequence[tuple[str, str, str]]:
    """Erase what has ended; user name, name and owner of each."""
    found = connection.execute(
        sa.select(credentials.c.username, credentials.c.name, credentials.c.owner).where(
            credentials.c.not_after_us <= now_us
        )
    ).all()
    connection.exec_driver_sql("PRAGMA secure_delete = ON")
    connection.execute(sa.delete(credentials).where(credentials.c.not_after_us <= now_us))
    return [(row.username, row.name, row.owner) for row in found]


def count(connection: sa.Connection, owner: str | None = None) -> int:
    """All credentials, or those of one owner."""
    query = sa.select(sa.func.count()).select_from(credentials)
    if owner is not None:
        query = query.where(credentials.c.owner == owner)
    return int(connection.execute(query).scalar_one())
