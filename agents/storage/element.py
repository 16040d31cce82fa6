"""The storage element itself: files in, files out, on disk and in the database, without any wire.

Durable is what `put` and `remove` have returned from. A put goes: space booked (memory) - bytes to incoming/ -
checksums compared - synced and linked (pool) - row (database) - answer. Until the row is there nobody sees the file and
a crash removes it; from then on the file is there for good. From the sync on the work belongs to a task of its own: a
caller that goes away in the middle of a commit can neither tear it nor lose it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from agents.storage.admission import Admission
from agents.storage.config import StorageConfig
from agents.storage.framing import Piece
from agents.storage.model import (
    MAX_NAME_HINT_LENGTH,
    PIECE_BYTES,
    Announced,
    Checksums,
    Entry,
    StoredFile,
    check_announcement,
    checksums_missing,
    require_checksums,
    require_equal,
    require_intact,
    require_same,
)
from agents.storage.namespace import not_found
from agents.storage.overlap import AHEAD_PIECES, Overlap
from agents.storage.partial import Continuable, Partials
from agents.storage.pool import BatchReader, Incoming, PieceReader, Pool, read_together, write_together
from agents.storage.pools import Pools, PoolState
from agents.storage.reservations import Reservations
from agents.storage.space import Ledger, PoolFree, Reservation, SpaceReport
from agents.storage.store import FileStore
from fabric import failpoints
from fabric.bell import Bell
from fabric.clock import Clock, to_us
from fabric.errors import (
    Conflict,
    DataCorrupted,
    DeadlineExceeded,
    Exhausted,
    GridError,
    InvalidRequest,
    NotFound,
    Unavailable,
)
from fabric.logs import Logger

T = TypeVar("T")

IO_THREADS = 16
"""Threads for disk and checksums. They mostly wait: for the disk, or inside OpenSSL without the interpreter lock."""
COLLECT_EVERY_S = 30.0
"""How often bytes whose deletion failed (disk away) are tried again."""

PLACE_DIGITS = 4
"""Files that came together have ids that begin alike, and so lie in one directory: one directory is synced, not 256."""

Pieces = AsyncIterator[Piece | Checksums]
"""A file as it arrives: data in order, then the sender's checksums."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """A small file on its way to disk: the `number` of its outcome, and what it is."""

    number: int
    announced: Announced
    checksums: Checksums
    data: Piece
    incoming: Incoming
    reservation: Reservation


