"""Finds damage before a reader does: reads every file at rest, slowly, and compares both checksums with the row's.

One round goes over all files in order of id, each with all its copies, so restarts go on where the last saved position
is. What does not match is read once more before it is believed. A file that cannot be read because its disk is away is
left for the next round.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace

from agents.storage.element import StorageElement
from agents.storage.model import StoredFile
from agents.storage.pool import Hasher
from agents.storage.store import FileStore, ScrubState
from fabric.clock import Clock, to_us
from fabric.errors import DataCorrupted, GridError, Unavailable
from fabric.logs import Logger

PAGE = 100
"""Files between two savings of the position."""
SAVE_BYTES = 1 << 30
"""Or so many bytes, whichever comes first; a larger file begins again after a restart."""
MAX_DAMAGED = 10_000
"""Marked files. More is a lost disk and nothing that repairing one by one would cure: the scrubber waits."""
BEGIN_AFTER_S = 60.0
"""An element that starts has other work than the rest of a round."""
LOOK_AGAIN_S = 60.0
"""How long a scrubber waits that cannot go on."""
SHORTEST_PAUSE_S = 0.05
"""Pauses shorter than this are put together."""


class Scrubber:
    """The scrubber of one storage element. `run` is its background task."""

    def __init__(
        self,
        element: StorageElement,
        files: FileStore,
        *,
        log: Logger,
        clock: Clock,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._element, self._files = element, files
        self._log, self._clock, self._pause = log, clock, pause
        self._config = element.config
        self._wanted = asyncio.Event()
        self._owed_s = 0.0
        self.read_bytes = 0
        """Since the start."""

    async def damaged(self) -> int:
        """How many files are marked as damaged or lost."""
        return await self._files.count_damaged()

    async def examples(self, limit: int) -> list[StoredFile]:
        """The first of them, in order of id."""
        return await self._files.damaged("", limit)

    async def state(self) -> ScrubState:
        """How far it is."""
        return await self._files.scrub_state()

    def now(self) -> None:
        """Begin a round at once, if none is under way."""
        self._wanted.set()

    async def run(self) -> None:
        """Round after round. Ends only by cancellation."""
        while True:
            await self._wait(await self._due_s())
            try:
                whole = await self.round()
            except GridError as error:
                self._log.error("storage.scrub_failed", reason=error.reason, sentence=error.sentence)
                whole = False
            if not whole:
                await self._wait(LOOK_AGAIN_S)

    async def _due_s(self) -> float:
        state = await self.state()
        if not state.ended_at_us:
            return BEGIN_AFTER_S
        return self._config.scrub_every_s - (to_us(self._clock.now()) - state.began_at_us) / 1e6

    async def _wait(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(max(timeout_s, 0.0)):
                await self._wanted.wait()
        except TimeoutError:
            pass
        self._wanted.clear()

    async def round(self) -> bool:
        """Look at every file once, going on where an unfinished round was. False if there is too much damage to go
        on."""
        state = await self.state()
        if state.ended_at_us or not state.began_at_us:
            state = ScrubState(began_at_us=to_us(self._clock.now()))
        unsaved_bytes = 0
        while page := await self._files.all_files(state.position, PAGE):
            if await self.damaged() >= MAX_DAMAGED:
                return False
            for file in page:
                for copy in await self._files.copies(file.file_id):
                    await self._look_at(copy)
                state = replace(
                    state, position=file.file_id, files=state.files + 1, size_bytes=state.size_bytes + file.size_bytes
                )
                unsaved_bytes += file.size_bytes
                if unsaved_bytes >= SAVE_BYTES:
                    await self._files.save_scrub_state(state)
                    unsaved_bytes = 0
            await self._files.save_scrub_state(state)
            unsaved_bytes = 0
        await self._files.save_scrub_state(replace(state, ended_at_us=max(to_us(self._clock.now()), 1)))
        self._log.info("storage.scrubbed", files=state.files, size_bytes=state.size_bytes)
        return True

    async def _look_at(self, file: StoredFile) -> None:
        try:
            damage = await self._damage_of(file) and await self._damage_of(file)
        except Unavailable:
            return  # its disk is away
        if damage != file.damage and not (damage and file.damage == "FILE_LOST"):
            await self._element.mark(file, damage)

    async def _damage_of(self, file: StoredFile) -> str:
        """FILE_LOST, FILE_DAMAGED, or nothing. Raises Unavailable(POOL_UNUSABLE)."""
        hasher = Hasher()
        began = self._clock.monotonic()
        try:
            async with aclosing(self._element.at_rest(file, hasher.update)) as batches:
                async for batch in batches:
                    self.read_bytes += len(batch)
                    await self._slow_down(len(batch), self._clock.monotonic() - began)
                    began = self._clock.monotonic()
        except DataCorrupted as error:
            return error.reason
        await self._slow_down(0, self._clock.monotonic() - began)
        return "" if hasher.checksums() == file.checksums else "FILE_DAMAGED"

    async def _slow_down(self, size_bytes: int, took_s: float) -> None:
        self._owed_s += pause_s(size_bytes, took_s, self._config.scrub_mb_per_s, self._config.scrub_share)
        if self._owed_s >= SHORTEST_PAUSE_S:
            owed, self._owed_s = self._owed_s, 0.0
            await self._pause(owed)


def pause_s(size_bytes: int, took_s: float, mb_per_s: float, share: float) -> float:
    """How long to rest after reading so many bytes in so many seconds, to stay below both bounds."""
    return max(size_bytes / (mb_per_s * 1e6), took_s / share) - took_s
