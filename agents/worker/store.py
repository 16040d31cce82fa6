"""The worker's rows: one per order that it holds, from before anything is done for it until its report is
acknowledged."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

metadata = sa.MetaData()
orders = sa.Table(
    "orders",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("boot_id", sa.Text, nullable=False),
    sa.Column("received_at_us", sa.Integer, nullable=False),
    sa.Column("run_job", sa.LargeBinary, nullable=False),
)


def insert(connection: sa.Connection, rows: Sequence[tuple[str, str, int, bytes]]) -> None:
    """Orders received: (key, boot id, time, order)."""
    if rows:
        connection.exec_driver_sql("INSERT OR IGNORE INTO orders VALUES (?, ?, ?, ?)", list(rows))


def delete(connection: sa.Connection, keys: Sequence[str]) -> None:
    """Orders that are over."""
    if keys:
        connection.exec_driver_sql("DELETE FROM orders WHERE key = ?", [(key,) for key in keys])


def load(connection: sa.Connection) -> list[tuple[str, str, bytes]]:
    """(key, boot id, order) of everything held, oldest first."""
    rows = connection.exec_driver_sql("SELECT key, boot_id, run_job FROM orders ORDER BY received_at_us, rowid")
    return [(row[0], row[1], row[2]) for row in rows]
