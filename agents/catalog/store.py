"""The catalogue's rows.

A directory is one row with its whole path, so resolving a name of any depth is one look-up; its entries are ordered by
name below its number, so a page of a directory costs the same wherever it lies and however large the directory is.

Every change is one function for the store's writer: registrations that arrive together share one transaction and one
sync.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from agents.catalog import access, attributes
from agents.catalog.access import AccessList, Caller, Grant, Right
from agents.catalog.attributes import Attribute, Condition
from agents.catalog.model import MAX_ALIASES, MAX_REPLICAS, Content, Entry, NewFile, Replica
from agents.catalog.names import ROOT, Lfn
from fabric.errors import AlreadyExists, Conflict, DataCorrupted, Exhausted, GridError, NotFound, Refused
from fabric.gathering import Gathered
from fabric.store import Store, rows, run

metadata = access.metadata

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
"""In order of its bytes, as SQLite has it, whatever language the server speaks."""


def _where(condition: str) -> dict[str, Any]:
    """Of an index over some rows."""
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


directories = sa.Table(
    "directories",
    metadata,
    sa.Column("id", _NUMBER, primary_key=True),
    sa.Column("path", _TEXT, nullable=False, unique=True),
    sa.Column("owner", _TEXT, nullable=False),
    sa.Column("created_at_us", sa.BigInteger, nullable=False),
)
files = sa.Table(
    "files",
    metadata,
    sa.Column("id", _NUMBER, primary_key=True),
    sa.Column("guid", _TEXT, nullable=False, unique=True),
    sa.Column("vo", _TEXT, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("adler32", _TEXT, nullable=False),
    sa.Column("sha256", _TEXT, nullable=False),
    sa.Column("owner", _TEXT, nullable=False),
    sa.Column("created_at_us", sa.BigInteger, nullable=False),
)
entries = sa.Table(
    "entries",
    metadata,
    sa.Column("parent_id", _NUMBER, sa.ForeignKey("directories.id"), primary_key=True),
    sa.Column("name", _TEXT, primary_key=True),
    sa.Column("directory_id", _NUMBER, sa.ForeignKey("directories.id")),
    sa.Column("file_id", _NUMBER, sa.ForeignKey("files.id")),
    sa.Column("linked_by", _TEXT),  # of an alias: who made it; nothing for a file's own name
    sa.CheckConstraint("(directory_id IS NULL) <> (file_id IS NULL)", name="ck_entries_one_kind"),
    sa.Index("ix_entries_directory", "directory_id", **_where("directory_id IS NOT NULL")),
    sa.Index("ix_entries_file", "file_id", **_where("file_id IS NOT NULL")),
    sqlite_with_rowid=False,
)
replicas = sa.Table(
    "replicas",
    metadata,
    sa.Column("file_id", _NUMBER, sa.ForeignKey("files.id"), primary_key=True),
    sa.Column("surl", _TEXT, primary_key=True),
    sa.Column("storage_element", _TEXT, nullable=False),
    sa.Column("created_at_us", sa.BigInteger, nullable=False),
    sa.Index("ix_replicas_surl", "surl", unique=True),
    sqlite_with_rowid=False,
)


def _add_aliases(connection: sa.Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE entries ADD COLUMN linked_by TEXT")


def _add_attributes(connection: sa.Connection) -> None:
    attributes.table.create(connection, checkfirst=True)


MIGRATIONS = (_add_aliases, _add_attributes)
"""See `Store`."""

_FILE = "f.id, f.guid, f.vo, f.size_bytes, f.adler32, f.sha256, f.owner, f.created_at_us"
_BY_NAME = (
    f"SELECT {_FILE}, d.path || '/' || e.name, e.linked_by FROM directories d JOIN entries e ON e.parent_id = d.id "
    "JOIN files f ON f.id = e.file_id "
)
_BY_GUID = (
    f"SELECT {_FILE}, d.path || '/' || e.name FROM files f JOIN entries e ON e.file_id = f.id "
    "AND e.linked_by IS NULL JOIN directories d ON d.id = e.parent_id "
)

_FOUND = f"SELECT {_FILE}, d.path || '/' || e.name, r.surl, r.storage_element, r.created_at_us, e.linked_by"
_BY_NAMES = (
    f"{_FOUND}, d.path || '/' || e.name FROM {{pairs}} {{join}} directories d ON d.path = {{first}} "
    "{join} entries e ON e.parent_id = d.id AND e.name = {second} "
    "{join} files f ON f.id = e.file_id LEFT JOIN replicas r ON r.file_id = f.id"
)
_BY_GUIDS = (
    f"{_FOUND}, f.guid FROM {{texts}} {{join}} files f ON f.guid = j.value {{join}} entries e ON e.file_id = f.id "
    "AND e.linked_by IS NULL {join} directories d ON d.id = e.parent_id LEFT JOIN replicas r ON r.file_id = f.id"
)
_OWN_NAMES = (
    "SELECT f.guid, d.path || '/' || e.name FROM {texts} {join} files f ON f.guid = j.value {join} entries e "
    "ON e.file_id = f.id AND e.linked_by IS NULL {join} directories d ON d.id = e.parent_id"
)
_BY_SURLS = (
    f"{_FOUND}, s.surl FROM {{texts}} {{join}} replicas s ON s.surl = j.value {{join}} files f ON f.id = s.file_id "
    "{join} entries e ON e.file_id = f.id AND e.linked_by IS NULL {join} directories d ON d.id = e.parent_id "
    "LEFT JOIN replicas r ON r.file_id = f.id"
)
_DIALECTS = {
    "sqlite": {
        "pairs": "json_each(?) j",
        "first": "json_extract(j.value, '$[0]')",
        "second": "json_extract(j.value, '$[1]')",
        "texts": "json_each(?) j",
        "join": "CROSS JOIN",  # in this order, whatever SQLite thinks of the sizes
    },
    "postgresql": {
        "pairs": "json_array_elements(CAST(? AS json)) AS j(value)",
        "first": "(j.value ->> 0)",
        "second": "(j.value ->> 1)",
        "texts": "json_array_elements_text(CAST(? AS json)) AS j(value)",
        "join": "JOIN",
    },
}

FEW = 16
"""Names of one question that is answered together with others; a larger one goes by itself and keeps none waiting."""
MAX_TOGETHER = 256
"""Questions that share one read."""

Row = Sequence[Any]


class CatalogStore:
    """The rows, as model values. What a changing method returned from is durable."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._few: Gathered[Question, list[Entry]] = Gathered(self._answers, MAX_TOGETHER)

    async def register(self, new: NewFile) -> Entry:
        """See `register`."""
        return await self._store.write(lambda connection: register(connection, new))

    async def register_many(self, new: Sequence[NewFile]) -> list[GridError | None]:
        """`register` each, in as few transactions as may be: what each was refused with."""
        return await _refusals(map(self.register, new))

    async def add_replica(self, key: Lfn | str, caller: Caller, found: Content, replica: Replica) -> None:
        """See `add_replica`."""
        await self._store.write(lambda connection: add_replica(connection, key, caller, found, replica))

    async def add_replica_many(
        self, caller: Caller, new: Sequence[tuple[Lfn | str, Content, Replica]]
    ) -> list[GridError | None]:
        """`add_replica` each, in as few transactions as may be: what each was refused with."""
        return await _refusals(self.add_replica(key, caller, found, replica) for key, found, replica in new)

    async def remove_replica(self, key: Lfn | str, caller: Caller, surl: str, by_owner: bool) -> tuple[str, str]:
        """See `remove_replica`."""
        return await self._store.write(lambda connection: remove_replica(connection, key, caller, surl, by_owner))

    async def require_removal(self, key: Lfn | str, caller: Caller, by_owner: bool) -> None:
        """Raises what `remove_replica` would, and changes nothing."""
        await self._store.read(lambda connection: _removable(connection, key, caller, by_owner))

    async def make_directory(self, lfn: Lfn, caller: Caller, make_parents: bool, now_us: int) -> None:
        """See `make_directory`."""
        await self._store.write(lambda connection: make_directory(connection, lfn, caller, make_parents, now_us))

    async def remove(self, lfn: Lfn, caller: Caller, force: bool, by_owner: bool) -> None:
        """See `remove`."""
        await self._store.write(lambda connection: remove(connection, lfn, caller, force, by_owner))

    async def add_alias(self, key: Lfn | str, lfn: Lfn, caller: Caller, make_parents: bool, now_us: int) -> str:
        """See `add_alias`."""
        return await self._store.write(lambda connection: add_alias(connection, key, lfn, caller, make_parents, now_us))

    async def names_of(self, key: Lfn | str, caller: Caller) -> list[str]:
        """See `names_of`."""
        return await self._store.read(lambda connection: names_of(connection, key, caller))

    async def set_attributes(
        self, key: Lfn | str, caller: Caller, given: Sequence[Attribute], unset: Sequence[str]
    ) -> tuple[str, list[Attribute]]:
        """See `set_attributes`."""
        return await self._store.write(lambda connection: set_attributes(connection, key, caller, given, unset))

    async def attributes_of(self, key: Lfn | str, caller: Caller) -> list[Attribute]:
        """Of a file. Raises NotFound(LFN_NOT_FOUND), Refused(ACCESS_DENIED)."""

        def read(connection: sa.Connection) -> list[Attribute]:
            row = _file(connection, key, caller.vo)
            access.require(connection, caller, Right.LIST, Lfn(row[8]))
            return attributes.of_file(connection, int(row[0]))

        return await self._store.read(read)

    async def find(
        self, directory: Lfn, caller: Caller, conditions: Sequence[Condition], after: int, limit: int
    ) -> tuple[list[str], int]:
        """See `find`."""
        return await self._store.read(lambda connection: find(connection, directory, caller, conditions, after, limit))

    async def access(self, lfn: Lfn, caller: Caller) -> tuple[str, AccessList | None]:
        """Whose a name is, and the list that it goes by. Raises NotFound LFN_NOT_FOUND, Refused ACCESS_DENIED."""
        return await self._store.read(lambda connection: show_access(connection, lfn, caller))

    async def set_access(self, lfn: Lfn, caller: Caller, grants: Sequence[Grant]) -> None:
        """See `set_access`."""
        await self._store.write(lambda connection: set_access(connection, lfn, caller, grants))

    async def lookup(
        self, lfns: Sequence[Lfn], guids: Sequence[str], caller: Caller | None, surls: Sequence[str] = ()
    ) -> list[Entry]:
        """Files found, names first, each in the order asked. With a `caller`, GUIDs and SURLs of files that are of
        another VO or that the caller may not list are not found. Raises Refused ACCESS_DENIED for a name."""
        question = Question(lfns, guids, surls, caller)
        if len(lfns) + len(guids) + len(surls) <= FEW:
            return await self._few.ask(question)
        (answer,) = await self._answers([question])
        if isinstance(answer, GridError):
            raise answer
        return answer

    async def _answers(self, questions: list[Question]) -> list[list[Entry] | GridError]:
        return await self._store.read(lambda connection: lookup(connection, questions))

    async def page(self, directory: Lfn, caller: Caller, after: str, limit: int) -> list[Entry]:
        """See `page`."""

        def read(connection: sa.Connection) -> list[Entry]:
            access.require(connection, caller, Right.LIST, directory)
            return page(connection, directory, after, limit)

        return await self._store.read(read)

    async def replicas_below(self, prefix: str, after: str, limit: int) -> list[str]:
        """SURLs that begin with `prefix`, a slash at its end, and lie above `after`, in order."""

        def read(connection: sa.Connection) -> list[str]:
            found = rows(
                connection,
                "SELECT surl FROM replicas WHERE surl > ? AND surl < ? ORDER BY surl LIMIT ?",
                (after, prefix[:-1] + chr(ord("/") + 1), limit),
            )
            return [row[0] for row in found]

        return await self._store.read(read)

    async def counts(self) -> dict[str, int]:
        """How many files and replicas there are, from the indices' ends: cheap and nearly exact."""

        def read(connection: sa.Connection) -> dict[str, int]:
            found = rows(connection, "SELECT COALESCE(MAX(id), 0) FROM files")[0][0]
            return {"files_registered": int(found)}

        return await self._store.read(read)


