"""What users were told, a second time and in a file of its own: submissions, and what was to be cancelled.

From this, bookkeeping and the gatekeepers a grid's only broker makes its store anew (rebuild.py). One of several has no
journal: its successor has copies.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import sqlalchemy as sa

from agents.broker import copies
from agents.broker.copies import Copy
from agents.broker.store import Submission
from agents.broker.tables import chunks, marks
from fabric.store import Store

metadata = sa.MetaData()

submissions = sa.Table(
    "submissions",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)
cancellations = sa.Table(
    "cancellations",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at_us", sa.Integer, nullable=False),
    sa.Column("job_ids", sa.Text, nullable=False),
)


class Journal:
    """Durable is what these have returned from."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(self, new: Sequence[Submission]) -> None:
        """Submissions that are in the broker's store. Those that are here stay as they are."""

        def keep(connection: sa.Connection) -> None:
            connection.exec_driver_sql(
                "INSERT OR IGNORE INTO submissions (job_id, owner, body) VALUES (?,?,?)",
                [(item.parent_id, item.owner, copies.encode(Copy(item))) for item in new],
            )

        await self._store.write(keep)

    async def cancelled(self, job_ids: Sequence[str], at_us: int) -> None:
        """The owner of these jobs was told that they will be ended."""
        await self._store.write(
            lambda connection: connection.exec_driver_sql(
                "INSERT INTO cancellations (at_us, job_ids) VALUES (?,?)", (at_us, "\n".join(job_ids))
            ).close()
        )

    async def drop(self, job_ids: Sequence[str], before_us: int) -> None:
        """Forget submissions, before the broker's store does, and cancellations from before that time."""

        def drop(connection: sa.Connection) -> None:
            connection.exec_driver_sql("DELETE FROM cancellations WHERE at_us < ?", (before_us,))
            if job_ids:
                connection.exec_driver_sql("DELETE FROM submissions WHERE job_id = ?", [(key,) for key in job_ids])

        await self._store.write(drop)

    async def count(self) -> int:
        """Submissions."""
        return await self._store.read(
            lambda connection: int(connection.exec_driver_sql("SELECT count(*) FROM submissions").scalar_one())
        )

    async def owners(self) -> dict[str, str]:
        """By submission."""
        return await self._store.read(
            lambda connection: {
                str(job_id): str(owner)
                for job_id, owner in connection.exec_driver_sql("SELECT job_id, owner FROM submissions")
            }
        )

    async def load(self, job_ids: Sequence[str]) -> list[Copy]:
        """These submissions, with what of them was to be cancelled."""
        cancelled = await self._cancelled()

        def read(connection: sa.Connection) -> list[Submission]:
            found: list[Submission] = []
            for chunk in chunks(job_ids):
                rows = connection.exec_driver_sql(
                    f"SELECT body FROM submissions WHERE job_id IN ({marks(chunk)})", chunk
                )
                found.extend(copies.decode(bytes(row[0])).submission for row in rows)
            return found

        return [
            Copy(item, tuple(job_id for job_id in item.job_ids if job_id in cancelled))
            for item in await self._store.read(read)
        ]

    async def _cancelled(self) -> Collection[str]:
        return await self._store.read(
            lambda connection: {
                job_id
                for (job_ids,) in connection.exec_driver_sql("SELECT job_ids FROM cancellations")
                for job_id in str(job_ids).split("\n")
            }
        )
