"""Beginnings of large copies that broke off: they lie in `partial/` of their pool, and the same copy goes on there.

The name says whose copy of what it is, so nothing else is written down: the file is the restart marker. What lies there
is read and hashed again before the copy goes on, and what is verified at the end is the whole: a beginning that a power
failure has harmed costs one attempt. Beginnings are no files: no quota counts them, and they go when room is needed,
when their copy is taken back, or when nobody has gone on with them for `KEEP_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from agents.storage.framing import Piece
from agents.storage.model import LARGE_BYTES, Announced, Checksums
from agents.storage.pools import Pools
from fabric.clock import Clock

KEEP_S = 3600.0
"""Longer than any pause between two attempts at a transfer."""


class Continuable(Protocol):
    """A file of elsewhere that can be had from any byte on."""

    def known(self, size_bytes: int) -> None:
        """So many more bytes of its beginning are here already. Before `pieces`."""
        ...

    def pieces(self) -> AsyncIterator[Piece | Checksums]:
        """The rest."""
        ...


class Partials:
    """The beginnings in all pools. `in_thread` runs a blocking call."""

    def __init__(self, pools: Pools, clock: Clock, in_thread: Callable[..., asyncio.Future[Any]]) -> None:
        self._pools, self._clock, self._in_thread = pools, clock, in_thread
        self._in_use: set[str] = set()

    @contextlib.contextmanager
    def in_use(self, announced: Announced, is_continuable: bool) -> Iterator[str]:
        """The name for the beginning of this put, which nobody removes meanwhile; empty if none is kept."""
        if not is_continuable or announced.size_bytes < LARGE_BYTES or announced.checksums is None:
            yield ""
            return
        name = f"{_whose(announced.owner, announced.put_id)}-{_what(announced)}"
        self._in_use.add(name)
        try:
            yield name
        finally:
            self._in_use.discard(name)

    async def pool_of(self, name: str) -> str:
        """The pool where this beginning lies; empty: nowhere."""
        return next((pool for pool, found, _ in await self._all() if found == name), "")

    async def take_back(self, owner: str, put_id: str) -> None:
        """Remove the beginnings of a put that is not under way."""
        whose = _whose(owner, put_id)
        await self._remove([one for one in await self._all() if one[1].startswith(whose)])

    async def make_room(self) -> bool:
        """Remove all that nobody is writing to. Whether there was one."""
        unused = [one for one in await self._all() if one[1] not in self._in_use]
        await self._remove(unused)
        return bool(unused)

    async def forget_old(self) -> None:
        """Remove those that nobody goes on with."""
        before_s = self._clock.now().timestamp() - KEEP_S
        await self._remove([one for one in await self._all() if one[1] not in self._in_use and one[2] < before_s])

    async def _all(self) -> list[tuple[str, str, float]]:
        """Pool, name, and when it was last written to."""

        def look() -> list[tuple[str, str, float]]:
            found: list[tuple[str, str, float]] = []
            for directory in directories:
                with contextlib.suppress(OSError), os.scandir(directory) as entries:  # a disk that is gone has none
                    found += [(str(directory.parent), entry.name, entry.stat().st_mtime) for entry in entries]
            return found

        directories = [pool.partial for name in self._pools.names() if (pool := self._pools.get(name)) is not None]
        return await self._in_thread(look)

    async def _remove(self, beginnings: Sequence[tuple[str, str, float]]) -> None:
        def remove() -> None:
            for pool, name, _ in beginnings:
                with contextlib.suppress(OSError):  # tried again with the next look
                    (Path(pool) / "partial" / name).unlink()

        if beginnings:
            await self._in_thread(remove)


def _whose(owner: str, put_id: str) -> str:
    return hashlib.sha256(f"{owner}\0{put_id}".encode()).hexdigest()[:32]


def _what(announced: Announced) -> str:
    content = f"{announced.vo}\0{announced.size_bytes}\0{announced.checksums}"
    return hashlib.sha256(content.encode()).hexdigest()[:32]
