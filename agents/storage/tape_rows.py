"""The storage element's rows about tapes, beside `files` in the same database.

`tapes` has a row for each file of a VO that is kept on tape, made in the transaction that makes the file; its `tape` is
empty until a verified copy is there. A file that has left the disk has neither pool nor `disk_id`. `tape_garbage`
holds files whose record has to be forgotten; `stage_requests` who waits for which file, so that a restart goes on;
`pins` who wants which file to stay on disk.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from agents.storage.model import StoredFile
from agents.storage.namespace import metadata
from agents.storage.tape import TapeRecord
from fabric.errors import InvalidRequest
from fabric.store import Store

_HOLDER = re.compile(r"[A-Za-z0-9-]{1,32}\Z")
PART = 500
"""Ids in one statement."""

tapes = sa.Table(
    "tapes",
    metadata,
    sa.Column("file_id", sa.Text, primary_key=True),
    sa.Column("vo", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("tape", sa.Text, nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("used_at_us", sa.BigInteger, nullable=False),
    sa.Column("on_disk", sa.Integer, nullable=False),
    sa.Index("ix_tapes_wanted", "file_id", sqlite_where=sa.text("tape = '' AND on_disk = 1")),
    sa.Index("ix_tapes_oldest", "vo", "used_at_us", sqlite_where=sa.text("tape <> '' AND on_disk = 1")),
    sqlite_with_rowid=False,
)
tape_garbage = sa.Table(
    "tape_garbage",
    metadata,
    sa.Column("file_id", sa.Text, primary_key=True),
    sa.Column("vo", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
stage_requests = sa.Table(
    "stage_requests",
    metadata,
    sa.Column("file_id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("pin_s", sa.Float, nullable=False),
    sa.Column("asked_at_us", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
pins = sa.Table(
    "pins",
    metadata,
    sa.Column("file_id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("until_us", sa.BigInteger, nullable=False),
    sa.Index("ix_pins_until", "until_us"),
    sqlite_with_rowid=False,
)


@dataclass(frozen=True, slots=True)
class TapeCopy:
    """What is known of a file that belongs on tape."""

    tape: str
    """Empty: there is no verified copy yet."""
    position: int
    on_disk: bool


@dataclass(frozen=True, slots=True)
class StageRequest:
    """Somebody waits for a file."""

    file_id: str
    owner: str
    vo: str
    size_bytes: int
    tape: str
    position: int


def held_by(user: str, holder: str) -> str:
    """The owner of a wish: a user, or one of several wishes of a user. Raises InvalidRequest(HOLDER_INVALID)."""
    if not holder:
        return user
    if not _HOLDER.match(holder):
        raise InvalidRequest("HOLDER_INVALID", f"{holder[:64]!r} is not a name of at most 32 letters, digits and -")
    return f"{user}\n{holder}"


def user_of(owner: str) -> str:
    """Whose wish it is."""
    return owner.partition("\n")[0]


# -- in the transactions of `FileStore` ------------------------------------------------------------------------------


def wanted(connection: sa.Connection, file: StoredFile) -> None:
    """A new file belongs on tape."""
    connection.exec_driver_sql(
        "INSERT INTO tapes (file_id, vo, size_bytes, tape, position, used_at_us, on_disk) VALUES (?,?,?,'',0,?,1)",
        (file.file_id, file.vo, file.size_bytes, file.created_at_us),
    )


def forget(connection: sa.Connection, file_id: str) -> None:
    """A file is gone."""
    row = connection.exec_driver_sql(
        "DELETE FROM tapes WHERE file_id = ? RETURNING vo, CASE WHEN tape <> '' THEN size_bytes ELSE 0 END", (file_id,)
    ).first()
    if row is not None:
        connection.exec_driver_sql("INSERT INTO tape_garbage (file_id, vo, size_bytes) VALUES (?,?,?)", (file_id, *row))
        for table in ("stage_requests", "pins"):
            connection.exec_driver_sql(f"DELETE FROM {table} WHERE file_id = ?", (file_id,))


def on_disk_again(connection: sa.Connection, file_id: str) -> None:
    """A file has bytes on disk, those that were put."""
    connection.exec_driver_sql("UPDATE tapes SET on_disk = 1 WHERE file_id = ?", (file_id,))


def leaves_disk(connection: sa.Connection, file: StoredFile, now_us: int) -> bool:
    """Note that the bytes that `file` means leave the disk, if they may: there is a tape copy, and nobody has pinned
    the file or waits for it, unless they are damaged."""
    held = (
        "EXISTS (SELECT 1 FROM pins WHERE file_id = t.file_id AND until_us > ?) OR "
        "EXISTS (SELECT 1 FROM stage_requests WHERE file_id = t.file_id)"
    )
    done = connection.exec_driver_sql(
        "UPDATE tapes AS t SET on_disk = 0 WHERE file_id = ? AND tape <> '' AND on_disk = 1 AND EXISTS "
        f"(SELECT 1 FROM files WHERE id = t.file_id AND disk_id = ? AND (damage <> '' OR NOT ({held})))",
        (file.file_id, file.disk_id, now_us),
    )
    return bool(done.rowcount)


class TapeRows:
    """The rows, as model values. What a method that writes has returned from is durable."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def enrol(self, vos: Collection[str]) -> None:
        """Rows for files that were there before their VO was kept on tape. A walk over the files of these VOs."""

        def write(connection: sa.Connection) -> None:
            for vo in sorted(vos):
                connection.exec_driver_sql(
                    "INSERT INTO tapes (file_id, vo, size_bytes, tape, position, used_at_us, on_disk) "
                    "SELECT id, vo, size_bytes, '', 0, created_at_us, 1 FROM files WHERE vo = ? "
                    "AND NOT EXISTS (SELECT 1 FROM tapes WHERE file_id = files.id)",
                    (vo,),
                )

        await self._store.write(write)

    async def use_by_vo(self) -> dict[str, int]:
        """VO -> bytes on tape."""

        def read(connection: sa.Connection) -> dict[str, int]:
            rows = connection.exec_driver_sql("SELECT vo, SUM(size_bytes) FROM tapes WHERE tape <> '' GROUP BY vo")
            return {vo: int(size) for vo, size in rows}

        return await self._store.read(read)

    async def copies(self, file_ids: Sequence[str]) -> dict[str, TapeCopy]:
        """Of those that belong on tape."""

        def read(connection: sa.Connection) -> dict[str, TapeCopy]:
            found: dict[str, TapeCopy] = {}
            for start in range(0, len(file_ids), PART):
                part = file_ids[start : start + PART]
                marks = ",".join("?" * len(part))
                rows = connection.exec_driver_sql(
                    f"SELECT file_id, tape, position, on_disk FROM tapes WHERE file_id IN ({marks})", tuple(part)
                )
                found.update({row[0]: TapeCopy(row[1], row[2], bool(row[3])) for row in rows})
            return found

        return await self._store.read(read)

    async def to_archive(self, after: str, limit: int) -> list[str]:
        """Ids above `after` of files that are on disk only."""

        def read(connection: sa.Connection) -> list[str]:
            rows = connection.exec_driver_sql(
                "SELECT t.file_id FROM tapes t JOIN files f ON f.id = t.file_id WHERE t.tape = '' AND t.on_disk = 1 "
                "AND f.damage = '' AND t.file_id > ? ORDER BY t.file_id LIMIT ?",
                (after, limit),
            )
            return [row[0] for row in rows]

        return await self._store.read(read)

    async def archived(self, record: TapeRecord) -> bool:
        """There is a verified copy. False if the file was removed meanwhile."""

        def write(connection: sa.Connection) -> bool:
            done = connection.exec_driver_sql(
                "UPDATE tapes SET tape = ?, position = ? WHERE file_id = ?",
                (record.tape, record.position, record.file_id),
            )
            return bool(done.rowcount)

        return await self._store.write(write)

    async def lost(self, file_id: str) -> None:
        """The tape copy is no good: what is on disk, or comes there again, has to be archived anew."""

        def write(connection: sa.Connection) -> None:
            connection.exec_driver_sql("UPDATE tapes SET tape = '' WHERE file_id = ?", (file_id,))
            connection.exec_driver_sql("DELETE FROM stage_requests WHERE file_id = ?", (file_id,))

        await self._store.write(write)

    async def used(self, file_ids: Collection[str], now_us: int) -> None:
        """These were read."""

        def write(connection: sa.Connection) -> None:
            connection.exec_driver_sql(
                "UPDATE tapes SET used_at_us = ? WHERE file_id = ?", [(now_us, file_id) for file_id in file_ids]
            )

        if file_ids:
            await self._store.write(write)

    async def oldest(self, vo: str, now_us: int, limit: int) -> list[str]:
        """Ids of files that may leave the disk, the longest unused first."""

        def read(connection: sa.Connection) -> list[str]:
            rows = connection.exec_driver_sql(
                "SELECT file_id FROM tapes t WHERE vo = ? AND tape <> '' AND on_disk = 1 "
                "AND NOT EXISTS (SELECT 1 FROM pins WHERE file_id = t.file_id AND until_us > ?) "
                "AND NOT EXISTS (SELECT 1 FROM stage_requests WHERE file_id = t.file_id) ORDER BY used_at_us LIMIT ?",
                (vo, now_us, limit),
            )
            return [row[0] for row in rows]

        return await self._store.read(read)

    async def garbage(self, limit: int = 100) -> list[tuple[str, str, int]]:
        """(file id, VO, bytes that were counted) of records to forget."""

        def read(connection: sa.Connection) -> list[tuple[str, str, int]]:
            rows = connection.exec_driver_sql("SELECT file_id, vo, size_bytes FROM tape_garbage LIMIT ?", (limit,))
            return [(row[0], row[1], int(row[2])) for row in rows]

        return await self._store.read(read)

    async def collected(self, file_id: str) -> None:
        """This record is forgotten."""

        def write(connection: sa.Connection) -> None:
            connection.exec_driver_sql("DELETE FROM tape_garbage WHERE file_id = ?", (file_id,))

        await self._store.write(write)

    # -- who wants what on disk --------------------------------------------------------------------------------------

    async def ask(self, file_ids: Sequence[str], owner: str, pin_s: float, now_us: int) -> None:
        """Note that `owner` waits for these."""

        def write(connection: sa.Connection) -> None:
            connection.exec_driver_sql(
                "INSERT INTO stage_requests (file_id, owner, pin_s, asked_at_us) VALUES (?,?,?,?) "
                "ON CONFLICT (file_id, owner) DO UPDATE SET pin_s = max(pin_s, excluded.pin_s)",
                [(file_id, owner, pin_s, now_us) for file_id in file_ids],
            )

        await self._store.write(write)

    async def pin(self, file_ids: Sequence[str], owner: str, until_us: int) -> None:
        """Keep these on disk until then, or as long as they were to be kept already."""

        def write(connection: sa.Connection) -> None:
            connection.exec_driver_sql(
                "INSERT INTO pins (file_id, owner, until_us) VALUES (?,?,?) "
                "ON CONFLICT (file_id, owner) DO UPDATE SET until_us = max(until_us, excluded.until_us)",
                [(file_id, owner, until_us) for file_id in file_ids],
            )

        if file_ids:
            await self._store.write(write)

    async def staged(self, file_id: str, now_us: int) -> None:
        """It is on disk: who waited has it pinned now."""

        def write(connection: sa.Connection) -> None:
            connection.exec_driver_sql(
                "INSERT INTO pins (file_id, owner, until_us) "
                "SELECT file_id, owner, ? + CAST(pin_s * 1000000 AS INTEGER) FROM stage_requests WHERE file_id = ? "
                "ON CONFLICT (file_id, owner) DO UPDATE SET until_us = max(until_us, excluded.until_us)",
                (now_us, file_id),
            )
            connection.exec_driver_sql("DELETE FROM stage_requests WHERE file_id = ?", (file_id,))
            connection.exec_driver_sql("UPDATE tapes SET used_at_us = ? WHERE file_id = ?", (now_us, file_id))

        await self._store.write(write)

    async def release(self, file_ids: Sequence[str], owner: str) -> None:
        """`owner` neither waits for these nor pins them any more."""

        def write(connection: sa.Connection) -> None:
            for table in ("stage_requests", "pins"):
                connection.exec_driver_sql(
                    f"DELETE FROM {table} WHERE file_id = ? AND owner = ?", [(each, owner) for each in file_ids]
                )

        if file_ids:
            await self._store.write(write)

    async def unpin_expired(self, now_us: int) -> None:
        """Drop pins that have ended."""

        def write(connection: sa.Connection) -> None:
            connection.exec_driver_sql("DELETE FROM pins WHERE until_us <= ?", (now_us,))

        await self._store.write(write)

    async def pinned_until_us(self, file_id: str, now_us: int) -> int:
        """The end of the longest pin; 0 if there is none."""

        def read(connection: sa.Connection) -> int:
            found = connection.exec_driver_sql(
                "SELECT MAX(until_us) FROM pins WHERE file_id = ? AND until_us > ?", (file_id, now_us)
            ).scalar_one()
            return int(found or 0)

        return await self._store.read(read)

    async def requests(self) -> list[StageRequest]:
        """Everything that is waited for, in the order in which it was asked."""

        def read(connection: sa.Connection) -> list[StageRequest]:
            rows = connection.exec_driver_sql(
                "SELECT r.file_id, r.owner, t.vo, t.size_bytes, t.tape, t.position FROM stage_requests r "
                "JOIN tapes t ON t.file_id = r.file_id ORDER BY r.asked_at_us, r.file_id, r.owner"
            )
            return [StageRequest(*row) for row in rows]

        return await self._store.read(read)
