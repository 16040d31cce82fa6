"""The storage element's rows: which files are there, and which bytes still have to be deleted.

A row in `files` is the commit point of a put; its disappearance is the commit point of a removal, and another `disk_id`
in it that of a move or a repair. `copies` are further ones of the same bytes (`copy_rows.py`). `garbage` holds bytes
that no row means any more and that may still be on disk: it is written in the transaction that makes them so, and
emptied after the unlink. A `disk_id` is never used again. A file's name (`namespace`) comes and goes in the same
transactions.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from agents.storage import copy_rows, namespace, tape_rows
from agents.storage.model import Checksums, Entry, StoredFile
from agents.storage.namespace import Path, metadata
from agents.storage.reservations import spend
from fabric.errors import Conflict
from fabric.store import Store

__all__ = ["MIGRATIONS", "FileStore", "ScrubState", "metadata"]

files = sa.Table(
    "files",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("vo", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("adler32", sa.Text, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("put_id", sa.Text, nullable=False),
    sa.Column("name_hint", sa.Text, nullable=False),
    sa.Column("pool", sa.Text, nullable=False),
    sa.Column("created_at_us", sa.BigInteger, nullable=False),
    sa.Column("disk_id", sa.Text, nullable=False),
    sa.Column("damage", sa.Text, nullable=False, server_default=""),
    sa.Column("damaged_at_us", sa.BigInteger, nullable=False, server_default="0"),
    sa.UniqueConstraint("owner", "put_id", name="uq_files_put"),
    sa.Index("ix_files_vo", "vo", "id"),
    sa.Index("ix_files_moved", "disk_id", sqlite_where=sa.text("disk_id <> id")),
    sa.Index("ix_files_damaged", "id", sqlite_where=sa.text("damage <> ''")),
    sqlite_with_rowid=False,
)
garbage = sa.Table(
    "garbage",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("pool", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

pools = sa.Table(
    "pools",
    metadata,
    sa.Column("path", sa.Text, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)
scrub = sa.Table(
    "scrub",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("position", sa.Text, nullable=False),
    sa.Column("began_at_us", sa.BigInteger, nullable=False),
    sa.Column("ended_at_us", sa.BigInteger, nullable=False),
    sa.Column("files", sa.BigInteger, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
)

_COLUMNS = (
    "id, vo, size_bytes, adler32, sha256, owner, put_id, name_hint, pool, created_at_us, disk_id, damage, damaged_at_us"
)
_MARKS = ",".join("?" * len(_COLUMNS.split(",")))
_COLUMNS_OF_FILE = ", ".join(f"f.{column}" for column in _COLUMNS.split(", "))


def _give_bytes_a_name(connection: sa.Connection) -> None:
    """Migration 1 to 2: bytes that move, and damage."""
    for column in ("disk_id TEXT NOT NULL DEFAULT ''", "damage TEXT NOT NULL DEFAULT ''",
                   "damaged_at_us BIGINT NOT NULL DEFAULT 0"):  # fmt: skip
        connection.exec_driver_sql(f"ALTER TABLE files ADD COLUMN {column}")
    connection.exec_driver_sql("UPDATE files SET disk_id = id")
    connection.exec_driver_sql("CREATE INDEX ix_files_moved ON files (disk_id) WHERE disk_id <> id")
    connection.exec_driver_sql("CREATE INDEX ix_files_damaged ON files (id) WHERE damage <> ''")


MIGRATIONS = (_give_bytes_a_name,)


@dataclass(frozen=True, slots=True)
class ScrubState:
    """How far the scrubber is: durable, so that a restart goes on there."""

    position: str = ""
    """Id of the last file that was looked at in this round."""
    began_at_us: int = 0
    ended_at_us: int = 0
    """Of this round; 0 while it goes on, or if there was none."""
    files: int = 0
    size_bytes: int = 0


class FileStore:
    """The rows, as model values. What `add` and `remove` returned is durable."""

    def __init__(self, store: Store, on_tape: Collection[str] = ()) -> None:
        """`on_tape`: VOs whose files are kept on tape."""
        self._store = store
        self._on_tape = frozenset(on_tape)

    @property
    def database(self) -> Store:
        """Where the rows are, for tables beside them."""
        return self._store

    async def use_by_vo(self) -> dict[str, tuple[int, int]]:
        """VO -> (bytes on disk, files)."""

        def read(connection: sa.Connection) -> dict[str, tuple[int, int]]:
            rows = connection.exec_driver_sql(
                "SELECT vo, SUM(CASE WHEN pool <> '' THEN size_bytes ELSE 0 END), COUNT(*) FROM files GROUP BY vo"
            )
            return {vo: (int(size), int(count)) for vo, size, count in rows}

        return await self._store.read(read)

    async def add(
        self,
        file: StoredFile,
        path: Path = (),
        replaces: str = "",
        reservation: str = "",
        copies: Sequence[StoredFile] = (),
    ) -> tuple[StoredFile, list[StoredFile]]:
        """Insert with its further `copies`, under its name if there is a `path`, in the place of the file `replaces` if
        that has it: (the file kept, the copies of the one that went). If the owner already has a file by this put_id,
        that one is returned and nothing changes. Raises as `namespace.bind`."""

        def write(connection: sa.Connection) -> tuple[StoredFile, list[StoredFile]]:
            kept = self._add(connection, file)
            if kept is file:
                copy_rows.add(connection, copies)
            if kept is file and reservation:
                spend(connection, reservation, file.size_bytes)
            if kept is not file or not path:
                return kept, []
            namespace.bind(connection, file.vo, path, file.file_id, replaces, file.created_at_us)
            return file, _remove(connection, replaces)

        return await self._store.write(write)

    async def add_many(self, files: Sequence[StoredFile], copies: Sequence[StoredFile] = ()) -> list[StoredFile]:
        """Insert all with their further `copies` in one transaction: for each the file kept, as `add`."""

        def write(connection: sa.Connection) -> list[StoredFile]:
            kept = [self._add(connection, file) for file in files]
            added = {file.file_id for file in kept}
            copy_rows.add(connection, [copy for copy in copies if copy.file_id in added])
            return kept

        return await self._store.write(write)

    def _add(self, connection: sa.Connection, file: StoredFile) -> StoredFile:
        """The file kept: this one, or the one that its owner has by this put already."""
        done = connection.exec_driver_sql(
            f"INSERT INTO files ({_COLUMNS}) VALUES ({_MARKS}) ON CONFLICT (owner, put_id) DO NOTHING", _values(file)
        )
        if done.rowcount:
            if file.vo in self._on_tape:
                tape_rows.wanted(connection, file)
            return file
        found = _by_put(connection, file.owner, file.put_id)
        if found is None:
            raise Conflict("PUT_CONFLICT", f"put {file.put_id!r} met another one; repeat it")
        return found

    async def expect(self, file: StoredFile) -> bool:
        """Insert a file whose bytes are to come. False if there is one with its id."""

        def write(connection: sa.Connection) -> bool:
            return _get(connection, file.file_id) is None and self._add(connection, file) is file

        return await self._store.write(write)

    async def by_put(self, owner: str, put_id: str) -> StoredFile | None:
        """The file that this put made, if it did."""
        return await self._store.read(lambda connection: _by_put(connection, owner, put_id))

    async def by_puts(self, owner: str, put_ids: Sequence[str]) -> dict[str, StoredFile]:
        """By put id: the files that these puts made."""
        found = await self._named("CROSS JOIN files f ON f.owner = ? AND f.put_id = j.value", put_ids, owner)
        return {file.put_id: file for file in found}

    async def get_many(self, file_ids: Sequence[str]) -> dict[str, StoredFile]:
        """By id: those that are there."""
        return {file.file_id: file for file in await self._named("CROSS JOIN files f ON f.id = j.value", file_ids)}

    async def with_names(self, file_ids: Sequence[str]) -> set[str]:
        """Those of them that have a name in the name space here."""

        def read(connection: sa.Connection) -> set[str]:
            found = connection.exec_driver_sql(
                "SELECT n.file_id FROM json_each(?) j CROSS JOIN names n ON n.file_id = j.value",
                (json.dumps(list(file_ids)),),
            )
            return {row[0] for row in found}

        return await self._store.read(read)

    async def _named(self, join: str, names: Sequence[str], *values: object) -> list[StoredFile]:
        def read(connection: sa.Connection) -> list[StoredFile]:
            rows = connection.exec_driver_sql(
                f"SELECT {_COLUMNS_OF_FILE} FROM json_each(?) j {join}", (json.dumps(list(names)), *values)
            )
            return [_file(row) for row in rows]

        return await self._store.read(read)

    async def get(self, file_id: str) -> StoredFile | None:
        """The file, or None."""
        return await self._store.read(lambda connection: _get(connection, file_id))

    async def page(self, vo: str, after: str, limit: int, damaged: bool = False) -> list[StoredFile]:
        """Up to `limit` files of the VO with ids above `after`, in order of id; with `damaged` only marked ones. Costs
        the same wherever the page lies."""
        only = " AND damage <> ''" if damaged else ""
        return await self._page(f"vo = ? AND id > ?{only}", (vo, after), limit)

    async def _page(self, condition: str, values: tuple[object, ...], limit: int) -> list[StoredFile]:
        def read(connection: sa.Connection) -> list[StoredFile]:
            rows = connection.exec_driver_sql(
                f"SELECT {_COLUMNS} FROM files WHERE {condition} ORDER BY id LIMIT ?", (*values, limit)
            )
            return [_file(row) for row in rows]

        return await self._store.read(read)

    async def remove(self, file_id: str) -> list[StoredFile]:
        """Drop the rows and the name and note the bytes as garbage, in one transaction. Its copies, the main one first;
        none if it was not there."""
        return await self._store.write(lambda connection: _remove(connection, file_id))

    # -- names -------------------------------------------------------------------------------------------------------

    async def find(self, vo: str, path: Path) -> Entry | None:
        """What has this name."""

        def read(connection: sa.Connection) -> Entry | None:
            found = namespace.find(connection, vo, path)
            if found is None:
                return None
            return Entry(found.name, found.created_at_us, _get(connection, found.file_id) if found.file_id else None)

        return await self._store.read(read)

    async def entries(self, vo: str, path: Path, after: str, limit: int) -> list[Entry]:
        """Up to `limit` entries of a directory with names above `after`, in order of name."""

        def read(connection: sa.Connection) -> list[Entry]:
            found = namespace.find(connection, vo, path)
            if found is None or not found.id:
                return []
            rows = connection.exec_driver_sql(
                f"SELECT n.name, n.created_at_us, {_COLUMNS_OF_FILE} FROM names n "
                "LEFT JOIN files f ON f.id = n.file_id WHERE n.parent = ? AND n.name > ? ORDER BY n.name LIMIT ?",
                (found.id, after, limit),
            )
            return [Entry(str(row[0]), int(row[1]), _file(row[2:]) if row[2] else None) for row in rows]

        return await self._store.read(read)

    async def make_directory(self, vo: str, path: Path, now_us: int) -> None:
        """Raises as `namespace.make_directory`."""
        await self._store.write(lambda connection: namespace.make_directory(connection, vo, path, now_us))

    async def remove_directory(self, vo: str, path: Path) -> None:
        """Raises as `namespace.remove_directory`."""
        await self._store.write(lambda connection: namespace.remove_directory(connection, vo, path))

    async def rename(self, vo: str, source: Path, target: Path, replaces: str, now_us: int) -> list[StoredFile]:
        """Move a name; returns the copies of the file that lost its name to it. Raises as `namespace.rename`."""

        def write(connection: sa.Connection) -> list[StoredFile]:
            namespace.rename(connection, vo, source, target, replaces, now_us)
            return _remove(connection, replaces)

        return await self._store.write(write)

    # -- after a crash -----------------------------------------------------------------------------------------------

    async def known(self, disk_ids: Collection[str]) -> set[str]:
        """Those of `disk_ids` that a row means."""
        wanted = sorted(disk_ids)

        def read(connection: sa.Connection) -> set[str]:
            found: set[str] = set()
            for start in range(0, len(wanted), 500):
                part = wanted[start : start + 500]
                marks = ",".join("?" * len(part))
                rows = connection.exec_driver_sql(
                    f"SELECT disk_id FROM files WHERE id IN ({marks}) AND disk_id = id UNION "
                    f"SELECT disk_id FROM files WHERE disk_id IN ({marks}) AND disk_id <> id UNION "
                    f"SELECT disk_id FROM copies WHERE disk_id IN ({marks})",
                    (*part, *part, *part),
                )
                found.update(row[0] for row in rows)
            return found

        return await self._store.read(read)

    async def in_one_pool(self, pool: str, after: str, limit: int) -> list[StoredFile]:
        """Copies in a pool, main ones and others, of files with ids above `after`, in order of id. All pages together
        cost one walk over all files."""

        def read(connection: sa.Connection) -> list[StoredFile]:
            copies = (
                f"SELECT {_COLUMNS_OF_FILE}, c.pool, c.disk_id FROM copies c CROSS JOIN files f ON f.id = c.file_id "
                "WHERE c.pool = ? AND c.file_id > ? ORDER BY c.file_id LIMIT ?"
            )
            found = [_copy(row) for row in connection.exec_driver_sql(copies, (pool, after, limit))]
            mains = f"SELECT {_COLUMNS} FROM files WHERE pool = ? AND id > ? ORDER BY id LIMIT ?"
            found += [_file(row) for row in connection.exec_driver_sql(mains, (pool, after, limit))]
            return sorted(found, key=lambda copy: copy.file_id)[:limit]

        return await self._store.read(read)

    async def use_by_pool(self) -> dict[str, tuple[int, int]]:
        """Pool -> (bytes, copies of files). A walk over all files."""

        def read(connection: sa.Connection) -> dict[str, tuple[int, int]]:
            rows = connection.exec_driver_sql(
                "SELECT pool, SUM(size_bytes), COUNT(*) FROM (SELECT pool, size_bytes FROM files UNION ALL SELECT "
                "c.pool, f.size_bytes FROM copies c CROSS JOIN files f ON f.id = c.file_id) GROUP BY pool"
            )
            return {pool: (int(size), int(count)) for pool, size, count in rows}

        return await self._store.read(read)

    async def pool_states(self) -> dict[str, str]:
        """Path -> state, of pools that an operator did something with."""

        def read(connection: sa.Connection) -> dict[str, str]:
            return {path: state for path, state in connection.exec_driver_sql("SELECT path, state FROM pools")}

        return await self._store.read(read)

    async def set_pool_state(self, path: str, state: str) -> None:
        """What an operator decided."""

        def write(connection: sa.Connection) -> None:
            connection.exec_driver_sql("INSERT OR REPLACE INTO pools (path, state) VALUES (?, ?)", (path, state))

        await self._store.write(write)

    async def in_pool(self, pool: str) -> bool:
        """True if a file should be there."""

        def read(connection: sa.Connection) -> bool:
            found = "SELECT 1 FROM copies WHERE pool = ? UNION ALL SELECT 1 FROM files WHERE pool = ? LIMIT 1"
            return connection.exec_driver_sql(found, (pool, pool)).first() is not None

        return await self._store.read(read)

    async def garbage(self, limit: int = 1000) -> list[tuple[str, str]]:
        """(disk id, pool) of bytes to delete."""

        def read(connection: sa.Connection) -> list[tuple[str, str]]:
            rows = connection.exec_driver_sql("SELECT id, pool FROM garbage ORDER BY id LIMIT ?", (limit,))
            return [(row[0], row[1]) for row in rows]

        return await self._store.read(read)

    async def collected(self, disk_ids: Sequence[str]) -> None:
        """These bytes are gone."""

        def write(connection: sa.Connection) -> None:
            if disk_ids:
                connection.exec_driver_sql("DELETE FROM garbage WHERE id = ?", [(disk_id,) for disk_id in disk_ids])

        await self._store.write(write)

    # -- upkeep ------------------------------------------------------------------------------------------------------

    async def all_files(self, after: str, limit: int) -> list[StoredFile]:
        """Files with ids above `after`, in order of id."""
        return await self._page("id > ?", (after,), limit)

    async def damaged(self, after: str, limit: int) -> list[StoredFile]:
        """Damaged files with ids above `after`, in order of id."""
        return await self._page("damage <> '' AND id > ?", (after,), limit)

    async def count_damaged(self) -> int:
        """How many files are marked as damaged."""

        def read(connection: sa.Connection) -> int:
            return int(connection.exec_driver_sql("SELECT COUNT(*) FROM files WHERE damage <> ''").scalar_one())

        return await self._store.read(read)

    async def mark(self, file: StoredFile, damage: str, now_us: int) -> bool:
        """Note what was found of the bytes that `file` means (empty: they are intact after all). False if that was
        known, or if the file was removed, moved or repaired meanwhile."""

        def write(connection: sa.Connection) -> bool:
            done = connection.exec_driver_sql(
                "UPDATE files SET damage = ?, damaged_at_us = ? WHERE id = ? AND disk_id = ? AND damage <> ?",
                (damage, now_us if damage else 0, file.file_id, file.disk_id, damage),
            )
            return bool(done.rowcount)

        return await self._store.write(write)

    async def relocate(self, file: StoredFile, pool: str, disk_id: str) -> StoredFile | None:
        """The bytes of this copy are now these, intact; those that it had are garbage. None if the file was removed,
        got other bytes or another copy in that pool meanwhile: then nothing changes."""

        def write(connection: sa.Connection) -> StoredFile | None:
            if any(copy.pool == pool and copy.disk_id != file.disk_id for copy in _copies(connection, file.file_id)):
                return None
            done = connection.exec_driver_sql(
                "UPDATE files SET pool = ?, disk_id = ?, damage = '', damaged_at_us = 0 WHERE id = ? AND disk_id = ?",
                (pool, disk_id, file.file_id, file.disk_id),
            )
            if not done.rowcount:
                done = connection.exec_driver_sql(
                    "UPDATE copies SET pool = ?, disk_id = ? WHERE disk_id = ?", (pool, disk_id, file.disk_id)
                )
            if not done.rowcount:
                return None
            if file.pool:
                copy_rows.throw_away(connection, [file])
            else:
                tape_rows.on_disk_again(connection, file.file_id)
            return replace(file, pool=pool, disk_id=disk_id, damage="", damaged_at_us=0)

        return await self._store.write(write)

    # -- copies ------------------------------------------------------------------------------------------------------

    async def copies(self, file_id: str) -> list[StoredFile]:
        """All copies of a file, the main one first, which has no pool if the file is on tape only; none if there is no
        such file."""
        return await self._store.read(lambda connection: _copies(connection, file_id))

    async def has_copies(self) -> bool:
        """Whether any file has more than one."""
        found = "SELECT 1 FROM copies LIMIT 1"
        return await self._store.read(lambda connection: connection.exec_driver_sql(found).first() is not None)

    async def add_copy(self, copy: StoredFile) -> bool:
        """One more copy is there. False, and nothing changes, if the file went, is damaged, or has one in that pool."""

        def write(connection: sa.Connection) -> bool:
            others = _copies(connection, copy.file_id)
            if not others or others[0].damage or {"", copy.pool} & {other.pool for other in others}:
                return False
            copy_rows.add(connection, [copy])
            return True

        return await self._store.write(write)

    async def drop_copy(self, copy: StoredFile, at_least: int = 1) -> bool:
        """A copy is garbage; if it was the main one, another takes its place. False, and nothing changes, if it is not
        there any more, or fewer than `at_least` others would be left."""

        def write(connection: sa.Connection) -> bool:
            present = _copies(connection, copy.file_id)
            others = [each for each in present if each.disk_id != copy.disk_id]
            if len(others) == len(present) or len(others) < at_least:
                return False
            goes = copy
            if present[0].disk_id == copy.disk_id:
                goes = others[0]
                connection.exec_driver_sql(
                    "UPDATE files SET pool = ?, disk_id = ?, damage = '', damaged_at_us = 0 WHERE id = ?",
                    (goes.pool, goes.disk_id, goes.file_id),
                )
            connection.exec_driver_sql("DELETE FROM copies WHERE disk_id = ?", (goes.disk_id,))
            copy_rows.throw_away(connection, [copy])
            return True

        return await self._store.write(write)

    async def miscounted(
        self, good: Collection[str], wanted: int, vo: str, after: str, limit: int
    ) -> tuple[str, list[str]]:
        """Of the next `limit` files of a VO with ids above `after`: the last id (empty: there were none), and the
        ids of those on disk, intact, that have not `wanted` copies in the `good` pools and no others."""

        def read(connection: sa.Connection) -> tuple[str, list[str]]:
            rows = connection.exec_driver_sql(
                "WITH good AS (SELECT value FROM json_each(?)) SELECT id, pool <> '' AND damage = '' AND ("
                "(pool IN good) + (SELECT COUNT(*) FROM copies c WHERE c.file_id = files.id AND c.pool IN good) <> ? "
                "OR 1 + (SELECT COUNT(*) FROM copies c WHERE c.file_id = files.id) <> ?) "
                "FROM files WHERE vo = ? AND id > ? ORDER BY id LIMIT ?",
                (json.dumps(sorted(good)), wanted, wanted, vo, after, limit),
            ).fetchall()
            return (rows[-1][0] if rows else ""), [row[0] for row in rows if row[1]]

        return await self._store.read(read)

    async def purge(self, file: StoredFile, now_us: int) -> list[StoredFile]:
        """The file is on tape only; the bytes that it had are garbage: its copies, the main one first. None, and
        nothing changes, if it may not leave the disk (`tape_rows.leaves_disk`)."""

        def write(connection: sa.Connection) -> list[StoredFile]:
            if not tape_rows.leaves_disk(connection, file, now_us):
                return []
            gone = [file, *copy_rows.forget(connection, file)]
            connection.exec_driver_sql(
                "UPDATE files SET pool = '', disk_id = '', damage = '', damaged_at_us = 0 WHERE id = ?", (file.file_id,)
            )
            copy_rows.throw_away(connection, [file])
            return gone

        return await self._store.write(write)

    async def scrub_state(self) -> ScrubState:
        """Where the scrubber is."""

        def read(connection: sa.Connection) -> ScrubState:
            row = connection.exec_driver_sql(
                "SELECT position, began_at_us, ended_at_us, files, size_bytes FROM scrub"
            ).first()
            return ScrubState(*row) if row else ScrubState()

        return await self._store.read(read)

    async def save_scrub_state(self, state: ScrubState) -> None:
        """The scrubber came this far."""

        def write(connection: sa.Connection) -> None:
            connection.exec_driver_sql(
                "INSERT OR REPLACE INTO scrub (id, position, began_at_us, ended_at_us, files, size_bytes) "
                "VALUES (1,?,?,?,?,?)",
                (state.position, state.began_at_us, state.ended_at_us, state.files, state.size_bytes),
            )

        await self._store.write(write)


def _get(connection: sa.Connection, file_id: str) -> StoredFile | None:
    row = connection.exec_driver_sql(f"SELECT {_COLUMNS} FROM files WHERE id = ?", (file_id,)).first()
    return _file(row) if row else None


def _copies(connection: sa.Connection, file_id: str) -> list[StoredFile]:
    file = _get(connection, file_id)
    return [file, *copy_rows.of(connection, file)] if file is not None else []


def _remove(connection: sa.Connection, file_id: str) -> list[StoredFile]:
    row = connection.exec_driver_sql(f"DELETE FROM files WHERE id = ? RETURNING {_COLUMNS}", (file_id,)).first()
    if row is None:
        return []
    file = _file(row)
    namespace.unbind(connection, file_id)
    tape_rows.forget(connection, file_id)
    if file.pool:
        copy_rows.throw_away(connection, [file])
    return [file, *copy_rows.forget(connection, file)]


def _by_put(connection: sa.Connection, owner: str, put_id: str) -> StoredFile | None:
    row = connection.exec_driver_sql(
        f"SELECT {_COLUMNS} FROM files WHERE owner = ? AND put_id = ?", (owner, put_id)
    ).first()
    return _file(row) if row else None


def _values(file: StoredFile) -> tuple[object, ...]:
    return (
        file.file_id, file.vo, file.size_bytes, file.checksums.adler32, file.checksums.sha256, file.owner, file.put_id,
        file.name_hint, file.pool, file.created_at_us, file.disk_id, file.damage, file.damaged_at_us,
    )  # fmt: skip


def _copy(row: Sequence[object]) -> StoredFile:
    """A file's columns, then pool and id on disk of one of its further copies."""
    *file, pool, disk_id = row
    return replace(_file(file), pool=str(pool), disk_id=str(disk_id), damage="", damaged_at_us=0)


def _file(row: Sequence[object]) -> StoredFile:
    (
        file_id, vo, size_bytes, adler32, sha256, owner, put_id, name_hint, pool, created_at_us, disk_id, damage,
        damaged_at_us,
    ) = tuple(row)  # fmt: skip
    return StoredFile(
        file_id=str(file_id),
        vo=str(vo),
        size_bytes=int(size_bytes),  # type: ignore[call-overload]
        checksums=Checksums(str(adler32), str(sha256)),
        owner=str(owner),
        put_id=str(put_id),
        name_hint=str(name_hint),
        pool=str(pool),
        created_at_us=int(created_at_us),  # type: ignore[call-overload]
        disk_id=str(disk_id),
        damage=str(damage),
        damaged_at_us=int(damaged_at_us),  # type: ignore[call-overload]
    )