async def _refusals(changes: Iterable[Awaitable[object]]) -> list[GridError | None]:
    outcomes = await asyncio.gather(*changes, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, GridError):
            raise outcome
    return [outcome if isinstance(outcome, GridError) else None for outcome in outcomes]


# -- changes: each runs in the writer's transaction ------------------------------------------------------------------


def register(connection: sa.Connection, new: NewFile) -> Entry:
    """Name, GUID and first replica in one step. Repeating it with the same GUID succeeds and changes nothing but the
    replica.

    Raises AlreadyExists(LFN_TAKEN | GUID_TAKEN | SURL_TAKEN), NotFound(DIRECTORY_NOT_FOUND),
    DataCorrupted(CONTENT_DIFFERS), Refused(ACCESS_DENIED).
    """
    access.require(connection, new.caller, Right.ADD, new.lfn)
    parent_id = _directory(connection, new.lfn.parent, new.caller.subject, new.make_parents, new.now_us)
    done = _one(connection,
        "INSERT INTO files (guid, vo, size_bytes, adler32, sha256, owner, created_at_us) VALUES (?,?,?,?,?,?,?) "
        "ON CONFLICT (guid) DO NOTHING RETURNING id",
        (
            new.guid, new.lfn.vo, new.content.size_bytes, new.content.adler32, new.content.sha256, new.caller.subject,
            new.now_us,
        ),
    )  # fmt: skip
    if done is None:
        return _register_again(connection, new)
    file_id = done[0]
    done = _one(
        connection,
        "INSERT INTO entries (parent_id, name, file_id) VALUES (?,?,?) ON CONFLICT DO NOTHING RETURNING 1",
        (parent_id, new.lfn.name, file_id),
    )
    if done is None:
        raise _taken(connection, new.lfn, parent_id)
    if new.replica is not None:
        _insert_replica(connection, file_id, str(new.lfn), new.replica, is_first=True)
    kept = (new.replica,) if new.replica is not None else ()
    return Entry(str(new.lfn), new.caller.subject, new.now_us, new.guid, new.content, kept)


