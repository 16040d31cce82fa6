"""Who may still write how much, and where: pure book-keeping, fed with measurements of the disks.

A sender announces a size; it is booked against the VO's quota and against one pool before the first byte, so an upload
never fails half-way for lack of space that somebody else took here meanwhile. What other programs write to the same
disk cannot be booked: the reserve kept back is for them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fabric.errors import Exhausted, GridError, Unavailable

RETRY_AFTER_S = 60
"""Space does not come back sooner than somebody removes a file."""


@dataclass(frozen=True, slots=True)
class PoolFree:
    """One measurement. Pools on one device share its free bytes."""

    pool: str
    device: int
    free_bytes: int
    total_bytes: int
    readers: int = 0
    """Files of it that are being read."""


@dataclass(slots=True, eq=False)
class Reservation:
    """Space held for one upload. `unwritten_bytes` of it are not on disk yet, so the disk still shows them as free."""

    vo: str
    size_bytes: int
    pool: str
    device: int
    unwritten_bytes: int
    counted: bool = True
    """Whether it counts against the quota: not what is moved or repaired, which is used space already."""
    open: bool = True
    source: Reservation | None = None
    """What it was taken from, and goes back to if nothing comes of it."""
    copies: tuple[Reservation, ...] = ()
    """Of further copies, which share its fate."""


@dataclass(frozen=True, slots=True)
class VoUse:
    """A VO's part of the storage element: bytes on disk, files wherever they are."""

    vo: str
    quota_bytes: int | None
    used_bytes: int
    reserved_bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class SpaceReport:
    """Disks and VOs at one moment."""

    total_bytes: int
    free_bytes: int
    stored_bytes: int
    """Of all copies of all files; a file that has several counts once for its VO."""
    vos: tuple[tuple[VoUse, int], ...]
    """Each VO with the bytes that it could write now."""