class StorageElement:
    """One storage element. Use from one event loop."""

    def __init__(
        self,
        config: StorageConfig,
        files: FileStore,
        *,
        log: Logger,
        clock: Clock,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self.config = config
        self.admission = Admission(config.max_transfers, config.max_transfers_per_user)
        self.bytes_in = 0
        self.bytes_out = 0
        self._files = files
        self._log = log
        self._clock = clock
        self._new_id = new_id
        self._threads = ThreadPoolExecutor(IO_THREADS, thread_name_prefix="storage-io")
        self.pools = Pools(config.pools, files, self._io, log)
        self._partials = Partials(self.pools, clock, self._io)
        self._ledger = Ledger(
            config.quota_of, config.reserve_bytes, copies_of=config.copies_of, pool_bytes=config.pool_bytes
        )
        self.reservations = Reservations(files.database, lambda: self._ledger, self._hold, clock, log)
        self._uploads: dict[tuple[str, str], asyncio.Task[StoredFile]] = {}
        self._commits: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Event()
        self._stopping = False
        self.damage_found = Bell()
        """Rung when a file is marked as damaged."""
        self.copy_lost = Bell()
        """Rung when a file has lost a copy and still has another."""
        self.make_room: Callable[[str, int], Awaitable[bool]] | None = None
        """Where files may leave the disk (`Nearline`): lets some go, and says whether there is room now."""

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the pools and bring disk and database to one state again. Raises as `Pools.start`."""
        await self.pools.start()
        config, in_pools = self.config, await self._files.use_by_pool()
        self._ledger = Ledger(
            config.quota_of, config.reserve_bytes, await self._files.use_by_vo(),
            copies_of=config.copies_of, pool_bytes=config.pool_bytes,
            in_pools={pool: size_bytes for pool, (size_bytes, _) in in_pools.items() if pool},
        )  # fmt: skip
        await self.reservations.start()
        await self.collect_garbage()

    async def stop(self) -> None:
        """Take no more uploads, end those that are not complete, wait for those that are. Reading goes on until
        `close`."""
        self._stopping = True
        uploads = list(self._uploads.values())
        for upload in uploads:
            upload.cancel()
        await asyncio.gather(*uploads, *self._commits, return_exceptions=True)

    async def close(self) -> None:
        """Wait for the threads. Nothing may be asked afterwards."""
        await asyncio.to_thread(self._threads.shutdown)

    async def collect_garbage(self) -> int:
        """Delete bytes whose rows are gone. Returns how many files went."""
        went: list[str] = []
        for disk_id, pool_name in await self._files.garbage():
            pool = self.pools.get(pool_name)
            if pool is not None and await self._io(_try_remove, pool, disk_id):
                went.append(disk_id)
        await self._files.collected(went)
        return len(went)

    async def keep_collecting(self) -> None:
        """Background task: pools that could not be opened and bytes that could not be deleted are tried again."""
        while True:
            await asyncio.sleep(COLLECT_EVERY_S)
            await self.pools.open_missing()
            await self.collect_garbage()
            await self._partials.forget_old()
            await self.reservations.end_expired()

    # -- files in ----------------------------------------------------------------------------------------------------

    async def put(self, announced: Announced, pieces: Pieces | Continuable) -> StoredFile:
        """Keep a file. The same (owner, put_id) again answers with the file that is there, if it is the same one; while
        the first is still under way, the later one takes over and the first ends with Conflict(PUT_TAKEN_OVER).

        Raises InvalidRequest(SIZE_MISMATCH | ...), DataCorrupted(CHECKSUM_MISMATCH), Exhausted(QUOTA_EXCEEDED |
        DISK_FULL | TOO_MANY_TRANSFERS), DeadlineExceeded(TRANSFER_STALLED), Conflict(PUT_ID_REUSED). After any of them
        nothing is left, but that the same put of a large file that is Continuable goes on where it broke off.
        """
        check_announcement(announced)
        if self._stopping:
            raise _stopping()
        key = (announced.owner, announced.put_id)
        while earlier := self._uploads.get(key):
            earlier.cancel()
            await asyncio.wait([earlier])
            if self._uploads.get(key) is earlier:
                del self._uploads[key]
        task = asyncio.create_task(self._put(announced, pieces))
        self._uploads[key] = task
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            if self._stopping:
                raise _stopping() from None
            raise Conflict(
                "PUT_TAKEN_OVER", f"put {announced.put_id!r} was ended: a repeat of it took over, or it was taken back"
            ) from None
        finally:
            if self._uploads.get(key) is task:
                del self._uploads[key]

    async def abort(self, owner: str, put_id: str, vo: str) -> StoredFile | None:
        """End a put that is under way. The file, if it was too late for that."""
        if upload := self._uploads.get((owner, put_id)):
            upload.cancel()
            await asyncio.wait([upload])
        if self._commits:  # the one of this put goes on without whoever waited for it
            await asyncio.wait(set(self._commits))
        await self._partials.take_back(owner, put_id)
        file = await self._files.by_put(owner, put_id)
        return file if file is not None and file.vo == vo else None

    async def _put(self, announced: Announced, source: Pieces | Continuable) -> StoredFile:
        continuable = None if isinstance(source, AsyncIterator) else source
        with (
            self.admission.transfer(announced.owner),  # before anything that costs: many may be refused
            self._partials.in_use(announced, continuable is not None) as partial,
        ):
            existing = await self._files.by_put(announced.owner, announced.put_id)
            if existing is not None:
                return await self._repeat(existing, announced, source)
            reservation = await self._reserve(announced, partial)
            incoming = self._incoming(reservation, announced.size_bytes, self._new_id(), partial)
            try:
                failpoints.reached("storage.put.reserved")
                await self._io(incoming.begin)
                if continuable is not None:
                    await self._take_up(continuable, incoming, reservation)
                sent = await self._take(_pieces(source), incoming, reservation) or announced.checksums
                incoming.verify_size()
                found = incoming.hasher.checksums()
                if sent is None:
                    raise checksums_missing()
                for expected in {sent, announced.checksums or sent}:
                    require_equal(f"put {announced.put_id!r}", announced.size_bytes, found, expected)
            except BaseException as error:
                await self._drop(incoming, reservation, keep=bool(partial) and _broke_off(error))
                raise
            return await self._to_the_end(self._commit(announced, incoming, reservation, found))

    async def _reserve(self, announced: Announced, partial: str) -> Reservation:
        vo, size_bytes = announced.vo, announced.size_bytes
        if announced.reservation:
            taken = self.reservations.take(announced.reservation, vo, size_bytes)
            return self._ledger.mirror(taken, await self.pools.writable())
        beside = await self._partials.pool_of(partial) if partial else ""

        async def reserve() -> Reservation:
            pools = self._for(announced, await self.pools.writable())
            return self._ledger.mirror(self._ledger.reserve(vo, size_bytes, pools, beside), pools)

        async def tapes() -> bool:
            return self.make_room is not None and await self.make_room(vo, size_bytes)

        async def begin_anew() -> bool:  # what came before takes the room that the rest wants
            await self._partials.take_back(announced.owner, announced.put_id)
            return True

        for make_room in (self._partials.make_room, begin_anew, tapes):
            try:
                return await reserve()
            except Exhausted:
                if not await make_room() and make_room is tapes:
                    raise
        return await reserve()

    async def _hold(self, vo: str, size_bytes: int, pool: str) -> Reservation:
        """For files to come, in one pool or in any."""
        pools = await self.pools.writable()
        return self._ledger.reserve(vo, size_bytes, [each for each in pools if pool in ("", each.pool)])

    async def _take_up(self, source: Continuable, incoming: Incoming, reservation: Reservation) -> None:
        """What came before is read again."""
        while size_bytes := await self._io(incoming.read_again, PIECE_BYTES):
            self._ledger.written(reservation, size_bytes)
            source.known(size_bytes)

    def _for(self, announced: Announced, pools: Sequence[PoolFree]) -> Sequence[PoolFree]:
        """Those that may take this file: all, but under the old rule of `planned_partitions`."""
        planned = self.config.planned_partitions
        if not planned:
            return pools
        directory = announced.name_hint.rpartition("/")[0]
        if directory not in planned:
            raise InvalidRequest("NOT_PLANNED", f"no partition was planned for the files of {directory[:200]!r}")
        return [pool for pool in pools if pool.pool == str(planned[directory])]

    def _incoming(self, reservation: Reservation, size_bytes: int, file_id: str, partial: str = "") -> Incoming:
        """Raises Unavailable(POOL_UNUSABLE), and then what was reserved is free again."""
        pool = self.pools.get(reservation.pool)
        if pool is None or any(self.pools.get(copy.pool) is None for copy in reservation.copies):
            self._ledger.release(reservation)
            raise Unavailable("POOL_UNUSABLE", "a pool went away just now; send the file again")
        place = file_id[:PLACE_DIGITS]
        copies = [
            self._incoming(copy, size_bytes, place + self._new_id()[PLACE_DIGITS:]) for copy in reservation.copies
        ]
        return Incoming(pool, file_id, size_bytes, partial, copies)

    async def _to_the_end(self, commit: Coroutine[Any, Any, T]) -> T:
        """Whoever waits for it may go away."""
        task = asyncio.create_task(commit)
        self._commits.add(task)
        task.add_done_callback(self._commits.discard)
        return await asyncio.shield(task)

    async def _take(self, pieces: Pieces, incoming: Incoming, reservation: Reservation) -> Checksums | None:
        """Write what arrives while more arrives; at most 2 * AHEAD_PIECES are in memory. Returns the sender's
        checksums."""
        overlap = Overlap(
            lambda batch: self._io(incoming.write, batch), lambda size_bytes: self._wrote(reservation, size_bytes)
        )
        try:
            while not isinstance(piece := await self._next(pieces), Checksums | None):
                await overlap.add(piece)
            await overlap.drain()
            return piece
        finally:
            overlap.abandon()

    def _wrote(self, reservation: Reservation, size_bytes: int) -> None:
        self._ledger.written(reservation, size_bytes)
        self.bytes_in += size_bytes

    async def _next(self, pieces: Pieces) -> Piece | Checksums | None:
        try:
            async with asyncio.timeout(self.config.stall_timeout_s):
                return await anext(pieces, None)
        except TimeoutError:
            raise DeadlineExceeded(
                "TRANSFER_STALLED",
                f"no data arrived for {self.config.stall_timeout_s:g} s; the upload was ended and nothing kept, send "
                f"it again",
            ) from None

    async def _drop(self, incoming: Incoming, reservation: Reservation, *, keep: bool = False) -> None:
        """Remove what arrived, or keep it for later, and give its space back; goes on in the thread even if we are
        cancelled once more."""
        dropping = self._io(incoming.keep if keep else incoming.discard)
        dropping.add_done_callback(lambda done: self._ledger.release(reservation))
        await asyncio.shield(dropping)

    async def _commit(
        self, announced: Announced, incoming: Incoming, reservation: Reservation, checksums: Checksums
    ) -> StoredFile:
        file = self._new_file(announced, incoming, checksums)
        try:
            await self._io(incoming.finish, lambda step: failpoints.reached(f"storage.put.{step}"))
            kept, replaced = await self._files.add(
                file, announced.path, announced.replaces, announced.reservation, _copies(file, incoming)
            )
        except BaseException:
            await self._drop(incoming, reservation)
            raise
        failpoints.reached("storage.put.committed")
        if kept is not file:
            await self._drop(incoming, reservation)
            require_same(kept, announced, checksums)
            return kept
        self._ledger.commit(reservation)
        self._io(incoming.settle)
        self._changed.set()
        await self._forget(replaced)
        return kept

    def _new_file(self, announced: Announced, incoming: Incoming, checksums: Checksums) -> StoredFile:
        return StoredFile(
            file_id=incoming.file_id,
            vo=announced.vo,
            size_bytes=announced.size_bytes,
            checksums=checksums,
            owner=announced.owner,
            put_id=announced.put_id,
            name_hint=announced.name_hint[:MAX_NAME_HINT_LENGTH],
            pool=incoming.pool.name,
            created_at_us=to_us(self._clock.now()),
            disk_id=incoming.file_id,
        )

    async def put_many(self, owner: str, files: Sequence[tuple[Announced, Piece]]) -> list[StoredFile | GridError]:
        """Keep small files of one owner whose bytes are here, synced together: what became of each, in order. Each is
        kept or refused by itself, as by `put`. Raises Exhausted(TOO_MANY_TRANSFERS), Unavailable: then none is kept
        for sure, and all may be sent again."""
        if self._stopping:
            raise _stopping()
        with self.admission.transfer(owner):
            return await self._to_the_end(self._put_many(owner, files))

    async def _put_many(self, owner: str, files: Sequence[tuple[Announced, Piece]]) -> list[StoredFile | GridError]:
        known = await self._files.by_puts(owner, [announced.put_id for announced, _ in files])
        for vo in {announced.vo for announced, _ in files} if self.make_room is not None else ():
            await self.make_room(vo, sum(announced.size_bytes for announced, _ in files))
        pools = await self.pools.writable()
        place = self._new_id()[:PLACE_DIGITS]
        outcomes: list[StoredFile | GridError | None] = []
        arrived: list[Arrived] = []
        for announced, data in files:
            try:
                check_announcement(announced)
                checksums = require_checksums(announced)
                if (existing := known.get(announced.put_id)) is not None:
                    require_same(existing, announced, checksums)
                    require_intact(existing)
                    outcomes.append(existing)
                    continue
                beside = arrived[-1].reservation.pool if arrived else ""
                allowed = self._for(announced, pools)
                reservation = self._ledger.reserve(announced.vo, announced.size_bytes, allowed, beside)
                reservation = self._ledger.mirror(reservation, allowed)
                incoming = self._incoming(reservation, announced.size_bytes, place + self._new_id()[PLACE_DIGITS:])
            except GridError as error:
                outcomes.append(error)
                continue
            arrived.append(Arrived(len(outcomes), announced, checksums, data, incoming, reservation))
            outcomes.append(None)
        try:
            await self._keep_together(arrived, outcomes)
        finally:
            await self._drop_all([(one.incoming, one.reservation) for one in arrived if one.reservation.open])
        return [outcome for outcome in outcomes if outcome is not None]

    async def _keep_together(self, arrived: Sequence[Arrived], outcomes: list[StoredFile | GridError | None]) -> None:
        """What became of each goes into `outcomes`; the reservations of those that are new here are committed."""
        refused = await self._io(
            write_together,
            [(one.incoming, one.data, one.checksums) for one in arrived],
            lambda step: failpoints.reached(f"storage.together.{step}"),
        )
        for one, error in zip(arrived, refused, strict=True):
            outcomes[one.number] = error
        whole = [one for one in arrived if outcomes[one.number] is None]
        new = [self._new_file(one.announced, one.incoming, one.checksums) for one in whole]
        copies = [copy for one, file in zip(whole, new, strict=True) for copy in _copies(file, one.incoming)]
        kept = await self._files.add_many(new, copies) if new else []
        failpoints.reached("storage.together.committed")
        for one, file, found in zip(whole, new, kept, strict=True):
            try:
                if found is file:
                    self._ledger.commit(one.reservation)
                    self.bytes_in += file.size_bytes
                else:
                    require_same(found, one.announced, one.checksums)
                outcomes[one.number] = found
            except GridError as error:
                outcomes[one.number] = error
        self._io(_settle_all, [one.incoming for one in whole if not one.reservation.open])
        self._changed.set()

    async def _drop_all(self, files: Sequence[tuple[Incoming, Reservation]]) -> None:
        for incoming, reservation in files:
            await self._drop(incoming, reservation)

    async def _repeat(self, existing: StoredFile, announced: Announced, source: Pieces | Continuable) -> StoredFile:
        """A put that was done before. Its bytes are not looked at again, only its checksums."""
        sent, pieces = announced.checksums, _pieces(source)
        while sent is None:
            piece = await self._next(pieces)
            if piece is None:
                raise checksums_missing()
            if isinstance(piece, Checksums):
                sent = piece
        require_same(existing, announced, sent)
        return existing

    # -- files out ---------------------------------------------------------------------------------------------------

    async def get(self, file_id: str, vo: str) -> StoredFile:
        """A file of this VO. Raises NotFound(FILE_NOT_FOUND)."""
        return self.of_vo(await self._files.get(file_id), file_id, vo)

    def of_vo(self, file: StoredFile | None, file_id: str, vo: str) -> StoredFile:
        """What was found, if it is a file of this VO. Raises NotFound(FILE_NOT_FOUND)."""
        if file is None or file.vo != vo:
            raise NotFound(
                "FILE_NOT_FOUND",
                f"there is no file {file_id} of VO {vo} here; ask the catalogue for its other replicas",
            )
        return file

    async def read(
        self, file: StoredFile, offset: int, size_bytes: int, made: Callable[[memoryview], bytes] | None = None
    ) -> AsyncGenerator[Piece, None]:
        """The bytes of a valid range, in views that end with the next, or what a thread has `made` of each piece. A
        removal or a move meanwhile does not disturb it. Close the iterator early if it is not used up. Raises
        DataCorrupted(FILE_LOST | FILE_DAMAGED), Unavailable(POOL_UNUSABLE)."""
        require_intact(file)
        end, tried, copy = offset + size_bytes, set[str](), file
        while True:
            descriptor, pool, copy = await self._open(copy, tried)
            try:
                async with contextlib.aclosing(self._read_copy(descriptor, pool, offset, end, made)) as batches:
                    async for read_bytes, pieces in batches:
                        for piece in pieces:
                            yield piece
                        offset += read_bytes
                return
            except DataCorrupted as error:
                await self.mark(copy, error.reason)
                copy = await self._untried(copy, tried, error)

    async def _read_copy(
        self, descriptor: int, pool: Pool, offset: int, end: int, made: Callable[[memoryview], bytes] | None
    ) -> AsyncGenerator[tuple[int, Sequence[Piece]]]:
        """One copy in batches: how many bytes of the file, and the pieces. Closes the descriptor."""
        pool.readers += 1
        read = PieceReader(descriptor, made).read if made is not None else BatchReader(descriptor).read
        reading: asyncio.Future[Sequence[Piece]] | None = None
        size = 0
        try:
            while offset < end or reading is not None:
                pieces, came = (await asyncio.shield(reading) if reading is not None else []), size
                reading = None
                if offset < end:
                    size = min(AHEAD_PIECES * PIECE_BYTES, end - offset)
                    reading = self._io(read, offset, size)
                    offset += size
                    self.bytes_out += size
                if pieces:
                    yield came, pieces
        finally:
            pool.readers -= 1
            if reading is None or reading.done():
                os.close(descriptor)
                if reading is not None and not reading.cancelled():
                    reading.exception()
            else:  # a thread still reads from it
                reading.add_done_callback(lambda done: (done.cancelled() or done.exception(), os.close(descriptor)))

    async def get_many(self, files: Sequence[StoredFile]) -> list[bytes | GridError]:
        """The bytes of small files, or why each cannot be read. Marks and finds moved files as `read`."""
        found: list[bytes | None] = await self._io(
            read_together, [(self.pools.get(file.pool), file.disk_id, file.size_bytes) for file in files]
        )
        self.bytes_out += sum(len(data) for data in found if data is not None)
        return [await self._read_one(file) if data is None else data for file, data in zip(files, found, strict=True)]

    async def _read_one(self, file: StoredFile) -> bytes | GridError:
        try:
            async with contextlib.aclosing(self.read(file, 0, file.size_bytes)) as pieces:
                return b"".join([bytes(piece) async for piece in pieces])
        except GridError as error:
            return error

    async def files(self, file_ids: Sequence[str]) -> dict[str, StoredFile]:
        """By id: those that are there."""
        return await self._files.get_many(file_ids)

    async def _open(self, copy: StoredFile, tried: set[str]) -> tuple[int, Pool, StoredFile]:
        """A descriptor for reading, its pool, and the copy that it is of: this one, or one that was not `tried` yet.
        Whoever looked the file up before it was moved finds it where it is now."""
        while True:
            tried.add(copy.disk_id)
            try:
                return *await self._open_here(copy), copy
            except (DataCorrupted, Unavailable) as error:
                if isinstance(error, DataCorrupted):
                    await self.mark(copy, error.reason)
                copy = await self._untried(copy, tried, error)

    async def _untried(self, copy: StoredFile, tried: set[str], error: GridError) -> StoredFile:
        """Another copy of a file of which those `tried` could not be read. Raises the last `error` if there is none."""
        for other in await self._files.copies(copy.file_id):
            if other.disk_id not in tried:
                require_intact(other)
                return other
        raise error

    async def _open_here(self, file: StoredFile) -> tuple[int, Pool]:
        if not file.pool:
            raise Unavailable(
                "FILE_NEARLINE", f"file {file.file_id} of VO {file.vo} is on tape; stage it with: grid data stage"
            )
        pool = self.pools.get(file.pool)
        if pool is None:
            raise Unavailable(
                "POOL_UNUSABLE",
                f"file {file.file_id} lies in pool {file.pool}, which cannot be used now; read another replica",
            )
        opening = self._io(pool.open, file.disk_id, file.size_bytes)
        try:
            return await asyncio.shield(opening), pool
        except asyncio.CancelledError:
            opening.add_done_callback(_close_result)
            raise

    async def at_rest(self, file: StoredFile, seen: Callable[[memoryview], object] = len) -> AsyncGenerator[memoryview]:
        """The bytes that are on the disk now, not what the kernel remembers of them, whatever is known of the file; in
        batches that end with the next, each piece `seen` by a thread. Raises as `read`, and marks nothing."""
        descriptor, _ = await self._open_here(file)
        reading: asyncio.Future[list[memoryview]] | None = None
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            read = BatchReader(descriptor, seen).read
            for offset in range(0, file.size_bytes, AHEAD_PIECES * PIECE_BYTES):
                reading = self._io(read, offset, min(AHEAD_PIECES * PIECE_BYTES, file.size_bytes - offset))
                for batch in await asyncio.shield(reading):
                    yield batch
        finally:
            if reading is not None and not reading.done():
                await asyncio.wait([reading])
                reading.exception()
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)

    # -- damage ------------------------------------------------------------------------------------------------------

    async def mark(self, file: StoredFile, damage: str) -> None:
        """Note that the bytes that `file` means are damaged or lost, or (empty) that they are not; if it has another
        copy, that takes their place. Nothing is noted while their disk does not answer: what is not mounted is not
        lost."""
        pool = self.pools.get(file.pool)
        if pool is None or await self._io(pool.measure) is None:
            return
        if damage and await self.drop_copy(file):
            self._log.audit(
                "storage.copy_dropped",
                file=file.file_id,
                vo=file.vo,
                name=file.name_hint,
                pool=file.pool,
                reason=damage,
            )
            self.copy_lost.ring()
            return
        if await self._files.mark(file, damage, to_us(self._clock.now())):
            self._log.audit(
                "storage.damage_found" if damage else "storage.damage_gone",
                file=file.file_id, vo=file.vo, name=file.name_hint, pool=file.pool, reason=damage or None,
            )  # fmt: skip
            self._changed.set()
            if damage:
                self.damage_found.ring()

    async def page(self, vo: str, after: str, limit: int, *, damaged: bool = False) -> list[StoredFile]:
        """Files of the VO in order of id, above `after`; or only those that are known to be `damaged`."""
        return await self._files.page(vo, after, limit, damaged)

    async def with_names(self, files: Sequence[StoredFile]) -> set[str]:
        """Ids of those that have a name here."""
        return await self._files.with_names([file.file_id for file in files])

    async def remove(self, file_id: str, vo: str, allowed: Callable[[StoredFile], None]) -> bool:
        """Forget a file and delete its bytes. False if it was gone already. `allowed` raises to refuse."""
        file = await self._files.get(file_id)
        if file is None or file.vo != vo:
            return False
        allowed(file)
        removal = asyncio.create_task(self._remove(file_id))
        return await asyncio.shield(removal)

    async def _remove(self, file_id: str) -> bool:
        copies = await self._files.remove(file_id)
        failpoints.reached("storage.remove.committed")
        await self._forget(copies)
        return bool(copies)

    async def _forget(self, copies: Sequence[StoredFile]) -> None:
        """The rows of a file are gone: give back the space, and the bytes to the disks."""
        if copies:
            self._ledger.removed(copies[0].vo, copies[0].size_bytes, copies[0].pool)
            await self._forget_copies(copies)

    async def _forget_copies(self, copies: Sequence[StoredFile]) -> None:
        """The main one, whose space was given back, and the others."""
        for copy in copies[1:]:
            self._ledger.left(copy.pool, copy.size_bytes)
        self._changed.set()
        for copy in copies:
            await self._erase(copy)

    async def _erase(self, file: StoredFile) -> None:
        """Bytes that no row means any more. What fails is done by `collect_garbage`."""
        pool = self.pools.get(file.pool)
        if pool is not None and await self._io(_try_remove, pool, file.disk_id):
            await self._files.collected([file.disk_id])

    # -- other bytes for a file --------------------------------------------------------------------------------------

    async def move(self, file: StoredFile) -> bool:
        """Put a copy of a file into a pool that has none, verified. Readers do not notice. False if it was removed,
        moved or repaired meanwhile. Raises DataCorrupted if the bytes are not what was put, Exhausted(DISK_FULL),
        Unavailable(TOO_FEW_POOLS | ...)."""
        return await self._renew_from_copies(file, more=False)

    async def add_copy(self, file: StoredFile) -> bool:
        """Make one more copy. False and raises as `move`."""
        return await self._renew_from_copies(file, more=True)

    async def _renew_from_copies(self, file: StoredFile, *, more: bool) -> bool:
        """From the copy that `file` means; where its bytes cannot be read or are not what was put, from another."""
        copies = [copy for copy in await self._files.copies(file.file_id) if copy.pool]
        taken, failure = {copy.pool for copy in copies}, None
        for source in sorted(copies, key=lambda copy: copy.disk_id != file.disk_id):

            async def fill(incoming: Incoming, reservation: Reservation, source: StoredFile = source) -> None:
                async with contextlib.aclosing(self.at_rest(source)) as batches:
                    await self._write(batches, incoming, reservation)

            try:
                return await self._renew(file, taken, fill, more=more)
            except Unavailable as error:
                failure = error
            except DataCorrupted as error:
                if source.disk_id in {copy.disk_id for copy in await self._files.copies(file.file_id)}:
                    await self.mark(source, "FILE_LOST" if error.reason == "FILE_LOST" else "FILE_DAMAGED")
                    failure = error
        if failure is not None:
            raise failure
        return False

    async def drop_copy(self, copy: StoredFile, at_least: int = 1) -> bool:
        """Give the room of a copy back. False if it is gone, or the file would have fewer than `at_least` others."""
        return await self._to_the_end(self._drop_copy(copy, at_least))

    async def _drop_copy(self, copy: StoredFile, at_least: int) -> bool:
        if not await self._files.drop_copy(copy, at_least):
            return False
        failpoints.reached("storage.drop.committed")
        self._ledger.left(copy.pool, copy.size_bytes)
        self._changed.set()
        await self._erase(copy)
        return True

    async def expect(self, file: StoredFile) -> bool:
        """Have a file again whose row was lost with its bytes: it is damaged until they come (`repair`). False if it is
        here, or there is no room for it."""
        if not await self.has_room(file.vo, file.size_bytes) or not await self._files.expect(file):
            return False
        self._ledger.expected(file.vo)
        self._changed.set()
        self.damage_found.ring()
        return True

    async def repair(self, file: StoredFile, pieces: Pieces) -> bool:
        """Give a file bytes that come from elsewhere, if they are what was put, and take its mark away. False as
        `move`. Raises DataCorrupted(CHECKSUM_MISMATCH), InvalidRequest(SIZE_MISMATCH), Exhausted(DISK_FULL),
        Unavailable."""

        async def fill(incoming: Incoming, reservation: Reservation) -> None:
            await self._take(pieces, incoming, reservation)

        return await self._fill(file, fill)

    async def stage(self, file: StoredFile, batches: AsyncIterator[memoryview]) -> bool:
        """Give a file that has left the disk its bytes back, from tape. False as `move`. Raises as `repair`."""

        async def fill(incoming: Incoming, reservation: Reservation) -> None:
            await self._write(batches, incoming, reservation)

        return await self._fill(file, fill)

    async def _fill(self, file: StoredFile, fill: Callable[[Incoming, Reservation], Awaitable[None]]) -> bool:
        """Bytes from elsewhere, in any pool that has no other copy. False if it was removed, moved or repaired."""
        copies = await self._files.copies(file.file_id)
        others = {copy.pool for copy in copies if copy.disk_id != file.disk_id}
        return len(others) < len(copies) and await self._renew(file, others, fill)

    async def _write(self, batches: AsyncIterator[memoryview], incoming: Incoming, reservation: Reservation) -> None:
        async for batch in batches:
            self._ledger.written(reservation, await self._io(incoming.write, [batch]))

    async def purge(self, file: StoredFile) -> bool:
        """Let a file leave the disk. False if it may not: no verified tape copy, pinned, wanted, or changed
        meanwhile."""
        return await self._to_the_end(self._purge(file))

    async def _purge(self, file: StoredFile) -> bool:
        copies = await self._files.purge(file, to_us(self._clock.now()))
        if not copies:
            return False
        failpoints.reached("storage.purge.committed")
        self._ledger.purged(file.vo, file.size_bytes, file.pool)
        await self._forget_copies(copies)
        return True

    async def _renew(
        self,
        file: StoredFile,
        taken: Collection[str],
        fill: Callable[[Incoming, Reservation], Awaitable[None]],
        *,
        more: bool = False,
    ) -> bool:
        """Other bytes for the copy that `file` means, or those of one `more`; not in the pools that are `taken`."""
        if self._stopping:
            raise _stopping()
        reservation = self._ledger.place(file.vo, file.size_bytes, await self.pools.writable(), taken)
        incoming = self._incoming(reservation, file.size_bytes, self._new_id())
        try:
            await self._io(incoming.begin)
            await fill(incoming, reservation)
            incoming.verify_size()
            require_equal(f"file {file.file_id}", file.size_bytes, incoming.hasher.checksums(), file.checksums)
        except BaseException:
            await self._drop(incoming, reservation)
            raise
        return await self._to_the_end(self._commit_renewal(file, incoming, reservation, more=more))

    async def _commit_renewal(
        self, file: StoredFile, incoming: Incoming, reservation: Reservation, *, more: bool
    ) -> bool:
        try:
            await self._io(incoming.finish, lambda step: failpoints.reached(f"storage.renew.{step}"))
            if more:
                done = await self._files.add_copy(_copy(file, incoming))
            else:
                done = await self._files.relocate(file, incoming.pool.name, incoming.file_id) is not None
        except BaseException:
            await self._drop(incoming, reservation)
            raise
        failpoints.reached("storage.renew.committed")
        if not done:
            await self._drop(incoming, reservation)
            return False
        self._ledger.commit(reservation)
        self._io(incoming.settle)
        self._changed.set()
        if more:
            return True
        if file.pool:
            self._ledger.left(file.pool, file.size_bytes)
        else:
            self._ledger.staged(file.vo, file.size_bytes)
        await self._erase(file)
        return True

    # -- names -------------------------------------------------------------------------------------------------------

    async def find(self, vo: str, path: tuple[str, ...]) -> Entry:
        """What has this name; the VO's own directory has the empty path. Raises NotFound(NAME_NOT_FOUND)."""
        found = await self._files.find(vo, path)
        if found is None:
            raise not_found(vo, path)
        return found

    async def entries(self, vo: str, path: tuple[str, ...], after: str, limit: int) -> list[Entry]:
        """A page of a directory in order of name, above `after`."""
        return await self._files.entries(vo, path, after, limit)

    async def make_directory(self, vo: str, path: tuple[str, ...]) -> None:
        """Raises AlreadyExists(NAME_EXISTS), Conflict(PARENT_MISSING), InvalidRequest(NAME_INVALID)."""
        await self._files.make_directory(vo, path, to_us(self._clock.now()))

    async def remove_directory(self, vo: str, path: tuple[str, ...]) -> None:
        """An empty one. Raises NotFound(NAME_NOT_FOUND), Conflict(DIRECTORY_NOT_EMPTY)."""
        await self._files.remove_directory(vo, path)

    async def rename(self, vo: str, source: tuple[str, ...], target: tuple[str, ...], replaces: str = "") -> None:
        """Move a name, and everything below it; the file `replaces` gives its name up and goes. Raises NotFound,
        AlreadyExists, Conflict(NAME_TAKEN | PARENT_MISSING | MOVE_INTO_ITSELF)."""

        async def rename() -> None:
            replaced = await self._files.rename(vo, source, target, replaces, to_us(self._clock.now()))
            await self._forget(replaced)

        await asyncio.shield(asyncio.create_task(rename()))

    # -- space -------------------------------------------------------------------------------------------------------

    def vos(self) -> list[str]:
        """VOs that have or had something here, in order."""
        return self._ledger.vos()

    def uploads_to(self, pool: str) -> int:
        """How many files are on their way to this pool."""
        return self._ledger.uploads_to(pool)

    def bounded(self, pool: PoolFree) -> PoolFree:
        """A measured pool, or the part of its disk that it may use (`pool_bytes`)."""
        return self._ledger.bounded(pool)

    def room_bytes(self, pools: Sequence[PoolFree]) -> int:
        """What could be written to these pools in all."""
        return self._ledger.room_bytes(pools)

    async def has_room(self, vo: str, size_bytes: int) -> bool:
        """Whether the VO could write so much now, to all disks together."""
        return self._ledger.available_bytes(vo, await self.pools.writable()) >= size_bytes

    async def space(self, vos: tuple[str, ...] = ()) -> SpaceReport:
        """Disks and VOs: those with files and `vos`."""
        pools = await self.pools.measure()
        writable = [pool for pool in pools if self.pools.state_of(pool.pool) is PoolState.OPEN]
        by_device = {pool.device if self.config.pool_bytes is None else pool.pool: self.bounded(pool) for pool in pools}
        shares = tuple(
            (self._ledger.use_of(vo), self._ledger.available_bytes(vo, writable))
            for vo in sorted(set(vos) | set(self._ledger.vos()))
        )
        return SpaceReport(
            total_bytes=sum(pool.total_bytes for pool in by_device.values()),
            free_bytes=sum(pool.free_bytes for pool in by_device.values()),
            stored_bytes=self._ledger.stored_bytes,
            vos=shares,
        )

    async def wait_for_change(self, timeout_s: float, settle_s: float) -> None:
        """Until a file came or went, and `settle_s` more; at most `timeout_s` and `settle_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return
        await asyncio.sleep(settle_s)
        self._changed.clear()

    def _io(self, function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, function, *args)


def _copy(file: StoredFile, incoming: Incoming) -> StoredFile:
    return replace(file, pool=incoming.pool.name, disk_id=incoming.file_id)


def _copies(file: StoredFile, incoming: Incoming) -> list[StoredFile]:
    """The further ones that came with the main one."""
    return [_copy(file, copy) for copy in incoming.copies]


def _pieces(source: Pieces | Continuable) -> Pieces:
    return source if isinstance(source, AsyncIterator) else source.pieces()


def _broke_off(error: BaseException) -> bool:
    """It ended without a fault of what came: the caller, the network, or one of the two ends went away."""
    reason = error.reason if isinstance(error, GridError) else ""
    gone = (asyncio.CancelledError, Unavailable, DeadlineExceeded)
    return reason != "POOL_UNUSABLE" and (isinstance(error, gone) or reason == "STREAM_CUT")


def _stopping() -> Unavailable:
    return Unavailable(
        "SERVER_STOPPING", "the storage element is stopping; send the file again when it is up", retry_after_s=1
    )


def _try_remove(pool: Pool, file_id: str) -> bool:
    try:
        pool.remove(file_id)
    except OSError:
        return False
    return True


def _close_result(opening: asyncio.Future[int]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result())


def _settle_all(files: Sequence[Incoming]) -> None:
    for incoming in files:
        incoming.settle()
