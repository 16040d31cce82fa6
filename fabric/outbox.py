"""Messages to another service that are sent at least once, because they are stored with the change that they tell of.

`add` runs inside the agent's own transaction: either the change and its messages are kept, or neither. A sender
delivers in order of sequence, batch by batch, and forgets what was acknowledged. Receivers ignore a (source,
sequence) seen before.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import sqlalchemy

from fabric import failpoints
from fabric.errors import Exhausted, GridError, InvalidRequest
from fabric.logs import Logger, null_logger
from fabric.pace import Pace
from fabric.store import Store

MAX_BATCH = 1_000
"""Messages in one delivery."""
MAX_BATCH_BYTES = 1024 * 1024
"""Payload in one delivery; one larger message goes alone."""
MAX_WAITING = 2_000_000
"""Messages kept while the receiver is away: days of a busy agent. Beyond, `add` refuses and so the change is not
made."""
MAX_PAUSE_S = 5.0
"""Longest pause between attempts."""
FIRST_PAUSE_S = 0.1
MAX_GATHER_S = 0.2
"""Messages this close together are delivered together, when many come."""

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,40}\Z")


@dataclass(frozen=True, slots=True)
class OutboxItem:
    """One message. (`source`, `sequence`) is never used for another one."""

    source: str
    sequence: int
    payload: bytes


Deliver = Callable[[Sequence[OutboxItem]], Awaitable[object]]
"""Returns when the receiver has stored all of them. Raises GridError when not: then all are sent again later."""


class Outbox:
    """Messages of one agent to one receiver. Several outboxes of one store have different names.

    Sequences begin at the microsecond of the outbox's making and grow by one: an agent whose disk was lost begins anew
    above everything it ever sent, so no receiver takes its new messages for old ones.
    """

    def __init__(self, store: Store, source: str, *, name: str = "outbox", log: Logger | None = None) -> None:
        """Makes its tables in the store when they are not there. Raises as `Store.write`."""
        if not _NAME.match(name):
            raise ValueError(f"the name of an outbox is a lower-case identifier, not {name!r}")
        self._store, self.source, self._name, self._log = store, source, name, log or null_logger()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()
        self._empty = asyncio.Event()
        self._poison = False
        self._pace = Pace(0.0, MAX_GATHER_S)
        self.last_error: GridError | None = None
        """Why the last delivery failed; None after a good one."""
        self.delivered = 0
        """Messages acknowledged since start."""
        self._waiting = self._store.write_sync(self._prepare)

    def _prepare(self, connection: sqlalchemy.Connection) -> int:
        for table in (self._name, f"{self._name}_refused"):
            connection.exec_driver_sql(
                f"CREATE TABLE IF NOT EXISTS {table} (sequence INTEGER PRIMARY KEY AUTOINCREMENT, payload BLOB "
                f"NOT NULL)"
            )
        known = connection.exec_driver_sql("SELECT seq FROM sqlite_sequence WHERE name = ?", (self._name,)).scalar()
        if known is None:
            start = time.time_ns() // 1000
            connection.exec_driver_sql("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (self._name, start))
        return int(connection.exec_driver_sql(f"SELECT count(*) FROM {self._name}").scalar_one())

    @property
    def waiting(self) -> int:
        """About how many messages are not acknowledged yet."""
        return max(0, self._waiting)

    def add(self, connection: sqlalchemy.Connection, payloads: Sequence[bytes]) -> None:
        """Store messages in the transaction of a write function. Raises Exhausted OUTBOX_FULL."""
        if not payloads:
            return
        if self._waiting + len(payloads) > MAX_WAITING:
            raise Exhausted(
                "OUTBOX_FULL",
                f"{self._waiting} messages of {self.source} wait for a receiver that does not answer; try again later",
                retry_after_s=10,
            )
        connection.exec_driver_sql(
            f"INSERT INTO {self._name} (payload) VALUES (?)", [(bytes(payload),) for payload in payloads]
        )
        self._waiting += len(payloads)
        self._store.after_commit(self._wake)

    def _wake(self) -> None:
        loop = self._loop
        if loop is None or self._news.is_set():
            return
        try:
            loop.call_soon_threadsafe(self._news.set)
        except RuntimeError:
            pass  # the loop is gone: the next start sends what is left

    async def run(self, deliver: Deliver) -> None:
        """Deliver for ever; one such task for each outbox. Ends only by cancellation."""
        self._loop = asyncio.get_running_loop()
        pause_s = FIRST_PAUSE_S
        batch: Sequence[OutboxItem] = ()
        while True:
            if len(batch) < MAX_BATCH:
                await self._pace.gather()
            self._news.clear()
            batch = await self._store.read(self._next)
            self._pace.took(len(batch))
            if not batch:
                self._waiting = 0 if not self._news.is_set() else self._waiting
                self._empty.set()
                await self._news.wait()
                continue
            self._empty.clear()
            try:
                await deliver(batch)
            except InvalidRequest as error:
                await self._refused(batch, error)
                continue
            except GridError as error:
                if self.last_error is None or self.last_error.reason != error.reason:
                    self._log.warning("outbox.waits", outbox=self._name, waiting=self.waiting, sentence=error.sentence)
                self.last_error = error
                await asyncio.sleep(error.retry_after_s or pause_s * random.uniform(0.5, 1.0))
                pause_s = min(MAX_PAUSE_S, pause_s * 2)
                continue
            failpoints.reached("outbox.delivered")
            await self._forget(batch)
            pause_s, self._poison, self.last_error = FIRST_PAUSE_S, False, None

    async def drained(self) -> None:
        """Wait until everything was acknowledged. The caller gives the deadline."""
        while True:
            self._empty.clear()  # before looking: what empties it after this is noticed
            if not await self._store.read(self._next):
                return
            await self._empty.wait()

    def _next(self, connection: sqlalchemy.Connection) -> list[OutboxItem]:
        limit = 1 if self._poison else MAX_BATCH
        rows = connection.exec_driver_sql(f"SELECT sequence, payload FROM {self._name} ORDER BY sequence LIMIT {limit}")
        items: list[OutboxItem] = []
        size = 0
        for sequence, payload in rows:
            size += len(payload)
            if items and size > MAX_BATCH_BYTES:
                break
            items.append(OutboxItem(self.source, int(sequence), bytes(payload)))
        return items

    async def _forget(self, batch: Sequence[OutboxItem]) -> None:
        last = batch[-1].sequence

        def delete(connection: sqlalchemy.Connection) -> None:
            connection.exec_driver_sql(f"DELETE FROM {self._name} WHERE sequence <= ?", (last,))

        await self._store.write(delete)
        self._waiting -= len(batch)
        self.delivered += len(batch)

    async def _refused(self, batch: Sequence[OutboxItem], error: InvalidRequest) -> None:
        """The receiver will never take this: find which message it is, one by one, and put that one aside."""
        if len(batch) > 1:
            self._poison = True
            return
        item = batch[0]

        def put_aside(connection: sqlalchemy.Connection) -> None:
            connection.exec_driver_sql(
                f"INSERT OR REPLACE INTO {self._name}_refused (sequence, payload) VALUES (?, ?)",
                (item.sequence, item.payload),
            )
            connection.exec_driver_sql(f"DELETE FROM {self._name} WHERE sequence = ?", (item.sequence,))

        await self._store.write(put_aside)
        self._waiting -= 1
        self.last_error = error
        self._log.error(
            "outbox.refused", outbox=self._name, sequence=item.sequence, reason=error.reason, sentence=error.sentence
        )
