"""Which pools a storage element has: those of its options and those that operators added, less those they took out.

```
 (options, or added) ─► OPEN ◄──add── DRAINING ──(empty, removed by an operator)──► REMOVED ──add──► OPEN
                          └──drain──────►┘
```

The state is in the database and wins over the options: a pool that was taken out stays out after a restart.
"""

from __future__ import annotations

import os
from asyncio import Future
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

from agents.storage.pool import Pool
from agents.storage.space import PoolFree
from agents.storage.store import FileStore
from fabric.errors import AlreadyExists, InvalidRequest, NotFound, Unavailable
from fabric.logs import Logger
from security.errors import os_error_text

MAX_PATH_LENGTH = 1024
_OWN_NAMES = frozenset({"incoming", "partial", "data", "lost+found"})


class PoolState(StrEnum):
    """What a pool is for."""

    OPEN = "open"
    """Files are read, and new ones written."""
    DRAINING = "draining"
    """Files are read, and moved to other pools."""
    REMOVED = "removed"
    """It was empty and an operator took it out; its disk is not looked at."""


class Pools:
    """The pools of one storage element. `in_thread` runs a blocking call."""

    def __init__(
        self, configured: Sequence[Path], files: FileStore, in_thread: Callable[..., Future[Any]], log: Logger
    ) -> None:
        self._configured = [str(root) for root in configured]
        self._files, self._in_thread, self._log = files, in_thread, log
        self._open: dict[str, Pool] = {}
        self._states: dict[str, PoolState] = {}
        self.missing: list[str] = []
        """Pools that did not answer when last asked."""

    async def start(self) -> None:
        """Open them. One that cannot be used is left out and tried again later. Raises Unavailable(POOL_UNUSABLE) if
        there is none."""
        self._states = {path: PoolState(state) for path, state in (await self._files.pool_states()).items()}
        failure: Unavailable | None = None
        for name in self.names():
            try:
                await self._open_one(name)
            except Unavailable as error:
                self._log.error("storage.pool_lost", pool=name, reason=error.reason, sentence=error.sentence)
                failure = error
        if not self._open and failure is not None:
            raise failure

    async def open_missing(self) -> None:
        """Try those again that could not be opened."""
        for name in self.names():
            if name not in self._open:
                with suppress(Unavailable):
                    await self._open_one(name)

    async def _open_one(self, name: str) -> None:
        expects_files = await self._files.in_pool(name)
        pool: Pool = await self._in_thread(Pool, Path(name), expects_files)
        in_doubt: list[str] = await self._in_thread(pool.in_doubt)
        gone: list[str] = await self._in_thread(pool.settle, in_doubt, await self._files.known(in_doubt))
        self._open[name] = pool
        if in_doubt:
            self._log.info("storage.recovered", pool=name, kept=len(in_doubt) - len(gone), removed=len(gone))

    def names(self) -> list[str]:
        """Every pool that is not taken out, also those whose disk is away."""
        known = dict.fromkeys([*self._configured, *self._states])
        return [name for name in known if self.state_of(name) is not PoolState.REMOVED]

    def state_of(self, name: str) -> PoolState:
        """What it is for."""
        return self._states.get(name, PoolState.OPEN)

    def get(self, name: str) -> Pool | None:
        """An open one; None if its disk is away, or if there is no such pool."""
        return self._open.get(name)

    def require(self, name: str) -> str:
        """Raises NotFound(POOL_UNKNOWN) naming those that there are."""
        if name not in self.names():
            raise NotFound(
                "POOL_UNKNOWN", f"{name[:200]} is no pool of this storage element; its pools: {', '.join(self.names())}"
            )
        return name

    async def measure(self) -> list[PoolFree]:
        """The disks now; a disk that is gone is left out."""
        pools = list(self._open.values())  # a lost one may come back while the thread looks

        def measure_all() -> list[PoolFree]:
            return [found for pool in pools if (found := pool.measure()) is not None]

        measured: list[PoolFree] = await self._in_thread(measure_all)
        self.missing = sorted(set(self.names()) - {pool.pool for pool in measured})
        return measured

    async def writable(self) -> list[PoolFree]:
        """Those of them that take new files."""
        return [pool for pool in await self.measure() if self.state_of(pool.pool) is PoolState.OPEN]

    async def set_state(self, name: str, state: PoolState) -> None:
        """Durable when it returns. What is written to the pool already goes on."""
        before = self._states.get(name)
        self._states[name] = state  # nothing new begins there while the disk writes this down
        try:
            await self._files.set_pool_state(name, state)
        except BaseException:
            if before is None:
                del self._states[name]
            else:
                self._states[name] = before
            raise
        if state is PoolState.REMOVED:
            self._open.pop(name, None)

    async def add(self, path: str) -> str:
        """Take a directory that is there and empty into use, or open a draining pool again; its name. Raises
        InvalidRequest(POOL_INVALID), AlreadyExists(POOL_EXISTS), Unavailable(POOL_UNUSABLE)."""
        if not path.startswith("/") or len(path) > MAX_PATH_LENGTH or not path.isprintable() or ".." in path.split("/"):
            raise InvalidRequest("POOL_INVALID", f"{path[:200]!r} is no pool; give the absolute path of a directory")
        name: str = path if path in self.names() else await self._in_thread(os.path.realpath, path)
        if name in self.names():
            if self.state_of(name) is PoolState.OPEN:
                raise AlreadyExists("POOL_EXISTS", f"{name} is a pool of this storage element already")
        else:
            await self._in_thread(_check_new, Path(name), self.names())
            await self._open_one(name)
        await self.set_state(name, PoolState.OPEN)
        return name


def _check_new(root: Path, pools: Sequence[str]) -> None:
    """Raises InvalidRequest(POOL_INVALID): another program's files must not end up below a pool, nor a pool's in
    another."""
    for pool in pools:
        there = Path(os.path.realpath(pool))
        if root == there or there in root.parents or root in there.parents:
            raise InvalidRequest(
                "POOL_INVALID", f"{root} and the pool {pool} lie in each other; give another directory"
            )
    try:
        foreign = sorted(set(os.listdir(root)) - _OWN_NAMES)
        files = [name for place in ("incoming", "data") for name in _files_below(root / place)]
    except OSError as error:
        raise InvalidRequest(
            "POOL_INVALID", f"{root} cannot be a pool ({os_error_text(error)}); mount its disk and make the directory"
        ) from error
    if foreign or files:
        raise InvalidRequest(
            "POOL_INVALID", f"{root} is not empty: {[*foreign, *files][0][:80]} is there; give an empty directory"
        )


def _files_below(root: Path) -> list[str]:
    """The first file, if there is one."""
    for _, _, files in os.walk(root):
        if files:
            return files[:1]
    return []
