"""Compares an element's files with the catalogue's list of them, again and again (docs/data.md, Audit).

Compared as in `comparison.py`; what differs is kept with the time since when, and told once. Dark files are removed
only where the option `dark` says so, and only after they were dark in every round for a grace time: a catalogue that
comes back from an old backup lists many files no more, and for a while. If it is many at once none is removed at all.
Lost files with a replica elsewhere are made anew where the option `lost` says so, after they were lost in every round
for a grace time: whoever removes a file tells the element first and the catalogue next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from agents.catalog import client as catalog
from agents.storage.comparison import SETTLE_S, differences
from agents.storage.manager import StorageManager
from agents.storage.model import Checksums, Reconciliation, StoredFile
from agents.storage.repair import ChannelSource
from agents.storage.strays import StrayRows
from agents.storage.surl import Surl, parse_surl
from fabric.clock import Clock, to_us
from fabric.errors import GridError
from fabric.logs import Logger
from fabric.settings import Settings
from fabric.store import Store
from fabric.vos import Vos

BEGIN_AFTER_S = 120.0
"""An element that starts has other work."""
AGAIN_S = 600.0
"""After a round that could not end."""
YOUNG_S = 3600.0
"""A file is no suspect before: it may be on its way into the catalogue."""
PAGE = 500
SHARE = 0.1
"""Of the time, how much a round takes."""
STEP_S = 60.0
"""A clock that went so much otherwise than time does was set."""
MAX_TOLD = 1000
"""Strays in the trail of one round; all are counted and kept."""
HELD_LEAST, HELD_PART = 100, 0.1
"""More dark files of a VO than both, as a number and as a part of its files, are the catalogue's fault: none goes."""


@dataclass(frozen=True, slots=True)
class Here:
    """A file of the element, as it is compared."""

    surl: str
    created_at_us: int
    named: bool


class ElementEnds:
    """The two sides for one VO, seen from the element (`comparison.Ends`). Rests after each page of the catalogue."""

    def __init__(
        self, manager: StorageManager, names: Any, vo: str, clock: Clock, pause: Callable[[float], Awaitable[object]]
    ) -> None:
        self._manager, self._names, self._vo, self._clock, self._pause = manager, names, vo, clock, pause

    async def stored(self, token: str) -> tuple[list[Here], str]:
        """See Ends. The token is the last id."""
        element = self._manager.element
        files = await element.page(self._vo, token, PAGE)
        named = await element.with_names(files)
        here = [Here(self._manager.surl(file), file.created_at_us, file.file_id in named) for file in files]
        return here, files[-1].file_id if len(files) == PAGE else ""

    async def listed(self, after: str) -> tuple[list[str], bool]:
        """See Ends."""
        began = self._clock.monotonic()
        page = await catalog.replicas_at(self._names, f"{self._manager.host}:{self._manager.port}", self._vo, after)
        await self._pause((self._clock.monotonic() - began) * (1 / SHARE - 1))
        return page

    async def still_stored(self, surls: Sequence[str]) -> set[str]:
        """See Ends."""
        found = await self.files(surls)
        return {surl for surl in surls if surl in found}

    async def files(self, surls: Sequence[str]) -> dict[str, StoredFile]:
        """By SURL: those of the VO that are there."""
        found = await self._manager.element.files([surl.rpartition("/")[2] for surl in surls])
        return {self._manager.surl(file): file for file in found.values() if file.vo == self._vo}

    async def still_listed(self, surls: Sequence[str]) -> set[str]:
        """See Ends."""
        found, _ = await catalog.lookup(self._names, surls)
        return {replica.surl for entry in found for replica in entry.replicas}


