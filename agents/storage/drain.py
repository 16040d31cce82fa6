"""Pools added, drained and taken out while the storage element runs (`grid storage pool`).

A drain moves one file after the other: read from its disk, verified, written and made durable in another pool, then the
row means the new bytes and the old ones go (`StorageElement.move`). A crash leaves the file in one of the two places.
Nothing new is written to a draining pool; it is empty when no row means it and no upload is under way to it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from agents.storage.element import StorageElement
from agents.storage.pools import PoolState
from agents.storage.store import FileStore
from fabric.bell import Bell
from fabric.errors import Conflict, DataCorrupted, Exhausted, GridError
from fabric.logs import Logger

PAGE = 100
LOOK_AGAIN_S = 30.0
"""How long a drain waits that cannot go on, and for uploads that are under way."""


@dataclass(frozen=True, slots=True)
class PoolReport:
    """One pool as operators see it."""

    path: str
    state: PoolState
    files: int
    used_bytes: int
    free_bytes: int
    total_bytes: int
    """0 and 0 if the disk does not answer."""
    answers: bool
    obstacle: str
    """Why a drain does not go on; else empty."""


class PoolKeeper:
    """What operators do with pools. `run` is the background task that drains."""

    def __init__(self, element: StorageElement, files: FileStore, *, log: Logger) -> None:
        self._element, self._pools, self._files, self._log = element, element.pools, files, log
        self._obstacles: dict[str, str] = {}
        self._wanted = Bell()
        self._changing = asyncio.Lock()

    async def report(self) -> list[PoolReport]:
        """Every pool, in order of path."""
        measured = {pool.pool: self._element.bounded(pool) for pool in await self._pools.measure()}
        used = await self._files.use_by_pool()
        reports: list[PoolReport] = []
        for path in sorted(self._pools.names()):
            size_bytes, files = used.get(path, (0, 0))
            found = measured.get(path)
            free_bytes, total_bytes = (found.free_bytes, found.total_bytes) if found else (0, 0)
            state, obstacle = self._pools.state_of(path), self._obstacles.get(path, "")
            reports.append(
                PoolReport(path, state, files, size_bytes, free_bytes, total_bytes, found is not None, obstacle)
            )
        return reports

    async def add(self, path: str) -> str:
        """As `Pools.add`."""
        async with self._changing:
            path = await self._pools.add(path)
            self._obstacles.pop(path, None)
            return path

    async def drain(self, path: str) -> None:
        """Begin to empty a pool. Again: nothing changes. Raises NotFound(POOL_UNKNOWN), Conflict(LAST_POOL),
        Exhausted(DISK_FULL) if its files do not fit into the others."""
        async with self._changing:
            self._pools.require(path)
            measured = await self._pools.writable()
            others = [pool for pool in measured if pool.pool != path]
            if not others:
                raise Conflict("LAST_POOL", f"no other pool takes the files of {path}; add one first")
            most = max([1, *map(self._element.config.copies_of, self._element.vos())])
            if len(others) < most:
                raise Conflict(
                    "LAST_POOL",
                    f"files have up to {most} copies in different pools, and without {path} {len(others)} take files; "
                    "add one first",
                )
            used_bytes, _ = (await self._files.use_by_pool()).get(path, (0, 0))
            device = next((pool.device for pool in measured if pool.pool == path), None)
            room_bytes = self._element.room_bytes(others)
            if used_bytes > room_bytes and device not in {pool.device for pool in others}:
                raise Exhausted(
                    "DISK_FULL",
                    f"pool {path} holds {used_bytes} bytes and the others have room for {room_bytes}; add a pool or "
                    "remove files first",
                )
            await self._pools.set_state(path, PoolState.DRAINING)
            self._wanted.ring()

    async def remove(self, path: str) -> None:
        """Take an empty pool out. Again: succeeds. Raises NotFound(POOL_UNKNOWN), Conflict(POOL_NOT_EMPTY |
        POOL_NOT_DRAINED)."""
        async with self._changing:
            if self._pools.state_of(path) is PoolState.REMOVED:
                return
            self._pools.require(path)
            if self._pools.state_of(path) is not PoolState.DRAINING:
                raise Conflict("POOL_NOT_DRAINED", f"pool {path} still takes new files; drain it first")
            size_bytes, files = (await self._files.use_by_pool()).get(path, (0, 0))
            uploads = self._element.uploads_to(path)
            if files or uploads:
                raise Conflict(
                    "POOL_NOT_EMPTY",
                    f"pool {path} still holds {files} files ({size_bytes} bytes), and {uploads} are on their way to "
                    f"it; {self._obstacles.get(path) or 'wait for its drain to end'}",
                    files=files,
                )
            await self._element.collect_garbage()
            await self._pools.set_state(path, PoolState.REMOVED)

    async def run(self) -> None:
        """Empty what is draining. Ends only by cancellation."""
        while True:
            heard = self._wanted.rung
            for path in self._pools.names():
                if self._pools.state_of(path) is PoolState.DRAINING:
                    await self.empty(path)
            await self._wanted.wait(LOOK_AGAIN_S, heard)

    async def empty(self, path: str) -> None:
        """Move what can be moved out of a draining pool, once through; the obstacle is in the report."""
        after, moved, self._obstacles[path] = "", 0, ""
        try:
            while page := await self._files.in_one_pool(path, after, PAGE):
                for file in page:
                    if self._pools.state_of(path) is not PoolState.DRAINING:
                        return
                    try:
                        moved += await self._element.move(file)
                    except DataCorrupted:
                        self._obstacles[path] = (
                            f"file {file.file_id} of VO {file.vo} is damaged or lost; repair it (grid data repair) or "
                            "remove it"
                        )
                after = page[-1].file_id
        except GridError as error:
            self._obstacles[path] = error.sentence
        if moved or self._obstacles[path]:
            self._log.info("storage.drained", pool=path, files=moved, obstacle=self._obstacles[path] or None)
