"""Tapes behind a storage element: what it asks of a tape system, and a tape system made of files.

A plug-in for another one (CASTOR, HPSS, ...) offers the four methods of `TapeLibrary`. `FileLibrary` keeps each
cartridge as a directory and behaves like a robot: few drives, one tape in each, time to mount, to wind and to read.
Its time passes in `pause`, so tests need not wait.

    <library>/T00001/00000012-<file id>        a record, whole
    <library>/T00001/00000013-<file id>.part   being written, or left by a crash: removed at the start
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agents.storage.config import TapeConfig
from agents.storage.model import PIECE_BYTES, Checksums, StoredFile, require_equal
from agents.storage.pool import Hasher, sync_directory
from agents.storage.surl import is_file_id
from fabric.errors import DataCorrupted, Exhausted, NotFound, Unavailable
from security.errors import os_error_text

BATCH_BYTES = 8 * PIECE_BYTES
"""Read or written by one call of a thread."""
_RECORD = re.compile(r"(\d{8})-([0-9a-f]{32})\Z")
_CARTRIDGE = re.compile(r"T\d{5}\Z")


@dataclass(frozen=True, slots=True)
class TapeRecord:
    """A whole file on tape. Records of one tape are best read in order of position."""

    file_id: str
    tape: str
    position: int
    size_bytes: int


class TapeLibrary(Protocol):
    """A tape system. Every method may be repeated; after a crash each is called again."""

    drives: int
    """How many calls of `stage` make sense at one time, each for another tape."""

    async def start(self) -> None:
        """Before anything else. Raises Unavailable(TAPE_UNUSABLE)."""
        ...

    async def archive(self, file: StoredFile, pieces: AsyncIterator[memoryview]) -> TapeRecord:
        """Write the file, read it back and compare both checksums; when this returns, it may leave the disk. Raises
        DataCorrupted(CHECKSUM_MISMATCH), Exhausted(TAPES_FULL), Unavailable(TAPE_UNUSABLE)."""
        ...

    def stage(self, record: TapeRecord) -> AsyncGenerator[memoryview]:
        """The bytes of a record, in views that end with the next. Not verified here. Raises DataCorrupted(TAPE_LOST),
        Unavailable(TAPE_UNUSABLE)."""
        ...

    async def purge(self, file_id: str) -> None:
        """Forget a file for good. One that is not there is no error. Raises Unavailable(TAPE_UNUSABLE)."""
        ...

    async def query(self, file_id: str) -> TapeRecord | None:
        """Where a file is, without mounting anything."""
        ...

    def size_bytes(self) -> int:
        """What all tapes hold when full."""
        ...


@dataclass(slots=True)
class _Cartridge:
    """What has been written to a tape."""

    end: int = 0
    """Position of the next record."""
    records: int = 0
    size_bytes: int = 0
    """Also of records that are gone: a tape is written at its end."""

    def add(self, position: int, size_bytes: int) -> None:
        """A record is there."""
        self.end = max(self.end, position + 1)
        self.records += 1
        self.size_bytes += size_bytes

    def lose_one(self) -> None:
        """A record is gone; when it was the last, the tape is as new."""
        self.records -= 1
        if not self.records:
            self.end = self.size_bytes = 0


class FileLibrary:
    """The tape system that needs no hardware. Use from one event loop."""

    def __init__(self, config: TapeConfig, *, pause: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        self.drives = config.drives
        self.mounts = 0
        """How often a tape was put into a drive, since the start."""
        self._config, self._pause = config, pause
        self._root = config.library
        self._records: dict[str, TapeRecord] = {}
        self._cartridges: dict[str, _Cartridge] = {}
        self._mounted: dict[str, int] = {}
        self._in_use: set[str] = set()
        self._drive_free = asyncio.Condition()
        self._writing = asyncio.Lock()

    def size_bytes(self) -> int:
        """Of all cartridges."""
        return self._config.cartridges * self._config.cartridge_bytes

    async def start(self) -> None:
        """Read the labels."""
        try:
            await asyncio.to_thread(self._read_labels)
        except OSError as error:
            raise _unusable(self._root, error) from error

    def _read_labels(self) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for cartridge in sorted(self._root.iterdir()):
            if not _CARTRIDGE.match(cartridge.name):
                continue
            known = self._cartridges[cartridge.name] = _Cartridge()
            for path in cartridge.iterdir():
                found = _RECORD.match(path.name)
                if found is None:
                    if path.suffix == ".part":
                        path.unlink()
                    continue
                position, size = int(found[1]), path.stat().st_size
                self._records[found[2]] = TapeRecord(found[2], cartridge.name, position, size)
                known.add(position, size)

    async def query(self, file_id: str) -> TapeRecord | None:
        """See the protocol."""
        return self._records.get(file_id)

    async def archive(self, file: StoredFile, pieces: AsyncIterator[memoryview]) -> TapeRecord:
        """See the protocol. Tapes are written one at a time, at their end."""
        async with self._writing:
            record = self._records.get(file.file_id)
            if record is None:
                record = await self._write(file, pieces)
            try:
                await self._verify(record, file.checksums)
            except DataCorrupted:
                await self.purge(file.file_id)
                raise
        return record

    async def _write(self, file: StoredFile, pieces: AsyncIterator[memoryview]) -> TapeRecord:
        tape, position = self._place(file.size_bytes)
        record = TapeRecord(file.file_id, tape, position, file.size_bytes)
        target = self._path(record)
        partial = target.with_name(f"{target.name}.part")
        try:
            await asyncio.to_thread(target.parent.mkdir, mode=0o700, exist_ok=True)
            async with self._drive(tape, position):
                with open(partial, "wb") as out:
                    async for piece in pieces:
                        await asyncio.to_thread(out.write, piece)
                        await self._pass(len(piece))
                    await asyncio.to_thread(_sync, out.fileno())
                partial.rename(target)
                await asyncio.to_thread(sync_directory, target.parent)
                await asyncio.to_thread(sync_directory, self._root)
        except OSError as error:
            raise _unusable(target.parent, error) from error
        finally:
            partial.unlink(missing_ok=True)
        self._cartridges[tape].add(position, file.size_bytes)
        self._records[file.file_id] = record
        return record

    def _place(self, size_bytes: int) -> tuple[str, int]:
        """The first tape that has room behind its last record, else a new one; a file longer than a tape gets one of
        its own."""
        for name, cartridge in self._cartridges.items():
            if not cartridge.records or cartridge.size_bytes + size_bytes <= self._config.cartridge_bytes:
                return name, cartridge.end
        if len(self._cartridges) >= self._config.cartridges:
            raise Exhausted(
                "TAPES_FULL",
                f"all {self._config.cartridges} tapes of {self._root} are full; add tapes (option cartridges)",
            )
        name = f"T{len(self._cartridges) + 1:05}"
        self._cartridges[name] = _Cartridge()
        return name, 0

    async def _verify(self, record: TapeRecord, expected: Checksums) -> None:
        hasher = Hasher()
        async with aclosing(self.stage(record)) as batches:
            async for batch in batches:
                await asyncio.to_thread(hasher.update, batch)
        require_equal(f"file {record.file_id} on tape {record.tape}", record.size_bytes, hasher.checksums(), expected)

    async def stage(self, record: TapeRecord) -> AsyncGenerator[memoryview]:
        """See the protocol."""
        buffer = bytearray(min(BATCH_BYTES, record.size_bytes))
        async with self._drive(record.tape, record.position):
            try:
                with open(self._path(record), "rb") as source:
                    while count := await asyncio.to_thread(source.readinto, buffer):
                        await self._pass(count)
                        yield memoryview(buffer)[:count]
            except FileNotFoundError as error:
                raise DataCorrupted(
                    "TAPE_LOST", f"file {record.file_id} is not on tape {record.tape}; read another replica"
                ) from error
            except OSError as error:
                raise _unusable(self._root / record.tape, error) from error

    async def purge(self, file_id: str) -> None:
        """See the protocol. The tape has room again when its last record is gone."""
        record = self._records.get(file_id)
        if record is None:
            return
        try:
            await asyncio.to_thread(self._path(record).unlink, missing_ok=True)
        except OSError as error:
            raise _unusable(self._root / record.tape, error) from error
        if self._records.pop(file_id, None) is not None:
            self._cartridges[record.tape].lose_one()

    def _path(self, record: TapeRecord) -> Path:
        if not is_file_id(record.file_id) or not _CARTRIDGE.match(record.tape):
            raise NotFound("TAPE_LOST", f"{record.tape[:20]!r} is no tape of {self._root}")
        return self._root / record.tape / f"{record.position:08}-{record.file_id}"

    @asynccontextmanager
    async def _drive(self, tape: str, position: int) -> AsyncIterator[None]:
        """A drive with this tape, wound to this position. A tape that lies in one stays there until its drive is
        wanted."""
        async with self._drive_free:
            await self._drive_free.wait_for(lambda: tape not in self._in_use and len(self._in_use) < self.drives)
            self._in_use.add(tape)
            at = self._mounted.pop(tape, None)
            if at is None:
                idle = [name for name in self._mounted if name not in self._in_use]
                while idle and len(self._mounted) + len(self._in_use) > self.drives:
                    del self._mounted[idle.pop(0)]
        try:
            if at is None:
                self.mounts += 1
                await self._pause(self._config.mount_s)
            end = max(self._cartridges[tape].end, 1)
            await self._pause(self._config.seek_s * abs(position - (at or 0)) / end)
            yield
        finally:
            async with self._drive_free:
                self._in_use.discard(tape)
                self._mounted[tape] = position + 1
                self._drive_free.notify_all()

    async def _pass(self, size_bytes: int) -> None:
        await self._pause(size_bytes / (self._config.mb_per_s * 1e6))


def _sync(descriptor: int) -> None:
    os.fsync(descriptor)


def _unusable(place: Path, error: OSError) -> Unavailable:
    return Unavailable(
        "TAPE_UNUSABLE",
        f"the tapes at {place} cannot be used ({os_error_text(error)}); what is on disk is served, ask again later",
        retry_after_s=60,
    )