def _register_again(connection: sa.Connection, new: NewFile) -> Entry:
    row = _one(connection, _BY_GUID + "WHERE f.guid = ?", (new.guid,))
    if row is None or row[8] != new.lfn.path:
        where = f"as {row[8]}" if row is not None and row[2] == new.lfn.vo else "under another name"
        raise AlreadyExists(
            "GUID_TAKEN",
            f"{new.lfn} cannot be registered: GUID {new.guid} is there already {where}; make a new GUID for a new file",
            guid=new.guid,
        )
    _require_content(str(new.lfn), _content(row), new.content)
    if new.replica is not None:
        _insert_replica(connection, int(row[0]), str(new.lfn), new.replica)
    return _entries(connection, _BY_GUIDS, [new.guid])[new.guid]


def _taken(connection: sa.Connection, lfn: Lfn, parent_id: int) -> AlreadyExists:
    row = _one(
        connection,
        "SELECT f.guid, f.owner FROM entries e LEFT JOIN files f ON f.id = e.file_id WHERE e.parent_id = ? AND "
        "e.name = ?",
        (parent_id, lfn.name),
    )
    if row is None or row[0] is None:
        return AlreadyExists("LFN_TAKEN", f"{lfn} is there already: it is a directory; choose another name", lfn=lfn)
    return AlreadyExists(
        "LFN_TAKEN",
        f"{lfn} is there already: it names file {row[0]} of {row[1]}; choose another name, or remove that one first",
        lfn=lfn,
        guid=row[0],
        owner=row[1],
    )


