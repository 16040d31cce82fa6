"""One directory of files on one disk. Blocking calls; nothing here knows VOs, users or logical names.

Layout below the pool's root:

    incoming/<file id>        being written, or written and not yet in the database
    partial/<name>            the beginning of a large copy, which may go on later (`partial.py`)
    data/ab/cd/<file id>      kept; ab and cd are the first digits of the random id, so directories stay small and even

How a file becomes whole: written to incoming/, synced, *linked* to its place in data/, directory synced, committed to
the database, and only then its name in incoming/ is dropped. A hard link followed by an unlink is a rename whose old
name survives until the commit; so after a crash the few names in incoming/ say which files are in doubt, and a start
costs what was under way, not a walk over a million files. A file in doubt that the database does not know was never
acknowledged: it is removed, and its sender, who got no answer, repeats the put.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

from zlib_ng import zlib_ng

from agents.storage.framing import Piece
from agents.storage.model import PIECE_BYTES, Checksums, require_equal
from agents.storage.space import PoolFree
from agents.storage.surl import is_file_id
from fabric.errors import DataCorrupted, Exhausted, GridError, InvalidRequest, Unavailable
from security.errors import os_error_text

T = TypeVar("T")

WRITEBACK_BYTES = 16 << 20
"""The kernel is asked to start writing after this many bytes, so that the final sync finds little left to do."""
FULL_RETRY_S = 60
_libc = ctypes.CDLL(None, use_errno=True)


class Pool:
    """A pool at `root`, made if absent; but not if it `expects_files`: then its disk is not mounted, and writing below
    the mount point would hide files later. Raises Unavailable(POOL_UNUSABLE)."""

    def __init__(self, root: Path, expects_files: bool = False) -> None:
        self.name = str(root)
        self.readers = 0
        """Files of it that are being read."""
        self.incoming = root / "incoming"
        self.partial = root / "partial"
        self.data = root / "data"
        try:
            if expects_files and not self.data.is_dir():
                raise OSError("it should hold files and is empty")
            for directory in (root, self.incoming, self.partial, self.data):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_directory(root)
            self.device = root.stat().st_dev
        except OSError as error:
            raise Unavailable(
                "POOL_UNUSABLE",
                f"pool {root} cannot be used ({os_error_text(error)}); mount its disk or take it out of the options",
            ) from error

    def measure(self) -> PoolFree | None:
        """Free bytes now, as an ordinary user sees them; None if the disk does not answer or is read-only."""
        try:
            found = os.statvfs(self.incoming)
            device = os.stat(self.incoming).st_dev
        except OSError:
            return None
        if device != self.device or found.f_flag & os.ST_RDONLY:
            return None  # the disk is gone and the directory below its mount point shows: writing there would hide data
        no_inodes = found.f_files > 0 and found.f_favail == 0
        free = 0 if no_inodes else found.f_bavail * found.f_frsize
        return PoolFree(self.name, device, free, found.f_blocks * found.f_frsize, self.readers)

    def _is_mounted(self) -> bool:
        try:
            return self.incoming.stat().st_dev == self.device
        except OSError:
            return False

    def path_of(self, file_id: str) -> Path:
        """Where a kept file lies. Raises ValueError for anything but an id made here: no other text becomes a path."""
        if not is_file_id(file_id):
            raise ValueError(f"{file_id!r} is not the id of a file")
        return self.data / file_id[:2] / file_id[2:4] / file_id

    def open(self, file_id: str, size_bytes: int) -> int:
        """A descriptor for reading; the caller closes it. Raises DataCorrupted(FILE_LOST | FILE_DAMAGED)."""
        path = self.path_of(file_id)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            if not self._is_mounted():
                raise Unavailable(
                    "POOL_UNUSABLE", f"the disk of file {file_id} is away; read another replica, or try later"
                ) from error
            raise DataCorrupted(
                "FILE_LOST",
                f"file {file_id} is in the database and not on disk; read another replica and tell the site",
            ) from error
        except OSError as error:
            raise Unavailable(
                "POOL_UNUSABLE", f"file {file_id} cannot be read now ({error.strerror}); read another replica"
            ) from error
        found = os.fstat(descriptor).st_size
        if found != size_bytes:
            os.close(descriptor)
            raise DataCorrupted(
                "FILE_DAMAGED",
                f"file {file_id} has {found} bytes on disk and should have {size_bytes}; read another replica",
            )
        return descriptor

    def remove(self, file_id: str) -> None:
        """Delete the bytes. Whoever reads them now goes on reading. May be repeated. Raises OSError, also if the disk
        is away: it will have them when it is back."""
        try:
            self.path_of(file_id).unlink()
        except FileNotFoundError:
            if not self._is_mounted():
                raise

    def sync(self) -> Exhausted | Unavailable | None:
        """Everything written to this disk so far is there for good; else why not. Costs the same for one file and for
        hundreds; what others write to the disk meanwhile is waited for, too."""
        try:
            descriptor = os.open(self.data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if _libc.syncfs(descriptor):
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number))
            finally:
                os.close(descriptor)
        except OSError as error:
            return _write_error(error, self)
        return None

    def in_doubt(self) -> list[str]:
        """Ids of files that a crash may have left between two steps. Foreign names in incoming/ are left alone."""
        try:
            return sorted(name for name in os.listdir(self.incoming) if is_file_id(name))
        except OSError as error:
            raise Unavailable("POOL_UNUSABLE", f"pool {self.name} cannot be read ({os_error_text(error)})") from error

    def settle(self, in_doubt: Sequence[str], known: Collection[str]) -> list[str]:
        """After a crash: ids in the database are kept, the others go. Returns the ids removed. May be repeated."""
        gone: list[str] = []
        for file_id in in_doubt:
            if file_id not in known:
                self.path_of(file_id).unlink(missing_ok=True)
                gone.append(file_id)
            (self.incoming / file_id).unlink(missing_ok=True)
        return gone


class PieceReader(Generic[T]):
    """Reads an open file in pieces, each into the same buffer, so that what is done to it (`made`: checksums, the bytes
    to send) finds it in the processor's cache. One call at a time."""

    def __init__(self, descriptor: int, made: Callable[[memoryview], T]) -> None:
        self._descriptor = descriptor
        self._made = made
        self._buffer = bytearray()

    def read(self, offset: int, size_bytes: int) -> list[T]:
        """What was made of the pieces of a range. Raises DataCorrupted(FILE_DAMAGED) if the file ends before, or cannot
        be read."""
        if not self._buffer:
            self._buffer = bytearray(min(PIECE_BYTES, size_bytes))
        made: list[T] = []
        done = 0
        while done < size_bytes:
            piece = memoryview(self._buffer)[: size_bytes - done]
            _read_into(self._descriptor, piece, offset + done)
            made.append(self._made(piece))
            done += len(piece)
        return made


