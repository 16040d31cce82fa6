"""Names in a storage element: directories and files below `/<vo>`, as in the name space of a DPM or a dCache.

A name leads to the opaque id of a file and to nothing else: bytes never move when a name does, and a place on disk is
never made from a name. Functions here run inside a transaction of the storage element's store.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from agents.storage.surl import is_file_id
from fabric.errors import AlreadyExists, Conflict, InvalidRequest, NotFound

metadata = sa.MetaData()
"""Of the whole store."""

names = sa.Table(
    "names",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("parent", sa.Integer, nullable=False),  # 0: the name of a VO
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("file_id", sa.Text, unique=True),  # NULL: a directory
    sa.Column("created_at_us", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("parent", "name", name="uq_names"),
)

MAX_NAME_BYTES = 255
"""UTF-8 bytes of one name, as in file systems."""
MAX_DEPTH = 64
"""Names in a path below the VO."""

Path = tuple[str, ...]
"""Names below the VO's directory; the empty path is that directory."""


@dataclass(frozen=True, slots=True)
class Name:
    """A name that is there. `file_id` is None for a directory."""

    id: int
    parent: int
    name: str
    file_id: str | None
    created_at_us: int


def check_path(path: Path) -> None:
    """Raises InvalidRequest(NAME_INVALID) for a path that no file or directory may have."""
    if len(path) > MAX_DEPTH:
        raise InvalidRequest("NAME_INVALID", f"a path has at most {MAX_DEPTH} names, this one {len(path)}")
    for name in path:
        size = len(name.encode("utf-8", "surrogatepass"))
        if name in ("", ".", "..") or size > MAX_NAME_BYTES or not name.isprintable() or "/" in name or "\\" in name:
            raise InvalidRequest(
                "NAME_INVALID",
                f"{name[:80]!r} cannot be the name of a file or directory: 1 to {MAX_NAME_BYTES} bytes of printable "
                "characters without / and \\, and not . or ..",
            )


def text(vo: str, path: Path) -> str:
    """The path as users write it."""
    return "/" + "/".join((vo, *path))


def find(connection: sa.Connection, vo: str, path: Path) -> Name | None:
    """The name, if it is there. The directory of a VO always is, with the id 0 until something lies in it."""
    found = _child(connection, 0, vo) or Name(0, 0, vo, None, 0)
    for name in path:
        if found.file_id is not None or not found.id:
            return None
        child = _child(connection, found.id, name)
        if child is None:
            return None
        found = child
    return found


def find_directory(connection: sa.Connection, vo: str, path: Path, now_us: int) -> Name:
    """A directory that something will be put into. Raises Conflict(PARENT_MISSING)."""
    found = find(connection, vo, path)
    if found is None or found.file_id is not None:
        raise parent_missing(vo, path)
    if not found.id:
        connection.exec_driver_sql("INSERT INTO names (parent, name, created_at_us) VALUES (0, ?, ?)", (vo, now_us))
        found = _child(connection, 0, vo)
        assert found is not None
    return found


def make_directory(connection: sa.Connection, vo: str, path: Path, now_us: int) -> None:
    """Raises AlreadyExists(NAME_EXISTS), Conflict(PARENT_MISSING), InvalidRequest(NAME_INVALID | NAME_RESERVED)."""
    _require_usable(vo, path)
    if find(connection, vo, path) is not None:
        raise _exists(vo, path)
    parent = find_directory(connection, vo, path[:-1], now_us)
    _insert(connection, parent.id, path[-1], None, now_us)


def bind(connection: sa.Connection, vo: str, path: Path, file_id: str, replaces: str, now_us: int) -> None:
    """Give a file its name. It takes the name from the file `replaces` (empty: from none), whose row is the caller's to
    remove. Raises AlreadyExists(NAME_EXISTS) for a directory, Conflict(NAME_TAKEN | PARENT_MISSING), InvalidRequest."""
    _require_usable(vo, path)
    there = find(connection, vo, path)
    if there is not None and there.file_id is None:
        raise _exists(vo, path)
    if (there.file_id if there is not None else "") != replaces:
        raise Conflict(
            "NAME_TAKEN",
            f"another file took or lost the name {text(vo, path)} meanwhile; nothing was kept, look and send it again",
            path=text(vo, path),
        )
    if there is not None:
        connection.exec_driver_sql("DELETE FROM names WHERE id = ?", (there.id,))
    parent = find_directory(connection, vo, path[:-1], now_us)
    _insert(connection, parent.id, path[-1], file_id, now_us)


