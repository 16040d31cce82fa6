"""Rows about files that only one of storage element and catalogue has, beside `files` in the same database."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from agents.storage.model import Stray
from agents.storage.namespace import metadata
from fabric.store import Store

strays = sa.Table(
    "strays",
    metadata,
    sa.Column("surl", sa.Text, primary_key=True),
    sa.Column("vo", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("since_us", sa.BigInteger, nullable=False),
    sa.Column("round_us", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
comparisons = sa.Table(
    "comparisons",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("began_at_us", sa.BigInteger, nullable=False),
    sa.Column("ended_at_us", sa.BigInteger, nullable=False),
)


class StrayRows:
    """The rows. What a method returned is durable."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def saw(self, vo: str, kind: str, surls: Sequence[str], round_us: int) -> list[str]:
        """Note what a round found; those that no round found before."""

        def write(connection: sa.Connection) -> list[str]:
            new = []
            for surl in surls:
                done = connection.exec_driver_sql(
                    "UPDATE strays SET round_us = ? WHERE surl = ? AND kind = ?", (round_us, surl, kind)
                )
                if not done.rowcount:
                    connection.exec_driver_sql(
                        "INSERT OR REPLACE INTO strays (surl, vo, kind, since_us, round_us) VALUES (?,?,?,?,?)",
                        (surl, vo, kind, round_us, round_us),
                    )
                    new.append(surl)
            return new

        return await self._store.write(write)

    async def shift(self, step_us: int) -> None:
        """The clock was set by so much: what differs differs no longer than before."""
        await self._store.write(
            lambda connection: connection.exec_driver_sql(
                "UPDATE strays SET since_us = since_us + ?, round_us = round_us + ?", (step_us, step_us)
            )
        )

    async def ended(self, began_at_us: int, ended_at_us: int) -> None:
        """A round is over: what it did not find differs no more."""

        def write(connection: sa.Connection) -> None:
            connection.exec_driver_sql("DELETE FROM strays WHERE round_us < ?", (began_at_us,))
            connection.exec_driver_sql(
                "INSERT OR REPLACE INTO comparisons (id, began_at_us, ended_at_us) VALUES (1,?,?)",
                (began_at_us, ended_at_us),
            )

        await self._store.write(write)

    async def last(self) -> tuple[int, int]:
        """When the last round that ended began and ended; 0 and 0 if there was none."""

        def read(connection: sa.Connection) -> tuple[int, int]:
            row = connection.exec_driver_sql("SELECT began_at_us, ended_at_us FROM comparisons").first()
            return (int(row[0]), int(row[1])) if row else (0, 0)

        return await self._store.read(read)

    async def counts(self) -> dict[tuple[str, str], int]:
        """(VO, kind) -> how many."""

        def read(connection: sa.Connection) -> dict[tuple[str, str], int]:
            rows = connection.exec_driver_sql("SELECT vo, kind, COUNT(*) FROM strays GROUP BY vo, kind")
            return {(vo, kind): int(count) for vo, kind, count in rows}

        return await self._store.read(read)

    async def page(self, after: str, limit: int) -> list[Stray]:
        """In order of SURL, above `after`."""
        return await self._page("surl > ?", (after,), limit)

    async def due(self, vo: str, kind: str, since_us: int, after: str, limit: int) -> list[Stray]:
        """Those of a VO that were dark, or lost, then already."""
        return await self._page(
            "vo = ? AND kind = ? AND since_us <= ? AND surl > ?", (vo, kind, since_us, after), limit
        )

    async def _page(self, condition: str, values: Sequence[object], limit: int) -> list[Stray]:
        def read(connection: sa.Connection) -> list[Stray]:
            rows = connection.exec_driver_sql(
                f"SELECT surl, vo, kind, since_us FROM strays WHERE {condition} ORDER BY surl LIMIT ?", (*values, limit)
            )
            return [Stray(*row) for row in rows]

        return await self._store.read(read)

    async def gone(self, surls: Sequence[str]) -> None:
        """They differ no more."""

        def write(connection: sa.Connection) -> None:
            for surl in surls:
                connection.exec_driver_sql("DELETE FROM strays WHERE surl = ?", (surl,))

        await self._store.write(write)