class BatchReader:
    """Reads an open file without a copy, in batches of pieces: each piece is `seen` as it comes, the batch is one view.
    One call at a time; a batch is overwritten by the next but one."""

    def __init__(self, descriptor: int, seen: Callable[[memoryview], object] = len) -> None:
        self._descriptor = descriptor
        self._seen = seen
        self._buffers = [bytearray(), bytearray()]

    def read(self, offset: int, size_bytes: int) -> list[memoryview]:
        """The one view of a range. Raises DataCorrupted(FILE_DAMAGED)."""
        self._buffers.reverse()
        if len(self._buffers[0]) < size_bytes:
            self._buffers[0] = bytearray(size_bytes)
        batch = memoryview(self._buffers[0])[:size_bytes]
        for start in range(0, size_bytes, PIECE_BYTES):
            piece = batch[start : start + PIECE_BYTES]
            _read_into(self._descriptor, piece, offset + start)
            self._seen(piece)
        return [batch]


def _read_into(descriptor: int, buffer: memoryview, offset: int) -> None:
    done = 0
    while done < len(buffer):
        try:
            came = os.preadv(descriptor, [buffer[done:]], offset + done)
        except OSError as error:
            raise DataCorrupted(
                "FILE_DAMAGED", f"a disk failed while reading ({error.strerror}); read another replica"
            ) from error
        if not came:
            raise DataCorrupted("FILE_DAMAGED", f"the file ends at byte {offset + done} already; read another replica")
        done += came


class Hasher:
    """Both checksums of bytes fed in order. Hashing large pieces lets other threads run."""

    def __init__(self) -> None:
        self._adler32 = 1
        self._sha256 = hashlib.sha256()
        self.size_bytes = 0

    def update(self, piece: Piece) -> None:
        """The next bytes."""
        self._adler32 = zlib_ng.adler32(piece, self._adler32)
        self._sha256.update(piece)
        self.size_bytes += len(piece)

    def checksums(self) -> Checksums:
        """Of everything fed so far."""
        return Checksums(f"{self._adler32:08x}", self._sha256.hexdigest())


