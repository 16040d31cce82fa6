"""Power loss for SQLite files: everything that was written is logged below SQLite, and any state is made from that log
which a disk may have after the power went, with writes that were not synced kept, dropped or torn.

    with Recorder() as disk:
        ...  # stores are opened, written and closed, as the agents do
    for number in range(len(disk.log)):
        disk.lose_power(number, random, target)

The log is taken by replacing write, truncate, sync and delete of SQLite's own file methods (`sqlite3_vfs`), so what is
tried is the real library with the real pragmas of our stores. What is not synced when the power goes is dropped, kept
or torn, sector by sector and in any order, which is more than disks do. Files that SQLite made or removed are there or
not as it saw them.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import os
import random
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECTOR_BYTES = 512

_WRITE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_TRUNCATE = CFUNCTYPE(c_int, c_void_p, c_int64)
_SYNC = CFUNCTYPE(c_int, c_void_p, c_int)
_OPEN = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, POINTER(c_int))
_DELETE = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)
_CLOSE = CFUNCTYPE(c_int, c_void_p)


class _Methods(ctypes.Structure):
    """sqlite3_io_methods, version 3; what is not replaced stays as it is."""

    _fields_ = [
        ("version", c_int), ("close", c_void_p), ("read", c_void_p), ("write", c_void_p), ("truncate", c_void_p),
        ("sync", c_void_p), ("rest", c_void_p * 13),
    ]  # fmt: skip


class _Vfs(ctypes.Structure):
    """The head of sqlite3_vfs."""

    _fields_ = [
        ("version", c_int), ("file_bytes", c_int), ("path_bytes", c_int), ("next", c_void_p), ("name", c_char_p),
        ("data", c_void_p), ("open", c_void_p), ("delete", c_void_p),
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes at a place of a file; `size_bytes` instead of them: it was cut there."""

    path: str
    offset: int
    data: bytes
    size_bytes: int = -1


@dataclass(frozen=True, slots=True)
class Sync:
    path: str


@dataclass(frozen=True, slots=True)
class Delete:
    path: str


@dataclass(frozen=True, slots=True)
class Mark:
    """Something the test wants to remember: what was promised by then."""

    what: Any


class Recorder:
    """Logs what SQLite does to files below `folder` while it is entered. Files opened before are not logged."""

    def __init__(self, folder: Path) -> None:
        self.folder = os.fspath(folder)
        self.log: list[Write | Sync | Delete | Mark] = []
        self._library = ctypes.CDLL(_sqlite3.__file__)
        self._library.sqlite3_vfs_find.restype = POINTER(_Vfs)
        self._paths: dict[int, str] = {}
        self._tables: dict[int, tuple[_Methods, _Methods]] = {}
        """By the address of SQLite's own table of methods: it, as it was, and the one that logs."""
        self._keep: list[Any] = []

    def mark(self, what: Any) -> None:
        """Promised from now on."""
        self.log.append(Mark(what))

    def __enter__(self) -> Recorder:
        self._vfs = self._library.sqlite3_vfs_find(None).contents
        self._open_address, self._delete_address = self._vfs.open, self._vfs.delete
        open_file, delete = _OPEN(self._open_address), _DELETE(self._delete_address)

        def opened(vfs: int, name: int | None, file: int, flags: int, out: Any) -> int:
            found = open_file(vfs, name, file, flags, out)  # SQLite keeps this very pointer
            path = os.fsdecode(ctypes.string_at(name)) if name else ""
            if found == 0 and path.startswith(self.folder):
                self._paths[file] = path
                slot = c_void_p.from_address(file)
                slot.value = ctypes.addressof(self._logging(slot.value or 0))
            return found

        def deleted(vfs: int, name: bytes, is_synced: int) -> int:
            found = delete(vfs, name, is_synced)
            if found == 0 and os.fsdecode(name).startswith(self.folder):
                self.log.append(Delete(os.fsdecode(name)))
            return found

        self._keep += [callbacks := (_OPEN(opened), _DELETE(deleted))]
        self._vfs.open, self._vfs.delete = (ctypes.cast(one, c_void_p).value for one in callbacks)
        return self

    def __exit__(self, *error: object) -> None:
        """Every store must be closed by now."""
        self._vfs.open, self._vfs.delete = self._open_address, self._delete_address

    def _logging(self, address: int) -> _Methods:
        """SQLite's methods for one kind of file, with ours in front of those that change it."""
        if address in self._tables:
            return self._tables[address][1]
        own = _Methods.from_address(address)
        write, truncate, sync, close = _WRITE(own.write), _TRUNCATE(own.truncate), _SYNC(own.sync), _CLOSE(own.close)

        def written(file: int, data: int, size: int, offset: int) -> int:
            found = write(file, data, size, offset)
            if found == 0:
                self.log.append(Write(self._paths[file], offset, ctypes.string_at(data, size)))
            return found

        def truncated(file: int, size: int) -> int:
            found = truncate(file, size)
            if found == 0:
                self.log.append(Write(self._paths[file], 0, b"", size))
            return found

        def synced(file: int, flags: int) -> int:
            found = sync(file, flags)
            if found == 0:
                self.log.append(Sync(self._paths[file]))
            return found

        made = _Methods.from_buffer_copy(own)
        callbacks = (_WRITE(written), _TRUNCATE(truncated), _SYNC(synced))
        made.write, made.truncate, made.sync = (ctypes.cast(one, c_void_p).value for one in callbacks)
        self._keep += [callbacks, close]
        self._tables[address] = (own, made)
        return made

    def lose_power(self, number: int, chance: random.Random, target: Path) -> list[Any]:
        """Write the files as they may be when the power goes after `number` entries of the log; what was marked by
        then. Synced bytes are there; of the others each sector is, or is not."""
        files: dict[str, bytearray] = {}
        pending: dict[str, list[Write]] = {}
        marks: list[Any] = []
        for entry in self.log[:number]:
            match entry:
                case Mark(what):
                    marks.append(what)
                case Delete(path):
                    files.pop(path, None)
                    pending.pop(path, None)
                case Sync(path):
                    for write in pending.pop(path, ()):
                        _apply(files.setdefault(path, bytearray()), write)
                case Write(path):
                    pending.setdefault(path, []).append(entry)
        for path, writes in pending.items():
            everything = chance.random() < 0.2  # the page cache was written back a moment before
            for write in writes:
                for part in _sectors(write):
                    if everything or chance.random() < 0.5:
                        _apply(files.setdefault(path, bytearray()), part)
        for path, data in files.items():
            if not path.endswith("-shm"):
                copy = target / os.path.relpath(path, self.folder)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(data)
        return marks


def _apply(data: bytearray, write: Write) -> None:
    if write.size_bytes >= 0:
        del data[write.size_bytes :]
        return
    if len(data) < write.offset:
        data.extend(bytes(write.offset - len(data)))
    data[write.offset : write.offset + len(write.data)] = write.data


def _sectors(write: Write) -> list[Write]:
    """What a disk writes as a whole."""
    if write.size_bytes >= 0:
        return [write]
    parts, start = [], 0
    while start < len(write.data):
        end = start + SECTOR_BYTES - (write.offset + start) % SECTOR_BYTES
        parts.append(Write(write.path, write.offset + start, write.data[start:end]))
        start = end
    return parts
