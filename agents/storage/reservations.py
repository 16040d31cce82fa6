"""Space that a VO has booked for files to come (SRM's reserve): held in one pool, counted against the quota, taken by
puts that name it, and free again when it is released or its time is over.

```
 ReserveSpace ─► row, bytes held ──(a put that names it)──► the put's ──(kept: in its transaction)──► row has less
                     │                                        └──(came to nothing)──► held again
                     └──(released, or its time over)──► free for all
```

The row is durable; what is held is booked again at a start, and given up if the pool has no such room any more.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import sqlalchemy as sa

from agents.storage.namespace import metadata
from agents.storage.space import Ledger, Reservation
from fabric.clock import Clock, to_us
from fabric.errors import Conflict, Exhausted, GridError, InvalidRequest, NotFound
from fabric.logs import Logger
from fabric.store import Store

MAX_LIFETIME_S = 7 * 86400.0
MAX_OF_OWNER = 16
"""Reservations of one user."""
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")

space_reservations = sa.Table(
    "space_reservations",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("vo", sa.Text, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("pool", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("until_us", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)


@dataclass(frozen=True, slots=True)
class SpaceReservation:
    """What is left of a reservation: no put has taken it."""

    id: str
    vo: str
    owner: str
    pool: str
    size_bytes: int
    until_us: int


@dataclass(slots=True)
class _Held:
    kept: SpaceReservation
    booked: Reservation


def spend(connection: sa.Connection, reservation_id: str, size_bytes: int) -> None:
    """In the transaction that makes a file of it exist."""
    connection.exec_driver_sql(
        "UPDATE space_reservations SET size_bytes = size_bytes - ? WHERE id = ?", (size_bytes, reservation_id)
    )


class Reservations:
    """All reservations of one element. `book` holds bytes of a VO in a pool, or (empty) in the best."""

    def __init__(
        self,
        store: Store,
        ledger: Callable[[], Ledger],
        book: Callable[[str, int, str], Awaitable[Reservation]],
        clock: Clock,
        log: Logger,
    ) -> None:
        self._store, self._ledger, self._book, self._clock, self._log = store, ledger, book, clock, log
        self._held: dict[str, _Held] = {}

    async def start(self) -> None:
        """Book again what was reserved."""

        def read(connection: sa.Connection) -> list[SpaceReservation]:
            rows = connection.exec_driver_sql(
                "SELECT id, vo, owner, pool, size_bytes, until_us FROM space_reservations ORDER BY id"
            )
            return [SpaceReservation(*row) for row in rows]

        for kept in await self._store.read(read):
            if kept.until_us <= to_us(self._clock.now()):
                await self._forget(kept.id)
                continue
            try:
                booked = await self._book(kept.vo, kept.size_bytes, kept.pool)
            except GridError as error:
                self._log.warning("storage.reservation_lost", id=kept.id, vo=kept.vo, sentence=error.sentence)
                await self._forget(kept.id)
                continue
            self._held[kept.id] = _Held(kept, booked)

    async def reserve(
        self, reservation_id: str, vo: str, owner: str, size_bytes: int, lifetime_s: float
    ) -> SpaceReservation:
        """Hold bytes for files to come, in one pool. The same id again says what is left. Raises InvalidRequest(
        RESERVATION_INVALID), Conflict(RESERVATION_TAKEN), Exhausted(TOO_MANY_RESERVATIONS | QUOTA_EXCEEDED |
        DISK_FULL), Unavailable(NO_POOL)."""
        if not _ID.match(reservation_id) or size_bytes <= 0 or not 0 < lifetime_s <= MAX_LIFETIME_S:
            raise InvalidRequest(
                "RESERVATION_INVALID",
                "a reservation has an id of 1 to 64 letters, digits, - or _, bytes above 0, and a lifetime of at most "
                f"{MAX_LIFETIME_S:g} s",
            )
        await self.end_expired()
        if (held := self._held.get(reservation_id)) is not None:
            if (held.kept.vo, held.kept.owner) != (vo, owner):
                raise Conflict("RESERVATION_TAKEN", f"{reservation_id} is another's reservation; choose another id")
            return _left(held)
        if sum(each.kept.owner == owner for each in self._held.values()) >= MAX_OF_OWNER:
            raise Exhausted(
                "TOO_MANY_RESERVATIONS", f"{owner} has {MAX_OF_OWNER} reservations here; release one", retry_after_s=60
            )
        booked = await self._book(vo, size_bytes, "")
        until_us = to_us(self._clock.now()) + int(lifetime_s * 1e6)
        kept = SpaceReservation(reservation_id, vo, owner, booked.pool, size_bytes, until_us)

        def write(connection: sa.Connection) -> bool:
            done = connection.exec_driver_sql(
                "INSERT INTO space_reservations (id, vo, owner, pool, size_bytes, until_us) VALUES (?,?,?,?,?,?) "
                "ON CONFLICT DO NOTHING",
                (kept.id, kept.vo, kept.owner, kept.pool, kept.size_bytes, kept.until_us),
            )
            return bool(done.rowcount)

        try:
            if not await self._store.write(write):  # by a call at the same moment
                raise Conflict("RESERVATION_TAKEN", f"{reservation_id} was reserved just now; ask again")
        except BaseException:
            self._ledger().release(booked)
            raise
        self._held[kept.id] = _Held(kept, booked)
        return kept

    def take(self, reservation_id: str, vo: str, size_bytes: int) -> Reservation:
        """Of what a VO holds, bytes for one put. Raises NotFound(RESERVATION_UNKNOWN), Exhausted(
        RESERVATION_EXCEEDED)."""
        held = self._held.get(reservation_id)
        if held is None or held.kept.vo != vo or held.kept.until_us <= to_us(self._clock.now()):
            raise NotFound(
                "RESERVATION_UNKNOWN",
                f"VO {vo} has no reservation {reservation_id[:64]!r} here, or its time is over; reserve again, or put "
                "without one",
            )
        if size_bytes > held.booked.size_bytes:
            raise Exhausted(
                "RESERVATION_EXCEEDED",
                f"{size_bytes} bytes do not fit into reservation {reservation_id}, which has {held.booked.size_bytes} "
                "left; reserve more, or put without it",
                announced_bytes=size_bytes,
                available_bytes=held.booked.size_bytes,
            )
        return self._ledger().take(held.booked, size_bytes)

    async def release(self, reservation_id: str, vo: str) -> None:
        """What no put has taken is free. Again, or another VO's: nothing."""
        held = self._held.get(reservation_id)
        if held is not None and held.kept.vo == vo:
            del self._held[reservation_id]
            self._ledger().release(held.booked)
            await self._forget(reservation_id)

    async def end_expired(self) -> None:
        """Release those whose time is over."""
        now_us = to_us(self._clock.now())
        for held in [each for each in self._held.values() if each.kept.until_us <= now_us]:
            await self.release(held.kept.id, held.kept.vo)

    async def _forget(self, reservation_id: str) -> None:
        await self._store.write(
            lambda connection: connection.exec_driver_sql(
                "DELETE FROM space_reservations WHERE id = ?", (reservation_id,)
            )
        )


def _left(held: _Held) -> SpaceReservation:
    return replace(held.kept, size_bytes=held.booked.size_bytes)