class Ledger:
    """Used and reserved bytes by VO; unwritten bytes by device. Invariant: used + reserved <= quota at each reservation
    (a quota lowered later only stops new ones), and no booking is released twice."""

    def __init__(
        self,
        quota_of: Callable[[str], int | None],
        reserve_bytes: int,
        used: Mapping[str, tuple[int, int]] | None = None,
        *,
        copies_of: Callable[[str], int] = lambda vo: 1,
        pool_bytes: int | None = None,
        in_pools: Mapping[str, int] | None = None,
    ) -> None:
        """`used`: VO -> (bytes, files) that are there already; `in_pools`: pool -> bytes of them. `pool_bytes`: what
        one pool may hold. `copies_of`: in how many pools a VO's file lies."""
        self._copies_of = copies_of
        self.stored_bytes = sum((in_pools or {}).values())
        """Of all copies of all files."""
        self._quota_of = quota_of
        self._reserve_bytes = reserve_bytes
        self._pool_bytes = pool_bytes
        self._in_pool: defaultdict[str, int] = defaultdict(int, in_pools or {})
        """Used and reserved."""
        self._used: defaultdict[str, int] = defaultdict(int)
        self._files: defaultdict[str, int] = defaultdict(int)
        self._reserved: defaultdict[str, int] = defaultdict(int)
        self._unwritten: defaultdict[int, int] = defaultdict(int)
        self._uploads: defaultdict[str, int] = defaultdict(int)
        for vo, (size_bytes, files) in (used or {}).items():
            self._used[vo] = size_bytes
            self._files[vo] = files

    def reserve(self, vo: str, size_bytes: int, pools: Sequence[PoolFree], beside: str = "") -> Reservation:
        """Book `size_bytes` in the pool with most room for its load, or in the pool `beside` if that has room. Raises
        Exhausted(QUOTA_EXCEEDED | DISK_FULL) with the numbers, Unavailable(NO_POOL) if no pool could be measured."""
        quota = self._quota_of(vo)
        used, reserved = self._used[vo], self._reserved[vo]
        if quota is not None and used + reserved + size_bytes > quota:
            raise Exhausted(
                "QUOTA_EXCEEDED",
                f"{size_bytes} bytes do not fit into the quota of VO {vo} here: {quota} bytes, of which {used} are "
                f"used and "
                f"{reserved} reserved; remove files or choose another storage element",
                vo=vo,
                announced_bytes=size_bytes,
                quota_bytes=quota,
                used_bytes=used,
                reserved_bytes=reserved,
                retry_after_s=RETRY_AFTER_S,
            )
        reservation = self._book(vo, size_bytes, pools, beside)
        self._reserved[vo] += size_bytes
        return reservation

    def place(self, vo: str, size_bytes: int, pools: Sequence[PoolFree], taken: Collection[str] = ()) -> Reservation:
        """Book room for other bytes of a file that is there, in none of the pools that are `taken` by its other copies,
        and on another disk than those where one has room. Raises as `reserve`, but for the quota;
        Unavailable(TOO_FEW_POOLS)."""
        others = [pool for pool in pools if pool.pool not in taken]
        if taken and not others:
            raise Unavailable(
                "TOO_FEW_POOLS",
                f"a file has its copies in different pools: {len(taken)} have one, and no other pool can take one now; "
                "add a pool, or look at the disks",
                retry_after_s=RETRY_AFTER_S,
            )
        devices = {pool.device for pool in pools if pool.pool in taken}
        apart = [pool for pool in others if pool.device not in devices and self._room(pool) >= size_bytes]
        reservation = self._book(vo, size_bytes, apart or others)
        reservation.counted = False
        return reservation

    def mirror(self, first: Reservation, pools: Sequence[PoolFree]) -> Reservation:
        """Book the further copies of a file of its VO beside the first; if they do not fit, that is released. Raises as
        `place`."""
        try:
            while 1 + len(first.copies) < self._copies_of(first.vo):
                taken = {first.pool, *(copy.pool for copy in first.copies)}
                first.copies += (self.place(first.vo, first.size_bytes, pools, taken),)
        except GridError:
            self.release(first)
            raise
        return first

    def take(self, held: Reservation, size_bytes: int) -> Reservation:
        """For one put, a part of what is held for several; not more than that."""
        held.size_bytes -= size_bytes
        held.unwritten_bytes -= size_bytes
        self._uploads[held.pool] += 1
        return Reservation(held.vo, size_bytes, held.pool, held.device, size_bytes, source=held)

    def _give_back(self, held: Reservation, size_bytes: int) -> None:
        held.size_bytes += size_bytes
        held.unwritten_bytes += size_bytes
        self._unwritten[held.device] += size_bytes
        self._reserved[held.vo] += size_bytes
        self._in_pool[held.pool] += size_bytes

    def _book(self, vo: str, size_bytes: int, pools: Sequence[PoolFree], beside: str = "") -> Reservation:
        if not pools:
            raise Unavailable(
                "NO_POOL",
                "no disk of this storage element can be used now; files cannot be written",
                retry_after_s=RETRY_AFTER_S,
            )
        rooms = {pool.pool: self._room(pool) for pool in pools}
        large_enough = [pool for pool in pools if rooms[pool.pool] >= size_bytes]
        if not large_enough:
            room = max(0, *rooms.values())
            raise Exhausted(
                "DISK_FULL",
                f"{size_bytes} bytes do not fit on the disks here: {room} bytes are free for new files "
                f"({self._reserve_bytes} are kept back); choose another storage element or try later",
                vo=vo,
                announced_bytes=size_bytes,
                available_bytes=room,
                reserve_bytes=self._reserve_bytes,
                retry_after_s=RETRY_AFTER_S,
            )

        def fitness(pool: PoolFree) -> tuple[bool, float, str]:
            load = self._uploads[pool.pool] + pool.readers
            return pool.pool == beside, rooms[pool.pool] / (1 + load), pool.pool

        chosen = max(large_enough, key=fitness)
        self._unwritten[chosen.device] += size_bytes
        self._in_pool[chosen.pool] += size_bytes
        self._uploads[chosen.pool] += 1
        return Reservation(vo, size_bytes, chosen.pool, chosen.device, size_bytes)

    def _room(self, pool: PoolFree) -> int:
        """For new files, below 0 where the reserve is touched."""
        room = pool.free_bytes - self._unwritten[pool.device] - self._reserve_bytes
        return room if self._pool_bytes is None else min(room, self._pool_bytes - self._in_pool[pool.pool])

    def bounded(self, pool: PoolFree) -> PoolFree:
        """A measurement as it is where a pool is less than its disk: the disk's numbers, or those of the bound."""
        if self._pool_bytes is None:
            return pool
        free_bytes = max(0, min(pool.free_bytes, self._pool_bytes - self._in_pool[pool.pool]))
        return replace(pool, free_bytes=free_bytes, total_bytes=min(pool.total_bytes, self._pool_bytes))

    def written(self, reservation: Reservation, size_bytes: int) -> None:
        """`size_bytes` more are on disk, and so no longer counted as free by the next measurement."""
        for copy in reservation.copies:
            self.written(copy, size_bytes)
        size_bytes = min(size_bytes, reservation.unwritten_bytes)
        if reservation.open:
            reservation.unwritten_bytes -= size_bytes
            self._unwritten[reservation.device] -= size_bytes

    def commit(self, reservation: Reservation) -> None:
        """The file is there, or has these bytes now: reserved becomes used."""
        if not reservation.open:
            return
        for copy in reservation.copies:
            self.commit(copy)
        reservation.source = None
        self.release(reservation)
        self._in_pool[reservation.pool] += reservation.size_bytes
        self.stored_bytes += reservation.size_bytes
        if reservation.counted:
            self._used[reservation.vo] += reservation.size_bytes
            self._files[reservation.vo] += 1

    def release(self, reservation: Reservation) -> None:
        """Nothing came of it. May be called again."""
        for copy in reservation.copies:
            self.release(copy)
        if reservation.open:
            self.written(reservation, reservation.unwritten_bytes)
            if reservation.counted:
                self._reserved[reservation.vo] -= reservation.size_bytes
            self._uploads[reservation.pool] -= 1
            self._in_pool[reservation.pool] -= reservation.size_bytes
            reservation.open = False
            if reservation.source is not None and reservation.source.open:
                self._give_back(reservation.source, reservation.size_bytes)

    def expected(self, vo: str) -> None:
        """A file without bytes is there, to which they will come."""
        self._files[vo] += 1

    def removed(self, vo: str, size_bytes: int, pool: str) -> None:
        """A file is gone; from the disk alone if it had left that before (`pool` is empty then)."""
        self._files[vo] -= 1
        if pool:
            self.purged(vo, size_bytes, pool)

    def purged(self, vo: str, size_bytes: int, pool: str) -> None:
        """A file has left the disk and is still a file."""
        self._used[vo] -= size_bytes
        self.left(pool, size_bytes)

    def left(self, pool: str, size_bytes: int) -> None:
        """Bytes of a file are no longer in this pool; others are elsewhere."""
        self._in_pool[pool] -= size_bytes
        self.stored_bytes -= size_bytes

    def staged(self, vo: str, size_bytes: int) -> None:
        """It is on disk again."""
        self._used[vo] += size_bytes

    def use_of(self, vo: str) -> VoUse:
        """A VO's part."""
        return VoUse(vo, self._quota_of(vo), self._used[vo], self._reserved[vo], self._files[vo])

    def vos(self) -> list[str]:
        """VOs that have or had something here, in order."""
        return sorted(set(self._used) | set(self._reserved))

    def uploads_to(self, pool: str) -> int:
        """Bookings in this pool that are neither files yet nor given up."""
        return self._uploads[pool]

    def room_bytes(self, pools: Iterable[PoolFree]) -> int:
        """What could be written to these pools in all."""
        devices: defaultdict[int, int] = defaultdict(int)
        limits: dict[int, int] = {}
        for pool in pools:
            limits[pool.device] = pool.free_bytes - self._unwritten[pool.device] - self._reserve_bytes
            devices[pool.device] += max(self._room(pool), 0)
        return sum(max(min(room, limits[device]), 0) for device, room in devices.items())

    def available_bytes(self, vo: str, pools: Sequence[PoolFree]) -> int:
        """What `vo` could write now in all: limited by its quota and by all disks together, each device counted once,
        and each file as often as it has copies."""
        room, copies = self.room_bytes(pools), self._copies_of(vo)
        if copies > 1:
            rooms = sorted((max(self._room(pool), 0) for pool in pools), reverse=True)
            # k pools that have more room than all copies together need take one copy of everything each
            room = min([room // copies, *(sum(rooms[k:]) // (copies - k) for k in range(copies))])
        quota = self._quota_of(vo)
        if quota is None:
            return room
        return max(min(room, quota - self._used[vo] - self._reserved[vo]), 0)
