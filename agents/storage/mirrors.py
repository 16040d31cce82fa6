"""Files have as many copies in as many pools as they should, whatever became of disks (docs/data.md, Mirrored pools).

A put has written all copies before it is answered. What is missing later, because a disk went away or a copy rotted, is
made anew here from a copy that is whole, one file after the other; what is too much, because a disk came back, goes.
"""

from __future__ import annotations

from collections.abc import Collection

from agents.storage.element import StorageElement
from agents.storage.store import FileStore
from fabric.clock import Clock
from fabric.errors import DataCorrupted, GridError
from fabric.logs import Logger

PAGE = 1000
"""Files in one look at the rows."""
LOOK_S = 15.0
"""Between two looks at the disks."""
GONE_S = 300.0
"""A disk that is away for less, or read-only, is waited for: copying it would cost more than it saves."""
AGAIN_S = 600.0
"""Between two attempts at what could not be made right."""


class Mirrors:
    """Keeps the number of copies in one element. `run` is its background task."""

    def __init__(self, element: StorageElement, files: FileStore, *, log: Logger, clock: Clock) -> None:
        self._element, self._files, self._log, self._clock = element, files, log, clock
        self._away_since: dict[str, float] = {}
        self.missing = 0
        """Files with too few copies, as the last round left them."""
        self.obstacle = ""
        """Why they are too few; empty if none is."""

    async def run(self) -> None:
        """Whenever a copy is lost or another set of pools can be counted on. Ends only by cancellation."""
        done: tuple[int, set[str]] | None = None
        again_at = 0.0
        while True:
            heard = self._element.copy_lost.rung
            try:
                good = await self.good_pools()
                if done != (heard, good) or (self.obstacle and again_at <= self._clock.monotonic()):
                    await self.round(good)
                    done, again_at = (heard, good), self._clock.monotonic() + AGAIN_S
            except GridError as error:
                self._log.error("storage.mirror_failed", reason=error.reason, sentence=error.sentence)
            await self._element.copy_lost.wait(LOOK_S, heard)

    async def good_pools(self) -> set[str]:
        """Those whose copies count: all but the disks that have been away for some time."""
        pools, now_s = self._element.pools, self._clock.monotonic()
        await pools.measure()
        self._away_since = {name: self._away_since.get(name, now_s) for name in pools.missing}
        return {name for name in pools.names() if now_s - self._away_since.get(name, now_s) < GONE_S}

    async def round(self, good: Collection[str]) -> None:
        """Look at all files once, and make right what can be."""
        missing, obstacle, made = 0, "", 0
        has_copies = await self._files.has_copies()
        for vo in self._element.vos():
            wanted, after = self._element.config.copies_of(vo), ""
            if wanted == 1 and not has_copies:
                continue
            counted = good if wanted > 1 else self._element.pools.names()
            while True:
                after, file_ids = await self._files.miscounted(counted, wanted, vo, after, PAGE)
                for file_id in file_ids:
                    try:
                        made += await self._mend(file_id, wanted, counted)
                    except DataCorrupted:
                        pass  # marked; repaired from another element
                    except GridError as error:
                        missing, obstacle = missing + 1, error.sentence
                if not after:
                    break
        self.missing = missing
        self.obstacle = obstacle and f"{missing} files have too few copies: {obstacle}"
        if made or missing:
            self._log.info("storage.mirrored", copies=made, missing=missing, obstacle=self.obstacle or None)

    async def _mend(self, file_id: str, wanted: int, good: Collection[str]) -> int:
        """Make the copies of a file that are missing, then drop those that are too many. How many were made."""
        made = 0
        while copies := await self._files.copies(file_id):
            whole = [copy for copy in copies if copy.pool in good]
            if len(whole) < wanted and not copies[0].damage:
                if not await self._element.add_copy(whole[0] if whole else copies[0]):
                    break  # it changes just now; the next round sees it
                made += 1
                continue
            surplus = [copy for copy in copies if copy.pool not in good] + whole[wanted:]
            if len(copies) <= wanted or not surplus or not await self._element.drop_copy(surplus[0], wanted):
                break
        return made