def add_replica(connection: sa.Connection, key: Lfn | str, caller: Caller, found: Content, replica: Replica) -> None:
    """List one more copy. Again: succeeds. Raises NotFound, DataCorrupted(CONTENT_DIFFERS),
    AlreadyExists(SURL_TAKEN), Refused(ACCESS_DENIED)."""
    row = _file(connection, key, caller.vo)
    access.require(connection, caller, Right.ADD, Lfn(row[8]))
    _require_content(str(key), _content(row), found)
    _insert_replica(connection, int(row[0]), row[8], replica)


def remove_replica(
    connection: sa.Connection, key: Lfn | str, caller: Caller, surl: str, by_owner: bool
) -> tuple[str, str]:
    """Unlist a copy; path and GUID of the file. Again: succeeds. Raises NotFound for an unknown file,
    Refused(ACCESS_DENIED | NOT_OWNER)."""
    row = _removable(connection, key, caller, by_owner)
    run(connection, "DELETE FROM replicas WHERE file_id = ? AND surl = ?", (int(row[0]), surl))
    return row[8], row[1]


def add_alias(
    connection: sa.Connection, key: Lfn | str, lfn: Lfn, caller: Caller, make_parents: bool, now_us: int
) -> str:
    """Give a file one more name; the GUID of the file. `key` may be an alias itself: the new name is one of the file,
    not of that name, so there are no chains, no loops and no names of nothing. Again: succeeds.

    Raises NotFound(LFN_NOT_FOUND | DIRECTORY_NOT_FOUND), AlreadyExists(LFN_TAKEN), Exhausted(TOO_MANY_ALIASES),
    Refused(ACCESS_DENIED).
    """
    row = _file(connection, key, caller.vo)
    access.require(connection, caller, Right.LIST, Lfn(row[8]))
    access.require(connection, caller, Right.ADD, lfn)
    parent_id = _directory(connection, lfn.parent, caller.subject, make_parents, now_us)
    done = _one(
        connection,
        "INSERT INTO entries (parent_id, name, file_id, linked_by) VALUES (?,?,?,?) ON CONFLICT DO NOTHING RETURNING 1",
        (parent_id, lfn.name, row[0], caller.subject),
    )
    if done is None:
        named = "SELECT 1 FROM entries WHERE parent_id = ? AND name = ? AND file_id = ?"
        if _one(connection, named, (parent_id, lfn.name, row[0])) is None:
            raise _taken(connection, lfn, parent_id)
        return str(row[1])
    count = rows(connection, "SELECT COUNT(*) FROM entries WHERE file_id = ?", (row[0],))[0][0]
    if count > 1 + MAX_ALIASES:
        raise Exhausted(
            "TOO_MANY_ALIASES", f"{row[8]} has {MAX_ALIASES} aliases already; remove some first", lfn=row[8]
        )
    return str(row[1])