class Incoming:
    """A file on its way in. Methods run on worker threads and are safe against each other, so an upload may be
    discarded while its last write still runs. Order: begin, read_again*, write*, finish, then settle or discard; or
    `keep` of what came, for another of the same name in `partial/`."""

    def __init__(
        self, pool: Pool, file_id: str, size_bytes: int, partial: str = "", copies: Sequence[Incoming] = ()
    ) -> None:
        """`copies` get the same bytes, hashed once, and share its fate."""
        self.pool = pool
        self.copies = copies
        self.file_id = file_id
        self.size_bytes = size_bytes
        self.hasher = Hasher()
        self._lock = threading.Lock()
        self._partial = bool(partial)
        self._path = pool.partial / partial if partial else pool.incoming / file_id
        self._target = pool.path_of(file_id)
        self._unflushed = 0
        self._descriptor = -1
        self._discarded = False

    def begin(self) -> None:
        """Make the empty file, or open what came before. Raises Exhausted(DISK_FULL), Unavailable(POOL_UNUSABLE). After
        `discard` it does nothing."""
        with self._lock:
            if self._discarded:
                return
            try:
                how = os.O_RDWR if self._partial else os.O_WRONLY | os.O_EXCL
                self._descriptor = os.open(self._path, how | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise _write_error(error, self.pool) from error
            for copy in self.copies:
                copy.begin()

    def read_again(self, most_bytes: int) -> int:
        """Hash the next bytes that came before; how many. 0: all were, and `write` appends to them."""
        with self._lock:
            if self._descriptor < 0 or not self._partial:
                return 0
            try:
                piece = os.read(self._descriptor, min(most_bytes, self.size_bytes - self.hasher.size_bytes))
            except OSError as error:
                raise _write_error(error, self.pool) from error
            for copy in self.copies:
                copy.append(piece)
            self.hasher.update(piece)
            return len(piece)

    def write(self, pieces: Sequence[Piece]) -> int:
        """Append and hash; returns the bytes taken. Raises InvalidRequest(SIZE_MISMATCH) for more than announced,
        Exhausted(DISK_FULL), Unavailable. After `discard` it does nothing."""
        taken = sum(map(len, pieces))
        with self._lock:
            if self._descriptor < 0:
                return 0
            if self.hasher.size_bytes + taken > self.size_bytes:
                raise InvalidRequest(
                    "SIZE_MISMATCH",
                    f"more than the announced {self.size_bytes} bytes arrived; nothing was kept, announce the right "
                    f"size",
                    announced_bytes=self.size_bytes,
                )
            for piece in pieces:
                try:
                    self._append(piece)
                except OSError as error:
                    raise _write_error(error, self.pool) from error
                for copy in self.copies:
                    copy.append(piece)
                self.hasher.update(piece)  # at once, while the processor has the piece at hand
        return taken

    def append(self, piece: Piece) -> None:
        """Write without hashing: for a copy. Raises Exhausted(DISK_FULL), Unavailable."""
        with self._lock:
            if self._descriptor < 0:
                return
            try:
                self._append(piece)
            except OSError as error:
                raise _write_error(error, self.pool) from error

    def _append(self, piece: Piece) -> None:
        rest = memoryview(piece)
        while rest:
            done = os.write(self._descriptor, rest)
            self._unflushed += done
            rest = rest[done:]
        if self._unflushed >= WRITEBACK_BYTES:
            # For dirty pages this only starts the writing, without waiting for it; they stay for the next reader.
            start = os.lseek(self._descriptor, 0, os.SEEK_CUR) - self._unflushed
            os.posix_fadvise(self._descriptor, start, self._unflushed, os.POSIX_FADV_DONTNEED)
            self._unflushed = 0

    def verify_size(self) -> None:
        """Raises InvalidRequest(SIZE_MISMATCH) if fewer bytes came than announced."""
        if self.hasher.size_bytes != self.size_bytes:
            raise InvalidRequest(
                "SIZE_MISMATCH",
                f"{self.hasher.size_bytes} bytes arrived and {self.size_bytes} were announced; nothing was kept, send "
                f"the "
                "file again",
                announced_bytes=self.size_bytes,
                received_bytes=self.hasher.size_bytes,
            )

    def finish(self, reached: Callable[[str], None] = lambda name: None, *, sync: bool = True) -> None:
        """Sync, link to its final place, sync that directory. The file is there for good; the database comes next.
        Without `sync` the caller has to sync the disk before that."""
        with self._lock:
            if self._descriptor < 0:
                raise Unavailable("PUT_ENDED", "the upload was ended before it was complete; send it again")
            reached("written")
            try:
                if sync:
                    os.fsync(self._descriptor)
                os.close(self._descriptor)
                self._descriptor = -1
                self._settle_partial()
                self._link()
                if sync:
                    sync_directory(self._target.parent)
            except OSError as error:
                raise _write_error(error, self.pool) from error
            for copy in self.copies:
                copy.finish(sync=sync)
            reached("linked")

    def _settle_partial(self) -> None:
        """From here on a crash leaves a file in doubt and no beginning."""
        if self._partial:
            path = self.pool.incoming / self.file_id
            os.rename(self._path, path)
            self._path = path
            sync_directory(self.pool.incoming)

    def _link(self) -> None:
        target = self._target
        try:
            os.link(self._path, target)
        except FileNotFoundError:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_directory(target.parent.parent)
            sync_directory(self.pool.data)
            os.link(self._path, target)

    def settle(self) -> None:
        """The database knows the file: drop its name in incoming/. Loss of this step costs nothing, a start repeats
        it."""
        for file in (self, *self.copies):
            with suppress(OSError):
                file._path.unlink(missing_ok=True)

    def keep(self) -> None:
        """What came stays in `partial/`; copies are filled from it again."""
        for copy in self.copies:
            copy.discard()
        with self._lock:
            self._discarded = True
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def discard(self) -> None:
        """Nothing of it stays, wherever it was. May be repeated; a failure is left to the next start."""
        for copy in self.copies:
            copy.discard()
        with self._lock:
            self._discarded = True
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
            try:
                self._target.unlink(missing_ok=True)
                self._path.unlink(missing_ok=True)
            except OSError:
                pass


def write_together(
    files: Sequence[tuple[Incoming, Piece, Checksums]], reached: Callable[[str], None] = lambda name: None
) -> list[GridError | None]:
    """Write, verify and link small files, then sync each of their disks once: what each was refused with. One that was
    not refused is there for good, as after `finish`."""
    refused = [_refusal(incoming, data, expected) for incoming, data, expected in files]
    reached("written")
    written = [(incoming, *incoming.copies) for incoming, _, _ in files]
    disks = {copy.pool.device: copy.pool for copies in written for copy in copies}
    failed = {device: error for device, pool in disks.items() if (error := pool.sync()) is not None}
    reached("linked")
    return [
        error or next((failed[copy.pool.device] for copy in copies if copy.pool.device in failed), None)
        for error, copies in zip(refused, written, strict=True)
    ]


def _refusal(incoming: Incoming, data: Piece, expected: Checksums) -> GridError | None:
    try:
        incoming.begin()
        incoming.write([data])
        incoming.verify_size()
        require_equal(f"file {incoming.file_id}", incoming.size_bytes, incoming.hasher.checksums(), expected)
        incoming.finish(sync=False)
    except GridError as error:
        return error
    return None


def read_together(files: Sequence[tuple[Pool | None, str, int]]) -> list[bytes | None]:
    """Whole small files by (pool, id on disk, size); None for what cannot be read as it should be."""
    return [_read_small(*file) for file in files]


def _read_small(pool: Pool | None, disk_id: str, size_bytes: int) -> bytes | None:
    if pool is None:
        return None
    try:
        data = pool.path_of(disk_id).read_bytes()
    except OSError:
        return None
    return data if len(data) == size_bytes else None


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_error(error: OSError, pool: Pool) -> Exhausted | Unavailable:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Exhausted(
            "DISK_FULL",
            f"the disk of this storage element filled up ({error.strerror}); nothing was kept, choose another storage "
            "element or try later",
            pool=pool.name,
            retry_after_s=FULL_RETRY_S,
        )
    return Unavailable(
        "POOL_UNUSABLE",
        f"the disk of this storage element failed ({error.strerror}); nothing was kept, choose another storage element",
        pool=pool.name,
    )
