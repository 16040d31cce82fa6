"""Rows of further copies of files, beside `files` in the same database (docs/data.md, Mirrored pools).

The row in `files` means one copy, the main one; each row here another, in a pool of its own. What is said of a copy is
said with a `StoredFile` of its pool and `disk_id`, all else being the file's.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import sqlalchemy as sa

from agents.storage.model import StoredFile
from agents.storage.namespace import metadata

copies = sa.Table(
    "copies",
    metadata,
    sa.Column("disk_id", sa.Text, primary_key=True),
    sa.Column("file_id", sa.Text, nullable=False),
    sa.Column("pool", sa.Text, nullable=False),
    sa.UniqueConstraint("file_id", "pool", name="uq_copies_pool"),
    sa.Index("ix_copies_in_pool", "pool", "file_id"),
    sqlite_with_rowid=False,
)


def of(connection: sa.Connection, file: StoredFile) -> list[StoredFile]:
    """The further copies of a file, in order of pool."""
    rows = connection.exec_driver_sql(
        "SELECT pool, disk_id FROM copies WHERE file_id = ? ORDER BY pool", (file.file_id,)
    )
    return [replace(file, pool=pool, disk_id=disk_id, damage="", damaged_at_us=0) for pool, disk_id in rows]


def add(connection: sa.Connection, added: Collection[StoredFile]) -> None:
    """They are there."""
    if added:
        connection.exec_driver_sql(
            "INSERT INTO copies (disk_id, file_id, pool) VALUES (?,?,?)",
            [(copy.disk_id, copy.file_id, copy.pool) for copy in added],
        )


def forget(connection: sa.Connection, file: StoredFile) -> list[StoredFile]:
    """All copies of a file but the main one are garbage; which they were."""
    gone = of(connection, file)
    if gone:
        connection.exec_driver_sql("DELETE FROM copies WHERE file_id = ?", (file.file_id,))
        throw_away(connection, gone)
    return gone


def throw_away(connection: sa.Connection, gone: Collection[StoredFile]) -> None:
    """Bytes that no row means any more."""
    connection.exec_driver_sql(
        "INSERT OR IGNORE INTO garbage (id, pool) VALUES (?, ?)", [(copy.disk_id, copy.pool) for copy in gone]
    )