def set_attributes(
    connection: sa.Connection, key: Lfn | str, caller: Caller, given: Sequence[Attribute], unset: Sequence[str]
) -> tuple[str, list[Attribute]]:
    """Give a file attributes and take others away; its own name and all that it has then. Again: succeeds. Raises
    NotFound(LFN_NOT_FOUND), Refused(ACCESS_DENIED), Exhausted(TOO_MANY_ATTRIBUTES)."""
    row = _file(connection, key, caller.vo)
    access.require(connection, caller, Right.ADD, Lfn(row[8]))
    attributes.keep(connection, int(row[0]), given, unset)
    return row[8], attributes.of_file(connection, int(row[0]))


def make_directory(connection: sa.Connection, lfn: Lfn, caller: Caller, make_parents: bool, now_us: int) -> None:
    """Make a directory. One that is there is fine. Raises NotFound(DIRECTORY_NOT_FOUND), AlreadyExists(LFN_TAKEN),
    Refused(ACCESS_DENIED)."""
    owner = caller.subject
    access.require(connection, caller, Right.ADD, lfn)
    if lfn.is_vo_root:
        _directory(connection, lfn.path, owner, True, now_us)
        return
    parent_id = _directory(connection, lfn.parent, owner, make_parents, now_us)
    _make_one(connection, lfn, parent_id, owner, now_us)


def remove(connection: sa.Connection, lfn: Lfn, caller: Caller, force: bool, by_owner: bool) -> None:
    """Take a name away: an empty directory, or a file without replicas (with `force` also one with). A file's aliases
    go with its own name; an alias goes alone.

    Raises NotFound(LFN_NOT_FOUND), Conflict(HAS_REPLICAS | DIRECTORY_NOT_EMPTY), Refused(ACCESS_DENIED | NOT_OWNER).
    """
    row = _one(
        connection,
        "SELECT e.parent_id, e.directory_id, e.file_id, e.linked_by FROM directories d JOIN entries e "
        "ON e.parent_id = d.id WHERE d.path = ? AND e.name = ?",
        (lfn.parent, lfn.name),
    )
    if row is None:
        raise _unknown(lfn)
    parent_id, directory_id, file_id, linked_by = row
    if linked_by is not None:
        _require_removal(connection, lfn, linked_by, caller, by_owner)
    elif file_id is not None:
        _remove_file(connection, lfn, file_id, caller, force, by_owner)
    else:
        _remove_directory(connection, lfn, directory_id, caller, by_owner)
    run(connection, "DELETE FROM entries WHERE parent_id = ? AND name = ?", (parent_id, lfn.name))
    if linked_by is None and file_id is not None:
        run(connection, "DELETE FROM files WHERE id = ?", (file_id,))
    elif file_id is None:
        run(connection, "DELETE FROM directories WHERE id = ?", (directory_id,))
    access.forget(connection, lfn)


def _remove_file(
    connection: sa.Connection, lfn: Lfn, file_id: int, caller: Caller, force: bool, by_owner: bool
) -> None:
    owner = rows(connection, "SELECT owner FROM files WHERE id = ?", (file_id,))[0][0]
    _require_removal(connection, lfn, owner, caller, by_owner)
    count = rows(connection, "SELECT COUNT(*) FROM replicas WHERE file_id = ?", (file_id,))[0][0]
    if count and not force:
        raise Conflict(
            "HAS_REPLICAS",
            f"{lfn} still has {count} replica{'s' if count > 1 else ''}; remove them first, or force to forget them",
            lfn=lfn,
            replicas=count,
        )
    run(connection, "DELETE FROM replicas WHERE file_id = ?", (file_id,))
    attributes.forget(connection, file_id)
    for path, _ in _names(connection, file_id):
        access.forget(connection, Lfn(path))
    run(connection, "DELETE FROM entries WHERE file_id = ?", (file_id,))


def _remove_directory(connection: sa.Connection, lfn: Lfn, directory_id: int, caller: Caller, by_owner: bool) -> None:
    owner = rows(connection, "SELECT owner FROM directories WHERE id = ?", (directory_id,))[0][0]
    _require_removal(connection, lfn, owner, caller, by_owner)
    if _one(connection, "SELECT 1 FROM entries WHERE parent_id = ? LIMIT 1", (directory_id,)):
        raise Conflict("DIRECTORY_NOT_EMPTY", f"{lfn} is a directory with entries; remove those first", lfn=lfn)


def set_access(connection: sa.Connection, lfn: Lfn, caller: Caller, grants: Sequence[Grant]) -> None:
    """Give a name its own access list; without grants it goes by the one above again.

    Raises NotFound(LFN_NOT_FOUND), Refused(ACL_NOT_YOURS), Exhausted(TOO_MANY_LISTS), InvalidRequest(ACL_INVALID).
    """
    owner = _owner(connection, lfn)
    if owner is None:
        raise _unknown(lfn)
    access.require_manager(caller, lfn, owner)
    access.keep(connection, lfn, owner, grants)