def unbind(connection: sa.Connection, file_id: str) -> None:
    """A file is going: so does its name, if it has one."""
    connection.exec_driver_sql("DELETE FROM names WHERE file_id = ?", (file_id,))


def rename(connection: sa.Connection, vo: str, source: Path, target: Path, replaces: str, now_us: int) -> None:
    """Move a name with all that is below it. `replaces` as for `bind`. Raises NotFound(NAME_NOT_FOUND),
    Conflict(MOVE_INTO_ITSELF | ...), and as `bind`. A source that is the id of a file gives that its name."""
    if len(source) == 1 and is_file_id(source[0]):
        if not connection.exec_driver_sql("SELECT 1 FROM files WHERE id = ? AND vo = ?", (source[0], vo)).first():
            raise not_found(vo, source)
        unbind(connection, source[0])
        bind(connection, vo, target, source[0], replaces, now_us)
        return
    moved = find(connection, vo, source)
    if moved is None or not source:
        raise not_found(vo, source)
    if target[: len(source)] == source:
        raise Conflict("MOVE_INTO_ITSELF", f"{text(vo, source)} cannot be moved to {text(vo, target)}, below itself")
    connection.exec_driver_sql("DELETE FROM names WHERE id = ?", (moved.id,))
    if moved.file_id is not None:
        bind(connection, vo, target, moved.file_id, replaces, now_us)
        return
    make_directory(connection, vo, target, now_us)
    made = find(connection, vo, target)
    assert made is not None
    connection.exec_driver_sql("UPDATE names SET parent = ? WHERE parent = ?", (moved.id, made.id))
    connection.exec_driver_sql("UPDATE names SET id = ? WHERE id = ?", (moved.id, made.id))


def remove_directory(connection: sa.Connection, vo: str, path: Path) -> None:
    """Raises NotFound(NAME_NOT_FOUND), Conflict(DIRECTORY_NOT_EMPTY)."""
    found = find(connection, vo, path)
    if found is None or found.file_id is not None or not path:
        raise not_found(vo, path)
    if connection.exec_driver_sql("SELECT 1 FROM names WHERE parent = ? LIMIT 1", (found.id,)).first() is not None:
        raise Conflict(
            "DIRECTORY_NOT_EMPTY", f"{text(vo, path)} is not empty; remove what is in it first", path=text(vo, path)
        )
    connection.exec_driver_sql("DELETE FROM names WHERE id = ?", (found.id,))


def not_found(vo: str, path: Path) -> NotFound:
    """The one sentence for a name that is not there."""
    return NotFound("NAME_NOT_FOUND", f"there is no {text(vo, path)} here", path=text(vo, path))


def parent_missing(vo: str, path: Path) -> Conflict:
    """The one sentence for a directory that something is to be put into and that is not there."""
    return Conflict(
        "PARENT_MISSING", f"there is no directory {text(vo, path)} here; make it first", path=text(vo, path)
    )


def _exists(vo: str, path: Path) -> AlreadyExists:
    return AlreadyExists("NAME_EXISTS", f"{text(vo, path)} is there already; choose another name", path=text(vo, path))


def _require_usable(vo: str, path: Path) -> None:
    check_path(path)
    if not path:
        raise _exists(vo, path)
    if len(path) == 1 and is_file_id(path[0]):
        raise InvalidRequest(
            "NAME_RESERVED", f"{text(vo, path)} could be the id of a file; choose a name other than 32 digits"
        )


def _child(connection: sa.Connection, parent: int, name: str) -> Name | None:
    row = connection.exec_driver_sql(
        "SELECT id, parent, name, file_id, created_at_us FROM names WHERE parent = ? AND name = ?", (parent, name)
    ).first()
    return Name(*row) if row else None


def _insert(connection: sa.Connection, parent: int, name: str, file_id: str | None, now_us: int) -> None:
    connection.exec_driver_sql(
        "INSERT INTO names (parent, name, file_id, created_at_us) VALUES (?, ?, ?, ?)", (parent, name, file_id, now_us)
    )