class Reconciler:
    """The comparisons of one element. `run` is its background task."""

    def __init__(
        self,
        manager: StorageManager,
        store: Store,
        channels: ChannelSource,
        settings: Settings,
        vos: Vos,
        *,
        log: Logger,
        clock: Clock,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._manager, self._rows = manager, StrayRows(store)
        self._channels, self._settings, self._vos = channels, settings, vos
        self._log, self._clock, self._pause = log, clock, pause
        self._config = manager.element.config
        self._wanted = asyncio.Event()
        self._failure = ""
        self._before: tuple[int, float] | None = None
        """When the last round of this process began, by both clocks."""
        self.dark = self.lost = 0
        """As the last round found them."""
        self.removed = 0
        """Dark files, since the start."""
        self.held = ""
        """Why dark files are not removed although they should be."""

    def now(self) -> None:
        """Begin a round at once."""
        self._wanted.set()

    async def report(self, limit: int) -> Reconciliation:
        """How it stands, with the first `limit` strays."""
        began_at_us, ended_at_us = await self._rows.last()
        counts, examples = await self._rows.counts(), await self._rows.page("", limit)
        return Reconciliation(
            began_at_us, ended_at_us, _sum(counts, "dark"), _sum(counts, "lost"), self.removed,
            self._failure or self.held, tuple(examples),
        )  # fmt: skip

    async def run(self) -> None:
        """Round after round. Ends only by cancellation."""
        await self._count()
        began_at_us, _ = await self._rows.last()
        since_s = (to_us(self._clock.now()) - began_at_us) / 1e6
        wait_s = max(BEGIN_AFTER_S, min(self._config.reconcile_every_s - since_s, self._config.reconcile_every_s))
        while True:
            try:
                async with asyncio.timeout(wait_s):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            self._wanted.clear()
            try:
                await self.round()
                self._failure, wait_s = "", self._config.reconcile_every_s
            except GridError as error:
                self._failure, wait_s = error.sentence, AGAIN_S
                self._log.warning("storage.reconciliation_failed", reason=error.reason, sentence=error.sentence)

    async def round(self) -> None:
        """Compare everything once. Raises GridError when the catalogue cannot be asked; then nothing is concluded."""
        endpoint = self._settings.endpoint("catalog")
        names = await self._channels.get(endpoint.host, endpoint.rpc)
        round_us, told = await self._begin(), 0
        space = await self._manager.element.space(self._vos.served)
        files = {use.vo: use.files for use, _ in space.vos}
        ends = {vo: ElementEnds(self._manager, names, vo, self._clock, self._pause) for vo in files}
        for vo in files:
            before_us = round_us - int(YOUNG_S * 1e6)
            async for batch in differences(ends[vo], before_us, lambda: self._pause(SETTLE_S)):
                for kind in ("dark", "lost"):
                    surls = [difference.surl for difference in batch if difference.kind == kind]
                    for surl in (await self._rows.saw(vo, kind, surls, round_us))[: MAX_TOLD - told]:
                        self._log.audit(f"storage.{kind}_found", surl=surl, vo=vo)
                        told += 1
        await self._rows.ended(round_us, to_us(self._clock.now()))
        self.held = ""
        if self._config.dark == "remove":
            for vo, counted in files.items():
                await self._remove_dark(ends[vo], vo, counted, round_us)
        if self._config.lost == "repair":
            for vo in files:
                await self._expect_lost(names, vo, round_us)
        await self._count()
        self._log.info("storage.reconciled", dark=self.dark, lost=self.lost, removed=self.removed)

    async def _begin(self) -> int:
        """The time of this round. If the clock was set since the last one, nothing is older or younger for that."""
        now_us, now_s = to_us(self._clock.now()), self._clock.monotonic()
        if self._before is not None:
            step_us = now_us - self._before[0] - round((now_s - self._before[1]) * 1e6)
            if abs(step_us) >= STEP_S * 1e6:
                self._log.warning("storage.clock_stepped", step_s=round(step_us / 1e6))
                await self._rows.shift(step_us)
        self._before = now_us, now_s
        return now_us

    async def _count(self) -> None:
        counts = await self._rows.counts()
        self.dark, self.lost = _sum(counts, "dark"), _sum(counts, "lost")

    async def _remove_dark(self, ends: ElementEnds, vo: str, files: int, round_us: int) -> None:
        dark = (await self._rows.counts()).get((vo, "dark"), 0)
        if dark > max(HELD_LEAST, HELD_PART * files):
            self.held = (
                f"{dark} of {files} files of VO {vo} are not in the catalogue, too many to be removed by itself: "
                "look at the catalogue, then cure them with: grid data audit"
            )
            return
        after = ""
        due_us = round_us - int(self._config.dark_grace_s * 1e6)
        while page := await self._rows.due(vo, "dark", due_us, after, PAGE):
            after = page[-1].surl
            found = await ends.files([stray.surl for stray in page])
            named = await self._manager.element.with_names(list(found.values()))
            listed = await ends.still_listed(list(found))
            for surl, file in found.items():
                if surl not in listed and file.file_id not in named:
                    await self._manager.element.remove(file.file_id, vo, lambda file: None)
                    self._log.audit("storage.dark_removed", surl=surl, vo=vo, owner=file.owner, name=file.name_hint)
                    self.removed += 1
            await self._rows.gone([stray.surl for stray in page])

    async def _expect_lost(self, names: Any, vo: str, round_us: int) -> None:
        """Files with another replica: from here on they are damaged files, which the repairer gives their bytes. Those
        with none are told and stay as they are, and so are those that may have a copy on tape."""
        if self._manager.nearline is not None and self._manager.nearline.keeps(vo):
            return
        after, due_us = "", round_us - int(self._config.lost_grace_s * 1e6)
        while page := await self._rows.due(vo, "lost", due_us, after, PAGE):
            after = page[-1].surl
            found, _ = await catalog.lookup(names, [stray.surl for stray in page])
            lost = {stray.surl for stray in page}
            for entry in found:
                here = [replica.surl for replica in entry.replicas if replica.surl in lost]
                if entry.content is None or len(entry.replicas) == len(here):
                    continue
                for surl in here:
                    file = _expected(entry, parse_surl(surl), round_us)
                    if await self._manager.element.expect(file):
                        self._log.audit("storage.lost_expected", surl=surl, vo=vo, lfn=entry.lfn)
                        await self._rows.gone([surl])


def _expected(entry: catalog.Entry, surl: Surl, now_us: int) -> StoredFile:
    """A file as the catalogue knows it, lost."""
    assert entry.content is not None
    checksums = Checksums(entry.content.adler32, entry.content.sha256)
    return StoredFile(
        surl.file_id, surl.vo, entry.content.size_bytes, checksums, entry.owner, f"expected-{surl.file_id}", entry.lfn,
        pool="", created_at_us=now_us, disk_id="", damage="FILE_LOST", damaged_at_us=now_us,
    )  # fmt: skip


def _sum(counts: dict[tuple[str, str], int], kind: str) -> int:
    return sum(count for (_, found), count in counts.items() if found == kind)