# -- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """Names that somebody asks for at once."""

    lfns: Sequence[Lfn]
    guids: Sequence[str]
    surls: Sequence[str]
    caller: Caller | None
    """None: an agent of the grid, which sees all names."""


def lookup(connection: sa.Connection, questions: Sequence[Question]) -> list[list[Entry] | GridError]:
    """Of each question the files found by name, by GUID and by the SURL of a replica, each in the order asked, or
    Refused(ACCESS_DENIED) because of a name. What is not known is left out; so are, of GUIDs and SURLs, files of
    another VO than the caller's and those that the caller may not list."""
    by_name = _entries(connection, _BY_NAMES, [[lfn.parent, lfn.name] for one in questions for lfn in one.lfns])
    by_guid = _entries(connection, _BY_GUIDS, [guid for one in questions for guid in one.guids])
    by_surl = _entries(connection, _BY_SURLS, [surl for one in questions for surl in one.surls])
    names = {lfn.path: lfn for one in questions for lfn in one.lfns}
    names |= {entry.alias_of: Lfn(entry.alias_of) for entry in by_name.values() if entry.alias_of}
    names |= {entry.lfn: Lfn(entry.lfn) for found in (by_guid, by_surl) for entry in found.values()}
    lists = access.nearest(connection, names.values()) if names else {}

    def allowed(entry: Entry, caller: Caller | None) -> bool:
        if caller is None:
            return True
        carried = lists.get(entry.lfn)
        return names[entry.lfn].vo == caller.vo and (carried is None or carried.allows(caller, Right.LIST))

    def answer(one: Question) -> list[Entry] | GridError:
        if one.caller is not None and lists:
            own = [by_name[lfn.path].alias_of for lfn in one.lfns if lfn.path in by_name]
            for path in [*(lfn.path for lfn in one.lfns), *filter(None, own)]:
                try:
                    if path in lists:
                        lists[path].require(one.caller, Right.LIST, names[path])
                except Refused as error:
                    return error
        found = [by_name[lfn.path] for lfn in one.lfns if lfn.path in by_name]
        asked = [by_guid[guid] for guid in one.guids if guid in by_guid]
        asked += [by_surl[surl] for surl in one.surls if surl in by_surl]
        return found + [entry for entry in asked if allowed(entry, one.caller)]

    return [answer(one) for one in questions]


def _entries(connection: sa.Connection, sql: str, asked: Sequence[Any]) -> dict[str, Entry]:
    """Files with their replicas, oldest first, by what they were asked by."""
    if not asked:
        return {}
    found: dict[str, tuple[Row, list[Replica]]] = {}
    for row in rows(connection, _in_dialect(sql, connection.dialect.name), (json.dumps(asked),)):
        _, replicas_of_file = found.setdefault(row[13], (row, []))
        if row[9] is not None:
            replicas_of_file.append(Replica(row[9], row[10], row[11]))
    own = _own_names(connection, {row[1] for row, _ in found.values() if row[12] is not None})
    return {
        key: Entry(
            row[8], row[6], row[7], row[1], _content(row), tuple(sorted(copies, key=_age)),
            own[row[1]] if row[12] is not None else "",
        )
        for key, (row, copies) in found.items()
    }  # fmt: skip


def _own_names(connection: sa.Connection, guids: Iterable[str]) -> dict[str, str]:
    """Paths of files by GUID."""
    asked = list(guids)
    if not asked:
        return {}
    found = rows(connection, _in_dialect(_OWN_NAMES, connection.dialect.name), (json.dumps(asked),))
    return {guid: path for guid, path in found}


def _names(connection: sa.Connection, file_id: int) -> list[tuple[str, bool]]:
    """Every name of a file, and whether it is an alias; its own name first."""
    found = rows(
        connection,
        "SELECT d.path || '/' || e.name, e.linked_by IS NOT NULL FROM entries e JOIN directories d "
        "ON d.id = e.parent_id WHERE e.file_id = ?",
        (file_id,),
    )
    return sorted(((path, bool(alias)) for path, alias in found), key=lambda name: (name[1], name[0]))


def names_of(connection: sa.Connection, key: Lfn | str, caller: Caller) -> list[str]:
    """Its own name first, then the aliases that the caller may list. Raises NotFound(LFN_NOT_FOUND),
    Refused(ACCESS_DENIED)."""
    row = _file(connection, key, caller.vo)
    access.require(connection, caller, Right.LIST, Lfn(row[8]))
    paths = [path for path, _ in _names(connection, int(row[0]))]
    lists = access.nearest(connection, map(Lfn, paths))
    return [path for path in paths if path not in lists or lists[path].allows(caller, Right.LIST)]


def _age(replica: Replica) -> tuple[int, str]:
    return replica.created_at_us, replica.surl


@functools.cache
def _in_dialect(sql: str, name: str) -> str:
    return sql.format(**_DIALECTS[name])


def find(
    connection: sa.Connection,
    directory: Lfn,
    caller: Caller,
    conditions: Sequence[Condition],
    after: int,
    limit: int,
) -> tuple[list[str], int]:
    """Of the next `limit` files below a directory that meet all conditions, the own names of those that the caller may
    list; and the number after which to go on, 0 at the end. Raises Refused(ACCESS_DENIED)."""
    access.require(connection, caller, Right.LIST, directory)
    found = attributes.find(connection, directory, conditions, after, limit)
    lists = access.nearest(connection, [Lfn(path) for _, path in found])
    paths = [path for _, path in found if path not in lists or lists[path].allows(caller, Right.LIST)]
    return paths, found[-1][0] if len(found) == limit else 0


def show_access(connection: sa.Connection, lfn: Lfn, caller: Caller) -> tuple[str, AccessList | None]:
    """Whose a name is, and the list that it goes by. Raises NotFound(LFN_NOT_FOUND), Refused(ACCESS_DENIED)."""
    found = access.nearest(connection, [lfn]).get(lfn.path)
    if found is not None:
        found.require(caller, Right.LIST, lfn)
    owner = _owner(connection, lfn)
    if owner is None:
        raise _unknown(lfn)
    return owner, found


def page(connection: sa.Connection, directory: Lfn, after: str, limit: int) -> list[Entry]:
    """Up to `limit` entries with names above `after`, in order of their UTF-8 bytes, files without their replicas.

    Raises NotFound(DIRECTORY_NOT_FOUND), Conflict(NOT_A_DIRECTORY).
    """
    found = _one(connection, "SELECT id FROM directories WHERE path = ?", (directory.path,))
    if found is None:
        if directory.is_vo_root:
            return []
        if _one(connection, _BY_NAME + "WHERE d.path = ? AND e.name = ?", (directory.parent, directory.name)):
            raise Conflict("NOT_A_DIRECTORY", f"{directory} is a file; ask for its replicas instead", lfn=directory)
        raise NotFound(
            "DIRECTORY_NOT_FOUND", f"there is no directory {directory}; look at the one above", lfn=directory
        )
    listed = rows(
        connection,
        "SELECT p.name, f.guid, f.size_bytes, f.adler32, f.sha256, COALESCE(f.owner, s.owner), "
        "COALESCE(f.created_at_us, s.created_at_us), p.linked_by IS NOT NULL FROM "
        "(SELECT * FROM entries WHERE parent_id = ? AND name > ? "
        "ORDER BY name LIMIT ?) p LEFT JOIN files f ON f.id = p.file_id LEFT JOIN directories s ON s.id = "
        "p.directory_id ORDER BY p.name",
        (found[0], after, limit),
    )
    own = _own_names(connection, {row[1] for row in listed if row[7]})
    return [
        Entry(
            lfn=f"{directory.path}/{name}",
            owner=owner,
            created_at_us=created,
            guid=guid or "",
            content=None if guid is None else Content(size, adler32, sha256),
            alias_of=own[guid] if alias else "",
        )
        for name, guid, size, adler32, sha256, owner, created, alias in listed
    ]


def _one(connection: sa.Connection, sql: str, values: Sequence[Any] = ()) -> Row | None:
    found = rows(connection, sql, values)
    return found[0] if found else None


# -- parts -----------------------------------------------------------------------------------------------------------


def _file(connection: sa.Connection, key: Lfn | str, vo: str) -> Row:
    """The row of a file by name, alias or GUID, with its own name; of another VO it does not exist."""
    if isinstance(key, Lfn):
        row = _one(connection, _BY_NAME + "WHERE d.path = ? AND e.name = ?", (key.parent, key.name))
        if row is not None and row[9] is not None:
            row = _one(connection, _BY_GUID + "WHERE f.guid = ?", (row[1],))
    else:
        row = _one(connection, _BY_GUID + "WHERE f.guid = ? AND f.vo = ?", (key, vo))
    if row is None:
        raise _unknown(key)
    return row


def _directory(connection: sa.Connection, path: str, owner: str, make: bool, now_us: int) -> int:
    """The number of a directory; a VO's own one is made when first needed, others if `make`."""
    row = _one(connection, "SELECT id FROM directories WHERE path = ?", (path,))
    if row is not None:
        return int(row[0])
    lfn = Lfn(path)
    if path == ROOT:
        return _insert_directory(connection, ROOT, "", now_us)
    if not make and not lfn.is_vo_root:
        raise NotFound(
            "DIRECTORY_NOT_FOUND",
            f"there is no directory {path}; make it first, or ask for parents to be made",
            lfn=path,
        )
    return _make_one(connection, lfn, _directory(connection, lfn.parent, owner, make, now_us), owner, now_us)


def _make_one(connection: sa.Connection, lfn: Lfn, parent_id: int, owner: str, now_us: int) -> int:
    row = _one(connection, "SELECT directory_id FROM entries WHERE parent_id = ? AND name = ?", (parent_id, lfn.name))
    if row is not None:
        if row[0] is None:
            raise _taken(connection, lfn, parent_id)
        return int(row[0])
    made = _insert_directory(connection, lfn.path, "" if lfn.is_vo_root else owner, now_us)
    run(connection, "INSERT INTO entries (parent_id, name, directory_id) VALUES (?,?,?)", (parent_id, lfn.name, made))
    return made


def _insert_directory(connection: sa.Connection, path: str, owner: str, now_us: int) -> int:
    sql = "INSERT INTO directories (path, owner, created_at_us) VALUES (?,?,?) RETURNING id"
    return int(rows(connection, sql, (path, owner, now_us))[0][0])


def _insert_replica(
    connection: sa.Connection, file_id: int, lfn: str, replica: Replica, is_first: bool = False
) -> None:
    done = _one(
        connection,
        "INSERT INTO replicas (file_id, surl, storage_element, created_at_us) VALUES (?,?,?,?) "
        "ON CONFLICT DO NOTHING RETURNING 1",
        (file_id, replica.surl, replica.storage_element, replica.created_at_us),
    )
    if done is None:
        holder = rows(connection, "SELECT file_id FROM replicas WHERE surl = ?", (replica.surl,))[0][0]
        if holder != file_id:
            raise AlreadyExists(
                "SURL_TAKEN", f"{replica.surl} is listed as a replica of another file than {lfn}; give the right SURL"
            )
        return
    if is_first:
        return
    count = rows(connection, "SELECT COUNT(*) FROM replicas WHERE file_id = ?", (file_id,))[0][0]
    if count > MAX_REPLICAS:
        raise Exhausted("TOO_MANY_REPLICAS", f"{lfn} has {MAX_REPLICAS} replicas already; remove some first", lfn=lfn)


def _content(row: Row) -> Content:
    return Content(int(row[3]), row[4], row[5])


def _require_content(what: str, known: Content, found: Content) -> None:
    same_sha256 = not found.sha256 or not known.sha256 or found.sha256 == known.sha256
    if found.size_bytes == known.size_bytes and found.adler32 == known.adler32 and same_sha256:
        return
    raise DataCorrupted(
        "CONTENT_DIFFERS",
        f"{what} has {known.size_bytes} bytes with adler32 {known.adler32}, and this has {found.size_bytes} bytes with "
        f"adler32 {found.adler32}; it is not a copy of that file",
        known_size_bytes=known.size_bytes,
        known_adler32=known.adler32,
        found_size_bytes=found.size_bytes,
        found_adler32=found.adler32,
    )


def _owner(connection: sa.Connection, lfn: Lfn) -> str | None:
    """Whose a directory or file is; nobody's for a VO's own directory. None if it is not there."""
    if lfn.is_vo_root:
        return ""
    row = _one(
        connection,
        "SELECT COALESCE(e.linked_by, f.owner, s.owner) FROM directories d JOIN entries e ON e.parent_id = d.id "
        "LEFT JOIN files f ON f.id = e.file_id LEFT JOIN directories s ON s.id = e.directory_id "
        "WHERE d.path = ? AND e.name = ?",
        (lfn.parent, lfn.name),
    )
    return None if row is None else str(row[0])


def _removable(connection: sa.Connection, key: Lfn | str, caller: Caller, by_owner: bool) -> Row:
    row = _file(connection, key, caller.vo)
    _require_removal(connection, Lfn(row[8]), row[6], caller, by_owner)
    return row


def _require_removal(connection: sa.Connection, lfn: Lfn, owner: str, caller: Caller, by_owner: bool) -> None:
    """By the access list where there is one, else by the grid's rule."""
    if caller.subject == owner:
        return
    if not access.require(connection, caller, Right.REMOVE, lfn) and by_owner:
        raise Refused("NOT_OWNER", f"{lfn} belongs to {owner}; only its owner may remove it here", owner=owner)


def _unknown(key: Lfn | str) -> NotFound:
    return NotFound("LFN_NOT_FOUND", f"the catalogue has no {key}; list its directory to see what is there", key=key)
